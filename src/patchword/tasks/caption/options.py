"""How captions are searched for, and when they are trusted: what a model says of itself, and where it shall
differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, Field

from patchword.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]
"""Numbers that a model computes with; the shorter ones are faster on GPUs and on some processors, and less
exact."""

COLUMNS = {"caption": "string", "score": "double", "complete": "bool", "model": "string"}
"""What a job (`jobs/`) says of a picture; the process that hands out its parts loads no more than this."""

MOST_BEAMS = 100
MOST_TOKENS = 1000


@dataclass(frozen=True)
class DecodingOptions:
    """Options of the search for a caption; None is the model's own setting.

    Raises ConfigError for a value out of range.
    """

    beams: int | None = None
    """Hypotheses that the search follows; 1 is greedy."""
    length_penalty: float | None = None
    """0: the sum of log-probabilities decides; 1: their mean; more: long captions."""
    no_repeat: int | None = None
    """No n words in a row occur twice; 0: allowed."""
    max_length: int | None = None
    """Longest caption in tokens, the end token included; one that is cut there is not `complete`."""
    min_length: int = 0
    """Tokens that a caption has at least before it may end."""
    mention: tuple[str, ...] = ()
    """Words that every caption must say; without them the model's own setting decides whether what its
    eyes are sure of must be said."""
    dtype: Precision | None = None
    """Numbers to compute with; None: as the weights are stored in memory, float32."""

    def __post_init__(self) -> None:
        if isinstance(self.mention, str):
            raise ConfigError(f"mention is the text {self.mention!r}: give words in brackets, [word]")
        for name, least, most in (
            ("beams", 1, MOST_BEAMS),
            ("length_penalty", 0, 10),
            ("no_repeat", 0, MOST_TOKENS),
            ("max_length", 2, MOST_TOKENS),
            ("min_length", 0, MOST_TOKENS),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name} is {value}, expected {least} to {most}")
        if self.max_length is not None and self.min_length >= self.max_length:
            raise ConfigError(
                f"min_length is {self.min_length} and max_length {self.max_length}: no caption fits "
                "between, as the end "
                "counts as a token"
            )
        if self.dtype is not None and self.dtype not in get_args(Precision):
            raise ConfigError(f"dtype is {self.dtype!r}, expected one of {', '.join(get_args(Precision))}")


OWN = DecodingOptions()
"""Nothing differs from the model's own settings."""


class DecodingSettings(BaseModel, extra="forbid", frozen=True):
    """How captions are searched for where the caller does not say."""

    beams: int = Field(3, gt=0, le=100, description="hypotheses that the search follows; 1 is greedy")
    max_length: int = Field(
        20, gt=1, le=1000, description="longest caption in tokens, the end token included"
    )
    length_penalty: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        le=100,
        description="0: sum of log-probabilities decides; 1: their mean",
    )
    no_repeat_ngram: int = Field(0, ge=0, le=1000, description="no n words in a row occur twice; 0: allowed")
    no_stutter: bool = Field(False, description="no word directly follows itself")

    def changed(self, options: DecodingOptions, longest: int | None) -> DecodingSettings:
        """These settings with those that the caller has given in their place.

        Raises ConfigError for captions of more tokens than `longest`, for which the captioner has positions
        (None: no such limit), and where no caption fits the lengths.
        """
        if longest is not None and options.max_length is not None and options.max_length > longest:
            raise ConfigError(
                f"max_length is {options.max_length}, and the model has positions for {longest} tokens: "
                f"ask for {longest} at most"
            )
        given = {
            "beams": options.beams,
            "max_length": options.max_length,
            "length_penalty": options.length_penalty,
            "no_repeat_ngram": options.no_repeat,
        }
        changed = self.model_copy(update={name: value for name, value in given.items() if value is not None})
        if options.min_length >= changed.max_length:
            raise ConfigError(
                f"min_length is {options.min_length}, and the model's captions have "
                f"{changed.max_length} tokens at most, their end included: give max_length as well"
            )
        return changed


class DoubtSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """When a caption is marked unsure (`doubt.py`), fitted on pictures held out of training."""

    bias: float = Field(description="logistic regression: constant term")
    distance: float = Field(description="logistic regression: weight of the distance over its limit")
    log_probability: float = Field(description="logistic regression: weight of a token's log-probability")
    unsaid: float = Field(description="logistic regression: weight of the likeliest unsaid concept")
    limit: float = Field(ge=0, le=1, description="probability of agreement below which a picture is unsure")
    far: float = Field(1.0, ge=1, description="distance over its limit beyond which only concepts are named")
    likely: float = Field(0.15, gt=0, le=1, description="as confident, where the caption cannot be trusted")


class ConceptSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What a captioning model knows about the concepts that its eyes name."""

    slope: float = Field(description="calibration: slope of logit q in logit p")
    intercept: float = Field(description="calibration: intercept")
    offsets: dict[str, float] = Field(default_factory=dict, description="calibration: what a word differs by")
    priors: dict[str, float] = Field(
        default_factory=dict,
        description="how often captions name a word, whatever the picture; less than that is no evidence",
    )
    hosts: dict[str, str] = Field(
        default_factory=dict,
        description="concept words that the vocabulary lacks, and the words they are said like",
    )
    mention: Literal["never", "confident"] = Field(
        "confident", description="confident: words of at least that probability enter the caption"
    )
    confident: float = Field(0.6, gt=0, le=1, description="probability from which a word must be said")
    untaught: float | None = Field(
        None,
        gt=0,
        le=1,
        description="probability from which the likeliest word that no training caption taught must be said, "
        "which the captioner alone hardly says; absent: as the others",
    )
    probable: float = Field(
        0.08, gt=0, le=1, description="probability from which a word is listed, or guessed"
    )
    doubt: DoubtSettings | None = Field(
        None, description="when a caption is marked unsure; absent: beyond the limit of distance"
    )
