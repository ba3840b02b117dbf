"""What `patchword score` computes for one file of predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from patchword.errors import ConfigError, DataError, counted
from patchword.metrics import ALL_METRICS, KNOWN_METRICS, TOKENIZERS, Report, check_ids, report
from patchword.metrics.diversity import diversity
from patchword.metrics.scores import Score
from patchword.text.ptb import shifting_captions
from patchword.text.words import written_without_spaces

Further = Callable[[Mapping[str, Sequence[str]], Mapping[str, str]], dict[str, Score]]
"""Computes scores from references and predictions that report() does not know of: CLIPScore, CHAIR."""


class Settings(NamedTuple):
    """How to score."""

    metrics: tuple[str, ...]
    named: frozenset[str]
    """Metrics that were asked for by name, so that their absence is a failure."""
    tokenizer: str
    allow_missing: bool = False
    strict: bool = False
    clip_model: str | None = None
    """The two towers of CLIPScore, for the reader of the table."""

    @classmethod
    def of(cls, metrics: str, tokenizer: str, allow_missing: bool, strict: bool) -> Settings:
        """Reads what the command line takes; raises ConfigError for a metric or tokenizer that does not
        exist."""
        named = tuple(name.strip() for name in metrics.split(",") if name.strip())
        known = (*KNOWN_METRICS, "diversity")
        for name in named:
            if name not in known:
                raise ConfigError(f"metric {name!r} does not exist; choose from {', '.join(known)}")
        if tokenizer not in TOKENIZERS:
            raise ConfigError(
                f"tokenizer {tokenizer!r} does not exist; choose one of {', '.join(TOKENIZERS)}"
            )
        return cls(named or ALL_METRICS, frozenset(named), tokenizer, allow_missing, strict)

    def remarks(self, results: Mapping[str, Result]) -> str:
        """What a reader of the table must know before comparing its numbers with others."""
        sizes = sorted({result.images for result in results.values()})
        text = counted(1, "image") if sizes == [1] else f"{' or '.join(map(str, sizes))} images"
        left_out = max(result.left_out for result in results.values())
        if left_out:
            text += f"; INCOMPLETE: up to {counted(left_out, 'image')} left out, which only one side has"
        if min(sizes) == 1 and {"cider", "cider-plain"} & set(self.metrics):
            text += (
                "; CIDEr of one image alone is 0 by definition (its words occur in every image of the "
                "set): score more"
            )
        if self.tokenizer == "ptb" and any(result.unspaced for result in results.values()):
            text += (
                "; the references are of a script without spaces, each one word: score with --tokenizer char"
            )
        if self.tokenizer != "ptb":
            text += f"; tokenizer {self.tokenizer}: NOT comparable with coco-caption"
        if self.clip_model is not None:
            text += f"; CLIPScore of {self.clip_model}: comparable with that of the same towers only"
        return text


class Result(NamedTuple):
    """Scores of one file of predictions."""

    report: Report
    overlap: dict[str, Score]
    """The scores against references: those that have intervals."""
    images: int
    left_out: int
    settings: Settings
    unspaced: bool = False
    """Whether the references are of a script that puts no spaces between words, which the usual tokenizer
    needs."""

    def as_json(self, per_image: bool) -> dict[str, Any]:
        """Corpus values, values per image if wanted, and settings, in full precision."""
        scores = self.report.scores
        content: dict[str, Any] = {"corpus": {name: score.value for name, score in scores.items()}}
        if per_image:
            rows: dict[str, dict[str, float]] = {}
            for name, score in scores.items():
                for image, value in (score.per_item or {}).items():
                    rows.setdefault(image, {})[name] = value
            content["per_image"] = rows
        content["settings"] = {
            "metrics": list(self.settings.metrics),
            "tokenizer": self.settings.tokenizer,
            "comparable_with_coco_caption": self.settings.tokenizer == "ptb" and not self.left_out,
            "images": self.images,
            "left_out": self.left_out,
            "absent": self.report.absent,
        }
        if self.settings.clip_model is not None:
            content["settings"]["clip_model"] = self.settings.clip_model
        return content


def evaluate(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    settings: Settings,
    training: Mapping[str, Sequence[str]] | None = None,
    further: Sequence[Further] = (),
) -> Result:
    """Scores one file of predictions; `further` scores stand after the others.

    Raises DataError where images differ (unless settings allow it) or a strict check fails.
    """
    left_out = len(references.keys() ^ predictions.keys())
    if settings.allow_missing:
        both = references.keys() & predictions.keys()
        if not both:
            raise DataError(
                "predictions and references have no image id in common: they are of different sets, or ids "
                "are of another kind"
            )
        references = {image: captions for image, captions in references.items() if image in both}
        predictions = {image: caption for image, caption in predictions.items() if image in both}
    check_ids(references, predictions)
    if settings.strict:
        _refuse_line_breaks(references, predictions)
    found = report(
        references,
        predictions,
        settings.tokenizer,
        [name for name in settings.metrics if name != "diversity"],
    )
    for compute in further:
        found = found._replace(scores=found.scores | compute(references, predictions))
    overlap = dict(found.scores)
    if "diversity" in settings.metrics:
        tokenize = TOKENIZERS[settings.tokenizer]
        words = dict(zip(predictions, tokenize(list(predictions.values())), strict=True))
        known = (
            tokenize([caption for captions in training.values() for caption in captions])
            if training is not None
            else None
        )
        found = found._replace(scores=found.scores | diversity(words, known))
    unspaced = sum(written_without_spaces(captions[0]) for captions in references.values())
    return Result(found, overlap, len(predictions), left_out, settings, 2 * unspaced > len(references))


def evaluate_groups(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    settings: Settings,
    groups: Mapping[str, Sequence[str]],
    training: Mapping[str, Sequence[str]] | None = None,
    further: Sequence[Further] = (),
) -> dict[str, Result]:
    """Each group of image ids scored as a set of its own (CIDEr has its own document frequencies); empty
    groups are left out.
    """
    found = {}
    for name, members in groups.items():
        own = {image: references[image] for image in members if image in references}
        captions = {image: predictions[image] for image in members if image in predictions}
        if own or captions:
            found[name] = evaluate(own, captions, settings, training, further)
    return found


def _refuse_line_breaks(references: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> None:
    """The Java tokenizer gives one line more for such a caption, so that all later captions get the tokens of
    another.
    """
    for side, captions in (
        ("predictions", list(predictions.values())),
        ("references", [caption for group in references.values() for caption in group]),
    ):
        if places := shifting_captions(captions):
            raise DataError(
                f"the {side} hold a line-breaking character in {counted(len(places), 'caption')}, "
                f"the first is {captions[places[0]]!r}; Java would shift the "
                f"{counted(len(captions) - places[0] - 1, 'caption')} after it; "
                "remove the characters, or leave --strict out"
            )
