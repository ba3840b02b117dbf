"""One line about a loaded model: what `repr` shows in a console or a notebook."""

from __future__ import annotations

from typing import Any, Protocol

from patchword.checkpoints.facts import ModelFacts


class LoadedModel(Protocol):
    """What every model that `patchword.load` gives has: the network, where it runs, and the facts of its
    model card.
    """

    @property
    def model(self) -> Any: ...

    @property
    def device(self) -> Any: ...

    @property
    def facts(self) -> ModelFacts: ...


def describe(loaded: LoadedModel, *facts: str) -> str:
    """For instance "<CaptioningModel flickr8k: caption_transformer over convolutional, 2,634 words, 12.3 M
    parameters, on cpu>".
    """
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    size = f"{count / 1e6:.1f} M parameters" if count >= 1e5 else f"{count:,} parameters"
    name = f" {loaded.facts.name}" if loaded.facts.name else ""
    return f"<{type(loaded).__name__}{name}: {', '.join([*facts, size, f'on {loaded.device}'])}>"
