"""Evolutionary search over prompt structures under a budget.

It follows AutoFormer (Chen et al. 2021, arXiv 2107.00651, section 3.3). Generation 0 is random. Each later
one consists of mutations and crossings of the best structures so far, filled up with random ones. No
structure is scored twice. The random numbers depend only on the seed and the scores, never on timing. An
interrupted search is therefore resumed by running it again with the recorded scores: it visits the same
structures and requests only the missing scores.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, Field

from patchword.errors import ConfigError
from patchword.models.fusion.prompt_fusion import PromptFusionConfig
from patchword.models.fusion.prompt_search import SearchSpace

Make = Callable[[list[PromptFusionConfig]], PromptFusionConfig]
"""Makes a structure from the best so far."""

_TRIES = 300
"""Attempts to draw a new structure within the budget before the search continues with fewer."""


class EvolutionConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the search; the defaults are AutoFormer's."""

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
    """A structure with its cost and its score (higher is better)."""

    structure: PromptFusionConfig
    cost: float
    score: float


def key_of(structure: PromptFusionConfig) -> str:
    """Identifies a structure by one line, for a file of scores."""
    return structure.model_dump_json()


@dataclass
class Evolution:
    """A search for the best structure of a space within a budget."""

    space: SearchSpace
    classes: int
    score: Callable[[PromptFusionConfig], float]
    cost: Callable[[PromptFusionConfig], float]
    budget: float
    settings: EvolutionConfig
    seen: dict[str, StructureScore] = field(default_factory=dict, init=False)
    """What was scored, by `key_of`."""

    def run(
        self, seed: int, known: Mapping[str, float], on_scored: Callable[[int, StructureScore], None]
    ) -> list[StructureScore]:
        """Returns all structures that were scored, best first; of equal ones, the cheaper comes first.

        Args:
            known: scores by `key_of` from an earlier, interrupted run of the same search; empty for a new
                one.
            on_scored: called with the generation and each structure as soon as it is scored, to show
                progress and to record scores for `known`.
        Raises:
            ConfigError: no structure of the space is within the budget.
        """
        settings, generator = self.settings, random.Random(seed)

        def draw(parents: list[PromptFusionConfig]) -> PromptFusionConfig:
            return self.space.draw(self.classes, generator)

        def mutate(parents: list[PromptFusionConfig]) -> PromptFusionConfig:
            parent = generator.choice(parents)
            return self.space.mutate(
                parent, generator, settings.mutation_probability, settings.depth_probability
            )

        def cross(parents: list[PromptFusionConfig]) -> PromptFusionConfig:
            return self.space.cross(generator.choice(parents), generator.choice(parents), generator)

        def add(generation: int, count: int, make: Make) -> None:
            for key, structure, cost in self._candidates(count, make):
                score = known[key] if key in known else self.score(structure)
                self.seen[key] = StructureScore(structure, cost, score)
                on_scored(generation, self.seen[key])

        add(0, settings.population, draw)
        if not self.seen:
            cheapest = min(self.cost(draw([])) for _ in range(_TRIES))
            found = f"no structure of the search space costs {self.budget:,.0f} or less"
            raise ConfigError(
                f"{found}, the cheapest one found costs {cheapest:,.0f}: raise the budget or widen the space"
            )
        for generation in range(1, settings.generations + 1):
            full = len(self.seen) + settings.population
            add(generation, min(settings.mutations, settings.population), mutate)
            add(generation, min(settings.crossings, full - len(self.seen)), cross)
            add(generation, full - len(self.seen), draw)
        return ranked(self.seen)

    def _candidates(self, count: int, make: Make) -> Iterator[tuple[str, PromptFusionConfig, float]]:
        """Up to `count` new structures within the budget, made from the best so far, with key and cost."""
        parents = [scored.structure for scored in ranked(self.seen)[: self.settings.parents]]
        added = 0
        for _ in range(_TRIES):
            if added == count:
                return
            structure = make(parents)
            key = key_of(structure)
            if key in self.seen:
                continue
            cost = self.cost(structure)
            if cost <= self.budget:
                yield key, structure, cost
                added += 1


def ranked(seen: Mapping[str, StructureScore]) -> list[StructureScore]:
    """Sorts best first; equal ones by cost, then by name, so that the order never depends on chance."""
    return sorted(seen.values(), key=lambda scored: (-scored.score, scored.cost, key_of(scored.structure)))
