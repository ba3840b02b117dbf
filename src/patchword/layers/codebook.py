"""A codebook of words in the text space of a two-tower model, and the assignment of patches to words.

FSGR (Gao 2025) calls the assignment semantic quantification. A codebook is a folder: `codebook.json` holds
the words, the prompt templates with their hash, and the tower that defines the text space;
`codebook.safetensors` holds one embedding per word. A codebook works only with patches of its own tower.

Shape legend: B images, N patches, E width of the text space, W words of the codebook, K words left after the
prefilter, S prompt sentences of a word.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import DataError, ModelError
from patchword.files import file_digest, json_digest, text_digest, whole_folder, write_json
from patchword.tensors import compare_shapes, read_shapes, read_tensors, write_tensors

FORMAT = 1
DESCRIPTION, EMBEDDINGS = "codebook.json", "codebook.safetensors"
_WIDEST = 16384
_CURE = "build the codebook anew with 'patchword codebook'"
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a bright photo of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "there is a {} in the scene.",
    "a photo of a {} in the scene.",
)
OBJECTS = Path(__file__).with_name("objects.txt")
"""Path of a list of 80 everyday objects, one per line."""


class ConceptAssignment(NamedTuple):
    """The codebook word of each patch."""

    concepts_BN: Tensor
    """Row of the codebook."""
    tokens_BNE: Tensor
    """Embedding of the word; with straight-through Gumbel, its gradient reaches the patches."""


class Codebook(nn.Module):
    """Words and their unit-length embeddings in the text space of `tower`; nothing here is trained.

    Raises DataError where words repeat or their number does not match the embeddings.
    """

    def __init__(
        self, words: Sequence[str], embeddings_WE: Tensor, tower: str, templates: Sequence[str] = TEMPLATES
    ) -> None:
        super().__init__()
        if len(words) != len(embeddings_WE):
            raise DataError(
                f"a codebook of {len(words)} words came with {len(embeddings_WE)} embeddings; build it anew "
                "from its word list"
            )
        repeated = [word for word, times in Counter(words).items() if times > 1]
        if repeated:
            raise DataError(
                f"the codebook lists {repeated[0]!r} more than once ({len(repeated)} words repeat); list "
                "every word once"
            )
        self.words = tuple(words)
        self.tower = tower
        self.templates = tuple(templates)
        self.register_buffer("embeddings_WE", F.normalize(embeddings_WE.float(), dim=-1))

    def __len__(self) -> int:
        return len(self.words)

    def check_tower(self, tower: str) -> None:
        """Raises ModelError where the patches come from another tower than the words."""
        if tower != self.tower:
            raise ModelError(
                f"the codebook was made in the text space of {self.tower!r} and the patches come from "
                f"{tower!r}: "
                "their cosines mean nothing; build one with the patches' tower: 'patchword codebook "
                "WORDS.txt --tower TOWER --out DIR'"
            )

    def describe(self) -> dict:
        """Returns the content of `codebook.json`."""
        return {
            "format": FORMAT,
            "tower": self.tower,
            "template_hash": template_hash(self.templates),
            "templates": list(self.templates),
            "width": self.embeddings_WE.shape[1],
            "words": list(self.words),
        }

    @classmethod
    def described(cls, description: dict) -> Codebook:
        """Builds a codebook with zero embeddings, to be filled from a state dict.

        Raises ModelError where the description is incomplete, of another format, or was edited.
        """
        _check_description(description)
        zeros_WE = torch.zeros(len(description["words"]), description["width"])
        return cls(description["words"], zeros_WE, description["tower"], description["templates"])

    def save(self, folder: Path) -> None:
        """Writes `codebook.json` and `codebook.safetensors` into `folder`, which appears when both are there.

        Raises WriteError where the folder exists and is not empty, or cannot be written.
        """
        with whole_folder(Path(folder)) as aside:
            write_tensors(aside / EMBEDDINGS, {"embeddings_WE": self.embeddings_WE})
            described = self.describe()
            embeddings = file_digest(aside / EMBEDDINGS)
            digests = {"embeddings_sha256": embeddings, "digest": json_digest(described)}
            write_json(aside / DESCRIPTION, {**described, **digests}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Codebook:
        """Reads the codebook in `folder`; call `check_tower` before using it.

        Raises ModelError where the folder is incomplete or damaged.
        """
        folder = Path(folder)
        for name in (DESCRIPTION, EMBEDDINGS):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} holds no {name}, so it is no codebook; make one with 'patchword codebook "
                    "WORDS.txt'"
                )
        description, digest = _read_description(folder / DESCRIPTION)
        path = folder / EMBEDDINGS
        shape = (len(description["words"]), description["width"])
        compare_shapes(path, read_shapes(path), {"embeddings_WE": shape})
        if digest is not None and file_digest(path) != digest:
            raise ModelError(f"{path} is damaged (its SHA-256 differs from the recorded one): {_CURE}")
        embeddings_WE = read_tensors(path)["embeddings_WE"]
        if not embeddings_WE.is_floating_point() or not bool(embeddings_WE.isfinite().all()):
            raise ModelError(f"{path} holds vectors that are no finite numbers: {_CURE}")
        codebook = cls.described(description)
        codebook.load_state_dict({"embeddings_WE": embeddings_WE})
        return codebook


def _read_description(path: Path) -> tuple[dict, str | None]:
    """The description of a codebook in a file, and the SHA-256 of its embeddings where it is recorded.

    Raises ModelError.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON that can be read ({error}): {_CURE}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no table of values: {_CURE}")
    embeddings, own = found.pop("embeddings_sha256", None), found.pop("digest", None)
    try:
        _check_description(found)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if (own is not None or embeddings is not None) and own != json_digest(found):
        raise ModelError(f"{path} was altered after it was written (its digest differs): {_CURE}")
    return found, embeddings


def _check_description(description: dict) -> None:
    """Raises ModelError where a description of a codebook is not one."""
    missing = {"format", "tower", "template_hash", "templates", "width", "words"} - set(description)
    if missing or description["format"] != FORMAT:
        wrong_format = f"is of format {description.get('format')!r}, and this code reads {FORMAT}"
        found = f"lacks {', '.join(sorted(missing))}" if missing else wrong_format
        raise ModelError(f"the description of a codebook {found}: {_CURE}")
    for name in ("words", "templates"):
        texts = description[name]
        if (
            not isinstance(texts, (list, tuple))
            or not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            raise ModelError(f"the description of a codebook has no list of {name}: {_CURE}")
        if len(set(texts)) != len(texts):
            raise ModelError(f"the description of a codebook lists some of its {name} twice: {_CURE}")
    width = description["width"]
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= _WIDEST:
        raise ModelError(
            f"the description of a codebook says a width of {width!r}, expected 1 to {_WIDEST}: {_CURE}"
        )
    if not isinstance(description["tower"], str):
        raise ModelError(f"the description of a codebook names no tower: {_CURE}")
    if description["template_hash"] != template_hash(description["templates"]):
        raise ModelError(
            f"the prompt templates of the codebook do not match their hash: the file was edited; {_CURE}"
        )


def template_hash(templates: Sequence[str]) -> str:
    """Hash of the prompt templates: twelve hexadecimal digits."""
    return text_digest("\n".join(templates))[:12]


def read_words(path: Path) -> list[str]:
    """Reads a word list with one word or phrase per line, skipping empty lines and lines that begin with #.

    Raises DataError where the file is missing or no word is left.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"no word list at {path}: give a text file with one word or phrase per line"
        ) from None
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not words:
        raise DataError(f"{path} lists no words: one word or phrase per line is expected")
    return words


@torch.no_grad()
def build_codebook(
    words: Sequence[str],
    embed: Callable[[list[str]], Tensor],
    tower: str,
    templates: Sequence[str] = TEMPLATES,
) -> Codebook:
    """Builds a codebook from prompt templates.

    Each sentence is embedded and scaled to unit length, and the sentences of a word are averaged. `embed`
    turns texts into pooled embeddings (texts, E) of the tower named `tower`. Raises DataError where a
    template has no place for the word.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise DataError(f"the prompt template {template!r} needs exactly one '{{}}', where the word goes")
    rows = []
    for word in words:
        sentences_SE = F.normalize(embed([template.format(word) for template in templates]).float(), dim=-1)
        rows.append(sentences_SE.mean(dim=0))
    return Codebook(words, torch.stack(rows), tower, templates)


def assign(
    aligned_BNE: Tensor,
    codebook_WE: Tensor,
    how: Literal["argmax", "gumbel"] = "argmax",
    pooled_BE: Tensor | None = None,
    top_k: int | None = None,
    count_normalised: bool = False,
    scale: float = 100.0,
    mask_BN: Tensor | None = None,
) -> ConceptAssignment:
    """Assigns a word to each patch by the cosine of patch and word (Gao 2025).

    `argmax` takes the nearest word. `gumbel` draws it from softmax(scale * cosine) by a hard Gumbel-softmax
    at temperature 1 with a straight-through gradient; use it in training only. `top_k` restricts each image
    to the words nearest to its own embedding `pooled_BE`. `count_normalised` divides a token by one more than
    the number of patches with its word; `mask_BN` says which patches are real.
    """
    patches_BNE, words_BKE, rows_BK = (
        F.normalize(aligned_BNE, dim=-1),
        codebook_WE.to(aligned_BNE.dtype),
        None,
    )
    if top_k is not None:
        if pooled_BE is None:
            raise ModelError(f"the {top_k} words nearest to a picture need its own embedding: give pooled_BE")
        rows_BK = (F.normalize(pooled_BE, dim=-1) @ words_BKE.T).topk(top_k, dim=1).indices
        words_BKE = words_BKE[rows_BK]
    cosines_BNK = patches_BNE @ words_BKE.transpose(-2, -1)
    if how == "gumbel":
        chosen_BNK = F.gumbel_softmax(scale * cosines_BNK, tau=1.0, hard=True)
        picked_BN = chosen_BNK.argmax(dim=-1)
        tokens_BNE = chosen_BNK @ words_BKE
        concepts_BN = picked_BN if rows_BK is None else rows_BK.gather(1, picked_BN)
    else:
        picked_BN = cosines_BNK.argmax(dim=-1)
        concepts_BN = picked_BN if rows_BK is None else rows_BK.gather(1, picked_BN)
        tokens_BNE = codebook_WE.to(aligned_BNE.dtype)[concepts_BN]
    if count_normalised:
        tokens_BNE = tokens_BNE / (_patches_of_same_word(concepts_BN, len(codebook_WE), mask_BN) + 1.0)[
            ..., None
        ].to(tokens_BNE.dtype)
    return ConceptAssignment(concepts_BN, tokens_BNE)


def concept_use(concepts_BN: Tensor, words: int, mask_BN: Tensor | None = None) -> dict[str, float]:
    """Statistics of the assignment for a training log.

    `concepts_in_use` is the number of words assigned to at least one patch. `concept_entropy` is the entropy
    of their shares in nats: 0 where all patches have one word, and the log of the words in use where these
    are equally frequent.
    """
    rows = concepts_BN.flatten() if mask_BN is None else concepts_BN[mask_BN]
    shares_W = rows.bincount(minlength=words) / max(1, len(rows))
    used_W = shares_W[shares_W > 0]
    return {"concepts_in_use": float(len(used_W)), "concept_entropy": -float((used_W * used_W.log()).sum())}


def _patches_of_same_word(concepts_BN: Tensor, words: int, mask_BN: Tensor | None) -> Tensor:
    real_BN = torch.ones_like(concepts_BN) if mask_BN is None else mask_BN.to(concepts_BN.dtype)
    counts_BW = concepts_BN.new_zeros(len(concepts_BN), words).scatter_add_(1, concepts_BN, real_BN)
    return counts_BW.gather(1, concepts_BN)
