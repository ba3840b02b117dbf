"""What is known about a model beside its settings: where it comes from, what it may be used for, how good it
is.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ModelFacts(BaseModel, extra="forbid", frozen=True):
    """The facts of config.json, from which the model card is written. What is not known stays empty."""

    name: str = Field("", description="name of the model")
    description: str = Field("", description="what the model is, in a sentence")
    dataset: str = Field("", description="what it was trained on, and selected on")
    licence: str = Field("", description="licence note of the data, and so of the weights")
    command: str = Field("", description="command that repeats the training")
    limits: str = Field("", description="what the model cannot do")
    example: str = Field("", description="an example of what it can be asked")
    scores: dict[str, float] = Field({}, description="scores by the name of the metric")
    scores_on: str = Field("", description="what the scores were measured on")
    trained_parameters: int | None = Field(
        None, description="numbers that were trained, where others were not"
    )
    towers: str | None = Field(None, description="model whose two towers it began with")
    vision_from: str | None = Field(None, description="model whose vision tower it began with")
    text_from: str | None = Field(None, description="model whose text tower it began with")
    sources: dict[str, str] = Field({}, description="published models in it: the commit of the hub by id")
    notes: dict[str, Any] = Field({}, description="anything else")

    def with_sources(self, commits: dict[str, str]) -> ModelFacts:
        """The facts with more published models, by the commit that they were read from."""
        return self.model_copy(update={"sources": {**self.sources, **commits}})


def model_card(facts: ModelFacts) -> str:
    """README.md of a model folder."""
    given = facts.model_dump(exclude_defaults=True)
    title = given.pop("name", "") or "A model"
    lines = [f"# {title}", "", given.pop("description", "") or "Made with Patchword.", ""]
    given |= given.pop("notes", {})
    for key, value in given.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number}" for name, number in value.items())
        lines.append(f"* **{key.replace('_', ' ')}**: {value}")
    return "\n".join(lines) + "\n"
