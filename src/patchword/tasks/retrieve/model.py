"""Pictures and texts as vectors of one space, for search, labels and contrastive training.

photo -> data/pictures -> vision tower -> unit vector; text -> vocabulary -> text tower -> unit vector
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import published_commits
from patchword.composed import TextTowerSettings, TowerSettings, build_text_tower, build_tower
from patchword.data.pictures import Picture, Preprocessing, open_picture
from patchword.lookup import look_up
from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig
from patchword.tasks.describe import describe
from patchword.tasks.retrieve.labels import TEMPLATES, label_shares
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords, knows, remarks_on, rows_of
from patchword.text.words import Vocabulary, refuse_no_texts
from patchword.towers import layered


class QuestionSettings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What decides whether a photograph shows a thing: `tasks/answer/photographs.py` has the formula."""

    centre: tuple[float, ...] = Field(description="mean unit vector of the training pictures")
    bias: float = Field(description="constant term")
    cosine: float = Field(description="weight of the scaled cosine above the mean picture's")
    known_bias: float = Field(description="constant term of things that the classifier names")
    known: float = Field(description="weight of the logit of the classifier's probability")
    sure: float = Field(
        0.3,
        gt=0,
        le=1,
        description="the classifier's probability from which its word is what a picture shows",
    )


class TwoTowerSettings(BaseModel, extra="forbid", frozen=True):
    """The settings in config.json of a two-tower model, apart from the facts about its training."""

    vision: TowerSettings
    text: TextTowerSettings
    two_towers: TwoTowersConfig
    preprocessing: Preprocessing
    vocabulary_size: int = Field(gt=0, le=10_000_000)
    questions: QuestionSettings | None = Field(
        None, description="for questions about photographs; absent: the model answers none"
    )


def by_value(settings: TwoTowerSettings, towers: TwoTowers) -> TwoTowerSettings:
    """Returns the settings of a model folder that holds all weights.

    No tower in them names the folder, hub id or package that it came from.
    """
    return settings.model_copy(
        update={"vision": layered.by_value(towers.vision), "text": layered.by_value(towers.text)}
    )


def build_two_towers(settings: TwoTowerSettings) -> TwoTowers:
    """Builds the two-tower model of these settings, with random weights or those of published towers."""
    return TwoTowers(settings.two_towers, build_tower(settings.vision), build_text_tower(settings.text))


class TwoTowerModel:
    """Two towers with their vocabulary and preprocessing."""

    def __init__(
        self,
        model: TwoTowers,
        settings: TwoTowerSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device
        self.identity = checkpoint.weights_digest(model)
        """SHA-256 of the weights; an index records it and refuses vectors of another model."""

    def __repr__(self) -> str:
        kinds = f"{self.settings.vision.kind} and {self.settings.text.kind}"
        return describe(self, kinds, f"vectors of {self.settings.two_towers.width}")

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[Picture], batch: int = 32) -> np.ndarray:
        """Returns unit vectors (n, E), float32. Raises PictureError for a picture that cannot be decoded."""
        vectors = [np.zeros((0, self.settings.two_towers.width), dtype=np.float32)]
        for first in range(0, len(pictures), batch):
            vectors.append(
                self.model.embed_pictures(self.pixels(pictures[first : first + batch])).float().cpu().numpy()
            )
        return np.concatenate(vectors)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> np.ndarray:
        """Returns unit vectors (n, E), float32.

        Raises DataError for a text without a word that the model knows.
        """
        refuse_no_texts(texts)
        vectors = [np.zeros((0, self.settings.two_towers.width), dtype=np.float32)]
        for first in range(0, len(texts), batch):
            vectors.append(
                self.model.embed_texts(*self.ids(texts[first : first + batch])).float().cpu().numpy()
            )
        return np.concatenate(vectors)

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Returns pictures (n, 3, H, W) as the vision tower takes them.

        Raises PictureError for a picture that cannot be decoded.
        """
        pixels_BHWC = np.stack(
            [self.settings.preprocessing.apply(open_picture(picture)) for picture in pictures]
        )
        return torch.from_numpy(self.settings.preprocessing.normalise(pixels_BHWC)).to(self.device)

    def ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns token ids (n, longest) with start and end, and the mask of the real ones.

        Texts are cut to the length of the text tower. Raises DataError for a text without a word that the
        model knows.
        """
        special = self.vocabulary.special
        rows = rows_of(self.vocabulary, texts, self.model.text.max_length)
        ids_BL = torch.full((len(rows), max(map(len, rows))), special.pad)
        mask_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
        for b, row in enumerate(rows):
            ids_BL[b, : len(row)] = torch.tensor(row)
            mask_BL[b, : len(row)] = True
        return ids_BL.to(self.device), mask_BL.to(self.device)

    def knows(self, text: str) -> bool:
        """True where the text has a known word within the length of the text tower."""
        return knows(self.vocabulary, text, self.model.text.max_length)

    def remarks(self, text: str) -> list[str]:
        """What a person should know who asks with this text: words that the model does not know, and what is
        cut.

        Empty where the model reads the whole text.
        """
        return remarks_on(self.vocabulary, text, self.model.text.max_length)

    def label(
        self, pictures: Sequence[Picture], labels: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> np.ndarray:
        """Returns the probability of each label for each picture (n, labels).

        It is a softmax over scaled cosines with the mean vector of the label's prompts.
        """
        return label_shares(self, self.model.scale().item(), pictures, labels, templates)

    def ask(
        self, pictures: Picture | Sequence[Picture], questions: str | Sequence[str], n_best: int = 1
    ) -> Any:
        """Answers to questions about photographs, as `patchword ask` gives them: for one picture its answers,
        best first, for a list of pictures with a question each a list of them.

        Raises DataError for a question that cannot be answered, ModelError for towers that were not fitted to
        answer any, PictureError for a picture that cannot be decoded.
        """
        answerer = look_up("tasks.answer.photographs:PhotographAnswerer")(self)
        return look_up("tasks.answer.one_or_each:one_or_each")(
            pictures, questions, lambda some, asked: answerer.ask_each(some, asked, n_best)
        )

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder; `half` stores the weights in half precision."""
        facts = self.facts.with_sources(published_commits(self.model))
        weights, words = self.model.state_dict(), self.vocabulary.to_json()
        settings = by_value(self.settings, self.model)
        checkpoint.write_model(folder, "retrieve", settings, facts, weights, words, half)
