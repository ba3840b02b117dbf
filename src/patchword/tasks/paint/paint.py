"""What `patchword paint` does: pictures of a prompt, or of many, into a folder, batch by batch, each file
whole or not there.

A file that is there already with the same facts is not painted again, so that a command that was interrupted,
or stopped by a full disk, goes on where it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import open_picture
from patchword.errors import ConfigError, DataError
from patchword.files import write_bytes
from patchword.tasks.paint.families import TokenChoice
from patchword.tasks.paint.marks import marked_png, read_facts

AT_ONCE = 8
"""Pictures that are drawn together; a seed's picture does not depend on it but for rounding."""


class Painter(Protocol):
    """What paints: a model of ours, or a pipeline of diffusers."""

    @property
    def facts(self) -> ModelFacts:
        """What is known about it."""
        ...

    @property
    def identity(self) -> str:
        """What identifies its weights."""
        ...

    @property
    def usual_steps(self) -> int | None:
        """Steps where none are asked for; None where there is no choice."""
        ...

    def remarks(self, text: str) -> list[str]:
        """What a person should know who asks with this text."""
        ...

    def check(self, text: str) -> None:
        """Raises DataError for a text that it can make nothing of."""
        ...

    def paint(
        self,
        prompt: str | Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
        percentile: float | None = None,
        tokens: TokenChoice | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Pictures, uint8 (n, H, W, 3), of one text or of one for each seed."""
        ...


class Cascade:
    """A painter, and one that enlarges what it paints."""

    def __init__(self, first: Painter, second: Any) -> None:
        """`second` is a `PaintingModel` that was trained to enlarge. Raises ConfigError for another one."""
        if getattr(second.settings.painter, "small_size", None) is None:
            raise ConfigError(
                f"{second.facts.name} paints from the text alone and enlarges nothing: it was trained "
                "without painter.small_size"
            )
        self.first, self.second, self.facts = first, second, second.facts

    @property
    def identity(self) -> str:
        """Both identities."""
        return f"{self.first.identity}+{self.second.identity}"

    @property
    def usual_steps(self) -> int | None:
        """Of both."""
        return (self.first.usual_steps or 1) + (self.second.usual_steps or 1)

    def remarks(self, text: str) -> list[str]:
        """What either does not know."""
        return list(dict.fromkeys([*self.first.remarks(text), *self.second.remarks(text)]))

    def check(self, text: str) -> None:
        """Raises DataError where either can make nothing of the text."""
        self.first.check(text)
        self.second.check(text)

    def paint(
        self,
        prompt: str | Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
        percentile: float | None = None,
        tokens: TokenChoice | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Pictures of the first, enlarged by the second, with the same seeds."""
        small = self.first.paint(prompt, seeds, guidance, steps, percentile, tokens, watch)
        return self.second.enlarge(prompt, small, seeds, guidance, steps, watch)


class PaintedPicture(NamedTuple):
    """One picture that was painted."""

    path: Path
    seed: int
    pixels_HWC: np.ndarray
    score: float | None
    """Score of the ranker; None where there is none."""
    kept: bool
    """Whether it was there already."""


class Order(NamedTuple):
    """What is to be painted."""

    prompt: str
    seeds: Sequence[int]
    model: str
    guidance: float | None = None
    steps: int | None = None
    percentile: float | None = None
    tokens: TokenChoice | None = None


def paint_into(
    painter: Painter,
    order: Order,
    out: Path,
    overwrite: bool,
    rank: Callable[[Sequence[np.ndarray]], Sequence[float]] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> list[PaintedPicture]:
    """Paints what is not there yet, and ranks everything: best score first, or in the order of the seeds.

    `watch` is called after every step of every batch, and as often for pictures that are there already.

    Raises:
        ConfigError: a prompt that is no text; a file that is there was painted from something else, and
            `overwrite` is not set.
        WriteError: a file cannot be written; those before it are there.
    """
    facts = facts_of(painter, order)
    _refuse_unwritable(order.prompt)
    named = [NamedWish(out / f"{_slug(order.prompt)}-{seed}.png", order.prompt, seed) for seed in order.seeds]
    kept = {one.seed for one in named if _is_there(one, facts, overwrite)}
    names = {one.seed: one.path for one in named}
    found = {seed: np.asarray(open_picture(names[seed])) for seed in kept}
    missing = [one for one in named if one.seed not in kept]
    for one, pixels_HWC in _painted(painter, order, missing, facts, watch):
        found[one.seed] = pixels_HWC
    scores = [None] * len(order.seeds) if rank is None else rank([found[seed] for seed in order.seeds])
    painted = [
        PaintedPicture(names[seed], seed, found[seed], score, seed in kept)
        for seed, score in zip(order.seeds, scores, strict=True)
    ]
    return painted if rank is None else sorted(painted, key=lambda one: -(one.score or 0.0))


class NamedWish(NamedTuple):
    """A picture that is to be painted, and its file."""

    path: Path
    prompt: str
    seed: int


class PaintedPrompts(NamedTuple):
    """What came of a list of prompts."""

    pictures: list[NamedWish]
    kept: int
    """Pictures that were there already."""
    refused: list[tuple[int, str]]
    """Lines whose prompt the painter can make nothing of, counted from 1, and why."""


def paint_prompts(
    painter: Painter,
    prompts: Sequence[str],
    order: Order,
    out: Path,
    overwrite: bool,
    watch: Callable[[], None] = lambda: None,
) -> PaintedPrompts:
    """Paints for each prompt as many pictures as the order has seeds, and none that is there already.

    The prompt of line n, counted from 0, takes the seeds that follow those of the line before, so no two
    pictures begin with the same noise. Files are named by their line. A prompt that the painter can make
    nothing of is listed and left out. Memory does not grow with the number of pictures.

    Raises:
        ConfigError: a file that is there was painted from something else, and `overwrite` is not set.
        WriteError: a file cannot be written; those before it are there.
    """
    refused: list[tuple[int, str]] = []
    named: list[NamedWish] = []
    digits = max(4, len(str(len(prompts))))
    for place, prompt in enumerate(prompts):
        try:
            _refuse_unwritable(prompt)
            painter.check(prompt)
        except (ConfigError, DataError) as error:
            refused.append((place + 1, str(error)))
            continue
        for seed in (first + place * len(order.seeds) for first in order.seeds):
            name = f"{place + 1:0{digits}}-{_slug(prompt)}-{seed}.png"
            named.append(NamedWish(out / name, prompt, seed))
    facts = facts_of(painter, order)
    missing = [one for one in named if not _is_there(one, {**facts, "prompt": one.prompt}, overwrite)]
    for _ in _painted(painter, order, missing, facts, watch):
        pass
    return PaintedPrompts(named, len(named) - len(missing), refused)


def _refuse_unwritable(prompt: str) -> None:
    """Raises ConfigError for a prompt that no file could carry."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the prompt {prompt!a} holds bytes that are no UTF-8, and every picture carries its "
            "prompt as text: write it anew"
        ) from error


def _is_there(one: NamedWish, facts: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether a picture was painted already. Raises ConfigError for a file of its name that is another."""
    if not one.path.exists():
        return False
    if read_facts(one.path) == {"generated": True, **facts, "seed": one.seed}:
        return True
    if not overwrite:
        raise ConfigError(
            f"{one.path} exists already and was not painted by this command: choose another --out, or "
            "--overwrite replaces it"
        )
    return False


def _painted(
    painter: Painter,
    order: Order,
    missing: Sequence[NamedWish],
    facts: Mapping[str, Any],
    watch: Callable[[], None],
) -> Iterator[tuple[NamedWish, np.ndarray]]:
    """Paints and writes batch by batch."""
    wish = (order.guidance, order.steps, order.percentile, order.tokens)
    for first in range(0, len(missing), AT_ONCE):
        some = missing[first : first + AT_ONCE]
        some[0].path.parent.mkdir(parents=True, exist_ok=True)
        prompts, seeds = [one.prompt for one in some], [one.seed for one in some]
        for one, pixels_HWC in zip(some, painter.paint(prompts, seeds, *wish, watch), strict=True):
            marks = {**facts, "prompt": one.prompt, "seed": one.seed}
            write_bytes(one.path, marked_png(pixels_HWC, marks))
            yield one, pixels_HWC


def facts_of(painter: Painter, order: Order) -> dict[str, Any]:
    """What repeats the pictures of an order, but for the seed."""
    facts = {
        "prompt": order.prompt,
        "model": order.model,
        "weights": painter.identity,
        "guidance": order.guidance,
        "steps": order.steps,
        "percentile": order.percentile,
        **({} if order.tokens is None else order.tokens._asdict()),
    }
    return {name: value for name, value in facts.items() if value is not None}


def batches(pictures: int) -> int:
    """How often the painter is called at most for so many pictures."""
    return -(-pictures // AT_ONCE)


def _slug(prompt: str) -> str:
    """The prompt as a beginning of file names: letters and numbers of any script, at most 60 bytes."""
    words = "".join(letter if letter.isalnum() else " " for letter in prompt).split()
    slug = "-".join(words) or "picture"
    return slug.encode()[:60].decode("utf-8", "ignore").strip("-")
