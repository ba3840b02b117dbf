"""Settings that every run and every stage have; tasks add their own model and objective."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

SHARDED = (
    "several processes share out weights, gradients and moments between them (FSDP), where memory is short"
)


class RunSettings(BaseModel, extra="forbid", frozen=True):
    """The settings of a run, whatever it trains."""

    out: str = Field(description="folder of the run")
    seed: int = Field(1, description="every random number of the run follows from it")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 only where the device has it")
    checkpoint_steps: int = Field(
        500,
        ge=0,
        description="steps between two checkpoints, beside those after validations; 0: after every epoch",
    )
    log_steps: int = Field(10, gt=0, description="steps between two lines of metrics.jsonl")
    log: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="trackers that get what metrics.jsonl gets (extra `log`)"
    )
    description: str = Field("", description="what the model is; goes into its card")
    licence: str = Field("", description="licence note of the data; goes into the card")


class StageSettings(BaseModel, extra="forbid", frozen=True):
    """One stage of a training: how long, how fast, and which parameters."""

    name: str = Field("train", description="name of the stage in logs and reports")
    epochs: int = Field(10, gt=0, description="passes over the training pictures")
    batch: int = Field(
        32,
        gt=0,
        description="pictures (or captions, where every caption is a row) per optimiser step, "
        "over all processes",
    )
    accumulate: int = Field(
        1,
        gt=0,
        description="parts that a batch is cut into, one backward pass each: less memory, the same step",
    )
    learning_rates: dict[str, float] = Field(
        default_factory=lambda: {"": 1e-3},
        description="rate per group of parameters, by the beginning of their names, the longest wins; "
        "0 freezes a group; '' is the rest",
    )
    warm_up_steps: int = Field(
        0, ge=0, description="steps over which the rates rise linearly; the first step is never at 0"
    )
    decay: Literal["constant", "cosine", "step"] = Field(
        "constant", description="how the rates fall after the warm-up"
    )
    decay_epochs: int = Field(8, gt=0, description="step decay: epochs between two falls")
    decay_factor: float = Field(
        0.8, gt=0, le=1, description="step decay: what the rates are multiplied by; cosine: not used"
    )
    optimiser: Literal["adam", "adamw", "sgd"] = Field(
        "adamw", description="rule of the steps; sgd has momentum betas[0]"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the running moments")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices; vectors (biases, norms) have none")
    clip_norm: float = Field(5.0, ge=0, description="largest norm of the whole gradient; 0: not clipped")
    validate_every: int = Field(
        1, gt=0, description="epochs between two validations; the last epoch is always validated"
    )
    patience: int = Field(
        0, ge=0, description="validations without a better score after which the stage ends; 0: never"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="model that validations keep: that of the best score, or the last one"
    )
    start_from: Literal["last", "best"] = Field(
        "last", description="weights that the stage begins with: as they are, or the best so far"
    )
