"""The configuration of a training that answers questions."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from patchword.composed import CaptionerSettings, TowerSettings
from patchword.data.augment import Augmentation
from patchword.data.questions import Targets
from patchword.models.fusion.question_answering import QuestionConfig
from patchword.tasks.answer.two_streams import TwoStreamsConfig
from patchword.train.settings import RunSettings, StageSettings


class QuestionDataSettings(BaseModel, extra="forbid", frozen=True):
    """Which pictures and questions are read, and how they are prepared."""

    annotations: str = Field(
        description="easy-VQA or VQA v2 (file or folder), or a table with image, question and answer"
    )
    answers: str | None = Field(
        None, description="annotations file of VQA v2 where it does not lie beside the questions file"
    )
    images: str = Field(description="folder of the pictures")
    features: str | None = Field(
        None, description="feature store of the frozen tower (`patchword features`), in place of the pictures"
    )
    pixel_size: int | None = Field(
        None, ge=16, description="side at which pictures are cached; absent: the tower's own size"
    )
    cache: str | None = Field(
        None, description="folder of the pixel cache; absent: patchword in the user's cache folder"
    )
    augmentation: Augmentation | None = Field(
        None, description="random views while training (mind left and right); absent: plain pictures"
    )
    minimum_count: int = Field(
        1, gt=0, description="words that occur less often in the training questions become unknown"
    )
    max_words: int = Field(20, gt=0, description="words of a question beyond this are cut off")
    list_length: int = Field(
        3129, gt=1, description="answers to choose from: the most frequent of the training questions"
    )
    minimum_answers: int = Field(1, gt=0, description="answers that occur less often are not in the list")
    held_out: int = Field(
        0, ge=0, description="training pictures set aside to select the model; 0: it is selected on split val"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="share of the training pictures whose questions are learnt, drawn evenly"
    )
    limit: int = Field(
        0, ge=0, description="use only the first n training pictures (tests, dry runs); 0: all"
    )


class AnswerStage(StageSettings, frozen=True):
    """A stage in which answers are learnt."""

    questions_per_picture: int = Field(
        8, gt=0, description="questions of a picture in a batch, drawn anew every epoch where it has more"
    )
    patch_contrast: float = Field(
        0.0, ge=0, description="weight of the contrast between patches of one concept (region alignment)"
    )


class AnswerRun(RunSettings, frozen=True):
    """The configuration of a training that answers questions."""

    task: Literal["answer"] = "answer"
    data: QuestionDataSettings
    targets: Targets = Field(
        "answer",
        description="answer: the most frequent one, chosen from a list; scores: how far people agree on "
        "each (VQA v2); words: generated",
    )
    tower: TowerSettings = Field(discriminator="kind")
    tower_from: str | None = Field(
        None, description="trained model (shipped name, folder, hub id) whose tower the training begins with"
    )
    answerer: QuestionConfig = QuestionConfig()
    two_streams: TwoStreamsConfig | None = Field(
        None, description="answer by two streams (ViLBERT) in place of [answerer]"
    )
    two_streams_from: str | None = Field(
        None, description="model that ViLBERT pre-trained, whose streams the training begins with"
    )
    generator: CaptionerSettings | None = Field(
        None, description="captioner that words the answers (targets words)"
    )
    codebook: str | None = Field(
        None, description="codebook folder (`patchword codebook`) for region alignment"
    )
    stage: tuple[AnswerStage, ...] = Field(min_length=1, description="what happens, in order")
