"""Evolutionary search over prompt structures under a budget (AutoFormer, Chen et al. 2021, arXiv 2107.00651, section 3.3).

Generation 0 is drawn at random; each later one is made of mutations and crossings of the best structures seen so far, filled up at random.
Nothing is scored twice. The search draws from its seed alone, never from scores' timing, so an interrupted one is resumed by running it
again with the scores that were written down: it passes through the same structures and asks for the missing ones only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import BaseModel, Field

from patchword.errors import ConfigError
from patchword.models.fusion.prompt_fusion import PromptFusionConfig
from patchword.models.fusion.prompt_search import SearchSpace

_TRIES = 300
"""Draws of a structure that is within the budget and new, before the search makes do with fewer."""


class EvolutionConfig(BaseModel, extra="forbid", frozen=True):
    """AutoFormer's settings are the defaults."""

    generations: int = Field(20, ge=0, description="generations after the random one")
    population: int = Field(50, gt=0, description="structures scored in each generation")
    parents: int = Field(10, gt=0, description="best structures so far that have children")
    mutations: int = Field(25, ge=0, description="children by mutation")
    crossings: int = Field(25, ge=0, description="children of two parents")
    mutation_probability: float = Field(
        0.2, ge=0, le=1, description="probability that a setting is drawn anew"
    )
    depth_probability: float = Field(
        0.4, ge=0, le=1, description="probability that the number of fused layers is drawn anew"
    )


class StructureScore(NamedTuple):
    """A structure, what it costs, and how good it is (higher is better)."""

    structure: PromptFusionConfig
    cost: float
    score: float


def key_of(structure: PromptFusionConfig) -> str:
    """One line that names a structure, for a file of scores."""
    return structure.model_dump_json()


def evolve(
    space: SearchSpace,
    classes: int,
    score: Callable[[PromptFusionConfig], float],
    cost: Callable[[PromptFusionConfig], float],
    budget: float,
    settings: EvolutionConfig,
    seed: int,
    known: Mapping[str, float],
    on_scored: Callable[[int, StructureScore], None],
) -> list[StructureScore]:
    """All structures that were scored, best first (of equal ones the cheaper).

    Args:
        known: scores by `key_of` from an earlier, interrupted run of the same search; empty for a new one.
        on_scored: is told the generation and each structure as soon as it is scored: progress, and the file for `known`.

    Raises:
        ConfigError: no structure of the space is within the budget.
    """
    generator = random.Random(seed)
    seen: dict[str, StructureScore] = {}

    def add(
        generation: int, count: int, make: Callable[[list[PromptFusionConfig]], PromptFusionConfig]
    ) -> None:
        """Scores up to `count` new structures within the budget, made from the best so far."""
        parents = [scored.structure for scored in ranked(seen)[: settings.parents]]
        added = 0
        for _ in range(_TRIES):
            if added == count:
                return
            structure = make(parents)
            key = key_of(structure)
            if key in seen:
                continue
            price = cost(structure)
            if price > budget:
                continue
            seen[key] = StructureScore(structure, price, known[key] if key in known else score(structure))
            on_scored(generation, seen[key])
            added += 1

    def draw(parents: list[PromptFusionConfig]) -> PromptFusionConfig:
        return space.draw(classes, generator)

    def mutate(parents: list[PromptFusionConfig]) -> PromptFusionConfig:
        return space.mutate(
            generator.choice(parents), generator, settings.mutation_probability, settings.depth_probability
        )

    def cross(parents: list[PromptFusionConfig]) -> PromptFusionConfig:
        return space.cross(generator.choice(parents), generator.choice(parents), generator)

    add(0, settings.population, draw)
    if not seen:
        cheapest = min(cost(draw([])) for _ in range(_TRIES))
        found = f"no structure of the search space costs {budget:,.0f} or less"
        raise ConfigError(
            f"{found}, the cheapest one found costs {cheapest:,.0f}: raise the budget or widen the space"
        )
    for generation in range(1, settings.generations + 1):
        full = len(seen) + settings.population
        add(generation, min(settings.mutations, settings.population), mutate)
        add(generation, min(settings.crossings, full - len(seen)), cross)
        add(generation, full - len(seen), draw)
    return ranked(seen)


def ranked(seen: Mapping[str, StructureScore]) -> list[StructureScore]:
    """Best first; of equal ones the cheaper, then by name, so that the order never depends on chance."""
    return sorted(seen.values(), key=lambda scored: (-scored.score, scored.cost, key_of(scored.structure)))
