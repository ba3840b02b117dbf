"""A plugin of mypy: an attribute that torch knows nothing of is no error.

`torch.nn.Module.__getattr__` is declared as `Tensor | Module`, so that every `tower.width` and every call of
a submodule would have to be cast. Read as Any, such an attribute is not checked; those that a class declares
still are.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny, UnionType, get_proper_type

_MODULE = "torch.nn.modules.module.Module."


class TorchPlugin(Plugin):
    """Gives unknown attributes of modules the type that they had before torch 2.0."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """The hook for attributes of `torch.nn.Module` itself, declared or not."""
        return _unknown_is_any if fullname.startswith(_MODULE) else None


def _unknown_is_any(context: AttributeContext) -> Type:
    is_unknown = isinstance(get_proper_type(context.default_attr_type), UnionType)
    return AnyType(TypeOfAny.special_form) if is_unknown else context.default_attr_type


def plugin(version: str) -> type[Plugin]:
    """The entry point that mypy calls."""
    return TorchPlugin
