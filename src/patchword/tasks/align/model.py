"""Patch-word alignment of pictures and texts: how well they match, and which patches match which words.

photo -> vision tower -> patches; text -> text tower -> words; patches and words ->
models/pairs/patch_slimming -> similarity, explanation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from patchword.checkpoints import folder as checkpoint
from patchword.checkpoints.facts import ModelFacts
from patchword.checkpoints.model import (
    build_checked,
    find_model,
    published_commits,
    read_settings,
    read_vocabulary,
)
from patchword.data.pictures import Picture
from patchword.device import choose_device
from patchword.layers.all_pairs import RaggedTokens, all_pairs, ragged
from patchword.layers.codebook import Codebook
from patchword.layers.region_alignment import RegionAlignmentConfig
from patchword.models.pairs.aligned_towers import AlignedTowers, PairTokens
from patchword.models.pairs.patch_slimming import PatchSlimmingConfig
from patchword.tasks.align.result import AlignedPair, PointedWord
from patchword.tasks.describe import describe
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers, by_value
from patchword.text.pieces import Pieces
from patchword.text.subwords import Subwords
from patchword.text.words import Vocabulary


class AlignModelSettings(TwoTowerSettings, extra="forbid", frozen=True):
    """The settings in config.json of an alignment model, apart from the facts about its training."""

    patch_slimming: PatchSlimmingConfig
    region_alignment: RegionAlignmentConfig | None = None
    codebook: dict[str, Any] | None = Field(
        None, description="words of region alignment; the embeddings are among the weights"
    )


class EncodedCache(NamedTuple):
    """Pictures or texts, each encoded once.

    It holds tokens in half precision for the head, and unit vectors (n, E) for a shortlist.
    """

    tokens: RaggedTokens
    vectors_NE: Tensor


class AlignmentModel:
    """Aligned towers with their vocabulary and preprocessing."""

    def __init__(
        self,
        model: AlignedTowers,
        settings: AlignModelSettings,
        vocabulary: Vocabulary | Subwords | Pieces,
        facts: ModelFacts,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.settings, self.vocabulary, self.facts, self.device = settings, vocabulary, facts, device
        self.towers = TwoTowerModel(model.towers, settings, vocabulary, facts, device)

    def __repr__(self) -> str:
        return describe(
            self, f"patch-word alignment over {self.settings.vision.kind} and {self.settings.text.kind}"
        )

    def picture_cache(
        self, pictures: Sequence[Picture], batch: int = 32, progress: Callable[[int], None] | None = None
    ) -> EncodedCache:
        """Encodes pictures; `progress` is called with the number of pictures done since its last call.

        Raises PictureError for a picture that cannot be decoded.
        """
        parts = (self._look(pictures[i : i + batch]) for i in range(0, len(pictures), batch))
        return cached((_whole(part) for part in parts), progress)

    def _look(self, pictures: Sequence[Picture]) -> PairTokens:
        return self.model.look(self.model.towers.vision(self.towers.pixels(pictures)))

    def text_cache(
        self, texts: Sequence[str], batch: int = 256, progress: Callable[[int], None] | None = None
    ) -> EncodedCache:
        """Encodes texts; `progress` is called with the number of texts done since its last call.

        Raises DataError for a text without a word that the model knows.
        """

        def parts() -> Iterator[tuple[PairTokens, Tensor]]:
            for first in range(0, len(texts), batch):
                ids_JL, mask_JL = self.towers.ids(texts[first : first + batch])
                yield self.model.read(ids_JL, mask_JL), mask_JL.sum(1)

        return cached(parts(), progress)

    def similarities(
        self,
        pictures: EncodedCache,
        texts: EncodedCache,
        progress: Callable[[int], None] | None = None,
        bf16: bool = False,
    ) -> Tensor:
        """Returns the similarities (pictures, texts) of all pairs.

        `progress` is called with the number of pairs done since its last call. `bf16` rounds the products of
        words and patches.
        """
        dtype = torch.bfloat16 if bf16 else torch.float32
        return all_pairs(
            self.model.head,
            pictures.tokens,
            texts.tokens,
            self.model.class_token,
            self.device,
            product_dtype=dtype,
            progress=progress,
        )

    def remarks(self, text: str) -> list[str]:
        """What a person should know who asks with this text: words that the model does not know, and what is
        cut."""
        return self.towers.remarks(text)

    @torch.inference_mode()
    def explain(self, picture: Picture, text: str) -> AlignedPair:
        """Explains one pair: which patches are kept, merged and dropped, and which patches match each word.

        Raises PictureError for a picture that cannot be decoded, DataError for a text without a word that the
        model knows.
        """
        looked = self._look([picture])
        ids_JL, mask_JL = self.towers.ids([text])
        read = self.model.read(ids_JL, mask_JL)
        trace = self.model.head.explain(looked.tokens[0], read.tokens[0], self.model.class_token)
        config = self.settings.patch_slimming
        rows, columns = looked.hw if looked.hw is not None else (1, len(trace.kept_N))
        weights_Phw = trace.tokens_PN.reshape(-1, rows, columns).cpu().numpy()
        fused = len(weights_Phw) - 1 if config.fused_token else None
        merged = range(int(self.model.class_token), len(weights_Phw) - config.fused_token)
        names = ["the whole picture"] * self.model.class_token + [
            f"token {n + 1}" for n in range(len(merged))
        ]
        names += ["the dropped patches"] * config.fused_token
        words = ["(start)", *self.vocabulary.tokens(ids_JL[0].tolist()), "(end)"]
        gifts_Lhw = trace.gifts_LN.reshape(-1, rows, columns).cpu().numpy()
        pointed = []
        for place, (word, token) in enumerate(zip(words, trace.word_token_L.tolist(), strict=True)):
            patch = divmod(int(trace.word_patch_L[place]), columns)
            pointed.append(
                PointedWord(
                    word, names[token], token, float(trace.cosines_LP[place, token]), patch, gifts_Lhw[place]
                )
            )
        return AlignedPair(
            text=text,
            similarity=trace.similarity,
            cosine=float(looked.vectors[0] @ read.vectors[0]),
            words=tuple(pointed),
            scores_hw=trace.scores_N.reshape(rows, columns).cpu().numpy(),
            kept_hw=trace.kept_N.reshape(rows, columns).cpu().numpy(),
            weights_Phw=weights_Phw,
            merged=tuple(merged),
            fused=fused,
        )

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write the model folder; it appears under its name when it is complete. `half` stores fp16."""
        checkpoint.save_model(self, folder, half)

    def write(self, folder: Path, half: bool = False) -> None:
        """Writes the files of the model folder; `half` stores the weights in half precision."""
        facts = self.facts.with_sources(published_commits(self.model))
        weights, words = self.model.state_dict(), self.vocabulary.to_json()
        settings = by_value(self.settings, self.model.towers)
        checkpoint.write_model(folder, "align", settings, facts, weights, words, half)


@torch.inference_mode()
def cached(
    parts: Iterator[tuple[PairTokens, Tensor]], progress: Callable[[int], None] | None = None
) -> EncodedCache:
    """Builds a cache from encoded batches, each with its numbers of tokens.

    `progress` is called with the number of pictures or texts done since its last call.
    """
    vectors = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for looked, lengths_B in parts:
            vectors.append(looked.vectors.float().cpu())
            if progress is not None:
                progress(len(lengths_B))
            yield looked.tokens, lengths_B

    tokens = ragged(batches())
    return EncodedCache(tokens, torch.cat(vectors))


def _whole(looked: PairTokens) -> tuple[PairTokens, Tensor]:
    return looked, torch.full((len(looked.tokens),), looked.tokens.shape[1])


def build_aligned(settings: AlignModelSettings, codebook: Codebook | None) -> AlignedTowers:
    """Builds the model of these settings, with random weights or those of published towers."""
    return AlignedTowers(
        build_two_towers(settings), settings.patch_slimming, settings.region_alignment, codebook
    )


def load_alignment(name: str | Path, device: str | None = None) -> AlignmentModel:
    """Loads an alignment model by the name of a shipped one, a folder or a hub id.

    Raises ModelError where it is no such model.
    """
    folder = find_model(name)
    settings, facts = read_settings(folder, "align", AlignModelSettings)
    vocabulary = read_vocabulary(folder, settings.vocabulary_size)

    def build() -> AlignedTowers:
        codebook = None if settings.codebook is None else Codebook.described(settings.codebook)
        return build_aligned(settings, codebook)

    return AlignmentModel(build_checked(folder, build), settings, vocabulary, facts, choose_device(device))
