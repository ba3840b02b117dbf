"""Structure search for PMF: a supernet whose weights contain those of every structure in a search space.

Li et al. 2023 (PMF, arXiv 2304.06306) search the layer where fusion starts and the lengths of the prompts
with AutoFormer (Chen et al. 2021, arXiv 2107.00651); neither their space nor their code is public. The space
here is the number of fused layers, and for each of them the lengths of the three kinds of prompts and the
width of the maps. Weights are entangled as in AutoFormer: a prompt of length 4 is the first 4 rows of the
prompt of length 16. Layers are counted from the top. The search is in `tasks/label/evolution.py`. A structure
is a `PromptFusionConfig`, which can be trained as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from patchword.models.fusion.prompt_fusion import FusionTokens, PromptFusion, PromptFusionConfig


class Gene(NamedTuple):
    """The settings of one fused layer."""

    query: int
    query_context: int
    fusion_context: int
    map_width: int


class SearchSpace(BaseModel, extra="forbid", frozen=True):
    """The choices for each setting; every fused layer chooses independently."""

    fused_layers: tuple[int, ...] = Field(
        (1, 2, 3, 4), min_length=1, description="numbers of fused layers to try"
    )
    query: tuple[int, ...] = Field((0, 1, 2, 4, 8, 16), min_length=1, description="numbers of query prompts")
    query_context: tuple[int, ...] = Field(
        (0, 1, 2, 4, 8, 16), min_length=1, description="numbers of query-context prompts"
    )
    fusion_context: tuple[int, ...] = Field(
        (0, 1, 2, 4, 8, 16), min_length=1, description="numbers of fusion-context prompts"
    )
    map_width: tuple[int, ...] = Field((96, 192, 384), min_length=1, description="hidden widths of the maps")

    @model_validator(mode="after")
    def _maps_have_a_width(self) -> SearchSpace:
        if min(self.map_width) < 1:
            raise ValueError(
                f"map_width offers {min(self.map_width)}: a searched map has a width of at least 1"
            )
        return self

    def largest(self, classes: int) -> PromptFusionConfig:
        """Returns the structure that contains all others."""
        gene = Gene(max(self.query), max(self.query_context), max(self.fusion_context), max(self.map_width))
        return structure_of([gene] * max(self.fused_layers), classes)

    def draw(self, classes: int, generator: random.Random) -> PromptFusionConfig:
        """Draws a random structure, each setting uniformly."""
        return structure_of(
            [self._gene(generator) for _ in range(generator.choice(self.fused_layers))], classes
        )

    def mutate(
        self,
        structure: PromptFusionConfig,
        generator: random.Random,
        probability: float,
        depth_probability: float,
    ) -> PromptFusionConfig:
        """Returns a copy with each setting redrawn with `probability`.

        The number of layers is redrawn with `depth_probability` (AutoFormer: 0.2 and 0.4).
        """
        genes = genes_of(structure)
        if generator.random() < depth_probability:
            depth = generator.choice(self.fused_layers)
            genes = genes[:depth] + [self._gene(generator) for _ in range(depth - len(genes))]
        mutated = []
        for gene in genes:
            fresh = self._gene(generator)
            settings = (
                new if generator.random() < probability else old for old, new in zip(gene, fresh, strict=True)
            )
            mutated.append(_tidy(Gene(*settings), self))
        return structure_of(mutated, structure.classes)

    def cross(
        self, one: PromptFusionConfig, other: PromptFusionConfig, generator: random.Random
    ) -> PromptFusionConfig:
        """Crosses two structures.

        The number of layers comes from one parent; in layers that both have, each setting comes from either
        parent at random.
        """
        first, second = genes_of(one), genes_of(other)
        if generator.random() < 0.5:
            first, second = second, first
        mixed = [
            Gene(*(generator.choice(pair) for pair in zip(*genes, strict=True)))
            for genes in zip(first, second, strict=False)
        ]
        return structure_of([_tidy(gene, self) for gene in mixed] + first[len(mixed) :], one.classes)

    def _gene(self, generator: random.Random) -> Gene:
        choices = (self.query, self.query_context, self.fusion_context, self.map_width)
        return _tidy(Gene(*(generator.choice(values) for values in choices)), self)


def _tidy(gene: Gene, space: SearchSpace) -> Gene:
    # Without query prompts, their context and the map have no effect; fixed values give each function one
    # structure.
    return gene if gene.query else gene._replace(query_context=0, map_width=min(space.map_width))


def genes_of(structure: PromptFusionConfig) -> list[Gene]:
    """Lists the fused layers from the top down; the structure must name a length for every layer."""
    return [
        Gene(*(structure.at(name, layer) for name in Gene._fields))
        for layer in reversed(range(structure.fused_layers))
    ]


def structure_of(genes: list[Gene], classes: int) -> PromptFusionConfig:
    """Builds a structure from fused layers listed from the top down."""
    columns = {name: tuple(getattr(gene, name) for gene in reversed(genes)) for name in Gene._fields}
    return PromptFusionConfig(classes=classes, fused_layers=len(genes), **columns)


class PromptSupernet(nn.Module):
    """All structures of a space in one set of weights."""

    def __init__(self, space: SearchSpace, classes: int, image_tower: Any, text_tower: Any) -> None:
        """Raises what `PromptFusion` raises for the largest structure."""
        super().__init__()
        self.whole = PromptFusion(space.largest(classes), image_tower, text_tower)

    def lower(
        self,
        image: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> FusionTokens:
        """Returns the tokens before the lowest layer that any structure fuses; see `PromptFusion.lower`."""
        return self.whole.lower(image, input_ids, token_type_ids, attention_mask)

    def forward(self, structure: PromptFusionConfig, tokens: FusionTokens) -> Tensor:
        """Returns the logits (B, Y) of one structure, from the tokens of `lower`.

        The gradient reaches only the slices of the weights that the structure uses.
        """
        skipped = self.whole.config.fused_layers - structure.fused_layers
        for _, image_layer, text_layer in self.whole.fused_pairs()[:skipped]:
            image_BNC = image_layer(tokens.image_BNC)
            tokens = FusionTokens(
                image_BNC, text_layer(tokens.text_BLC, tokens.text_mask_BL), tokens.text_mask_BL
            )
        part, corner = self._part(structure)
        return functional_call(
            _Fuse(part), {f"model.{name}": weights for name, weights in corner.items()}, (tokens,)
        )

    def extract(self, structure: PromptFusionConfig) -> PromptFusion:
        """Returns the structure as a separate model with copies of its weights and the same towers."""
        part, corner = self._part(structure)
        towers = {
            name: weights
            for name, weights in part.state_dict().items()
            if name.startswith(("image_tower.", "text_tower."))
        }
        model = PromptFusion(structure, self.whole.image_tower, self.whole.text_tower)
        model.load_state_dict(
            {**towers, **{name: weights.detach().clone() for name, weights in corner.items()}}
        )
        return model

    def _part(self, structure: PromptFusionConfig) -> tuple[PromptFusion, dict[str, Tensor]]:
        """Returns a model of the structure with weights on the meta device, and the slices to run it with."""
        with torch.device("meta"):
            part = PromptFusion(structure, self.whole.image_tower, self.whole.text_tower)
        weights, skipped = (
            dict(self.whole.named_parameters()),
            self.whole.config.fused_layers - structure.fused_layers,
        )
        corner = {}
        for name, empty in part.named_parameters():
            if empty.device.type != "meta":
                continue
            kind, *rest = name.split(".")
            source = ".".join([kind, str(int(rest[0]) + skipped), *rest[1:]]) if kind == "fused" else name
            corner[name] = weights[source][tuple(slice(length) for length in empty.shape)]
        return part, corner


class _Fuse(nn.Module):
    """Wraps `PromptFusion.fuse` as a forward, because `functional_call` calls forward."""

    def __init__(self, model: PromptFusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: FusionTokens) -> Tensor:
        return self.model.fuse(tokens)


def trained_parameters(structure: PromptFusionConfig, image_width: int, text_width: int) -> int:
    """Returns the number of trained parameters of a structure over frozen towers of these widths.

    AutoFormer limits its search by this number.
    """
    widths = image_width + text_width
    total = (widths + 2) * structure.classes
    for layer in range(structure.fused_layers):
        query, context = structure.at("query", layer), structure.at("query_context", layer)
        total += (query + (context if query else 0) + structure.at("fusion_context", layer)) * widths
        hidden = (
            max(image_width, text_width) // 2
            if structure.map_width is None
            else structure.at("map_width", layer)
        )
        if query and hidden:
            total += 2 * hidden * widths + 2 * hidden + widths
    return total


def saved_bytes(model: nn.Module, compute: Callable[[], Tensor]) -> int:
    """Returns the bytes that autograd keeps for the backward pass of `compute()`.

    Each storage counts once, and the model's own weights do not count.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # keeps every storage alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(storages.values())
