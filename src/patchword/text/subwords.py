"""CLIP's byte-pair subwords, with the interface of `Vocabulary`.

transformers reads the tokenizer's own files. The whole state is kept in `vocab.json`, so a model folder needs
neither other files nor the hub. Ids are renumbered to the layout of `words.py`: padding 0, the pieces in the
tokenizer's order (id + 1 for CLIP, whose two special pieces come last), then unknown, start and end. CLIP
itself pads with its end piece, which a loss could not distinguish from a real end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.errors import DataError, ModelError
from patchword.hub import find_published
from patchword.ids import SpecialIds
from patchword.text.pieces import Pieces
from patchword.text.words import UNKNOWN, Vocabulary, real_ids, refuse_no_text, refuse_no_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Subwords:
    """The pieces of a byte-pair tokenizer with their ids.

    `from_folder` reads CLIP's files, `from_json` the result of `to_json`.
    """

    splitter = "subwords"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Truncation from the tokenizer's file would cut captions in silence; the batch handles lengths and
        # padding.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        apart = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        by_id = sorted(
            (number, piece) for piece, number in tokenizer.get_vocab().items() if piece not in apart
        )
        self.words = tuple(piece for _, piece in by_id)
        self._theirs = [number for number, _ in by_id]
        self._ours = {number: place for place, number in enumerate(self._theirs, start=1)}

    @classmethod
    def from_folder(cls, source: str | Path) -> Subwords:
        """Reads CLIP's tokenizer from a folder or by its hub id.

        A folder holds tokenizer.json, or vocab.json with merges.txt. Raises `ModelError` where there is none.
        """
        from transformers import CLIPTokenizer

        expected = "Expected tokenizer.json, or vocab.json and merges.txt"
        at = find_published(str(source))
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source, revision=at.commit, local_files_only=at.local)
            found = cls(tokenizer.backend_tokenizer)
        except (OSError, ValueError, TypeError) as reason:
            said = " ".join(str(reason).split())[:200]
            raise ModelError(
                f"{source}: holds no tokenizer that can be read ({said}). {expected}."
            ) from reason
        # For a folder without files, transformers builds an empty tokenizer in silence.
        if not found.words:
            raise ModelError(f"{source}: holds no tokenizer that can be read (it has no pieces). {expected}.")
        return found

    @property
    def size(self) -> int:
        """V: the number of pieces and the four special ids."""
        return len(self.words) + 4

    @property
    def special(self) -> SpecialIds:
        """Ids of padding, start, end and unknown."""
        return SpecialIds(pad=0, start=self.size - 2, end=self.size - 1, unknown=self.size - 3)

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of the pieces, without start and end."""
        unknown = self.special.unknown
        return [
            self._ours.get(number, unknown)
            for number in self._tokenizer.encode(caption, add_special_tokens=False).ids
        ]

    def unknown_words(self, caption: str) -> list[str]:
        """The parts of a text for which there is no piece, each once; byte-level ones know every text."""
        found = self._tokenizer.encode(caption, add_special_tokens=False)
        pieces = zip(found.ids, found.offsets, strict=True)
        places = [place for number, place in pieces if number not in self._ours]
        return list(dict.fromkeys(caption[start:end] for start, end in places))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns one piece per id up to the first end, as the tokenizer spells it (</w> closes a word).

        Raises `DataError` for an id outside the vocabulary.
        """
        return [
            UNKNOWN if number == self.special.unknown else self.words[number - 1]
            for number in real_ids(ids, self.special, self.size)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the caption of the ids, without unknown pieces.

        Raises `DataError` for an id outside the vocabulary.
        """
        unknown = self.special.unknown
        theirs = [
            self._theirs[number - 1] for number in real_ids(ids, self.special, self.size) if number != unknown
        ]
        return self._tokenizer.decode(theirs, skip_special_tokens=True).strip()

    def to_json(self) -> dict:
        """Returns the content of `vocab.json` in a model folder: the whole tokenizer."""
        return {"splitter": self.splitter, "tokenizer": json.loads(self._tokenizer.to_str())}

    @classmethod
    def from_json(cls, content: dict) -> Subwords:
        """The inverse of `to_json`. Raises `ModelError` where the tokenizer is missing or broken."""
        from tokenizers import Tokenizer

        if not isinstance(content.get("tokenizer"), dict):
            raise ModelError(
                f"a subword vocabulary needs its tokenizer, found {', '.join(content) or 'nothing'}"
            )
        try:
            tokenizer = Tokenizer.from_str(json.dumps(content["tokenizer"]))
        except Exception as reason:  # the library raises a bare Exception for every fault
            raise ModelError(f"the tokenizer of the subword vocabulary cannot be read: {reason}") from reason
        return cls(tokenizer)


def vocabulary_from_json(content: dict) -> Vocabulary | Subwords | Pieces:
    """Builds the vocabulary of a model folder: words, subwords, or the pieces of a published tokenizer.

    Its `splitter` says which. Raises `ModelError` where the content is incomplete.
    """
    if content.get("splitter") == Pieces.splitter:
        return Pieces.from_json(content)
    return (
        Subwords.from_json(content)
        if content.get("splitter") == Subwords.splitter
        else Vocabulary.from_json(content)
    )


def knows(vocabulary: Vocabulary | Subwords | Pieces, text: str, longest: int) -> bool:
    """Whether a text has a known word within the length of a text tower; `longest` counts start and end."""
    ids = vocabulary.encode(text)[: longest - 2]
    return any(number != vocabulary.special.unknown for number in ids)


def rows_of(
    vocabulary: Vocabulary | Subwords | Pieces, texts: Sequence[str], longest: int
) -> list[list[int]]:
    """Token ids of each text with start and end, cut to at most `longest`.

    Raises DataError for a text without a word that the model knows.
    """
    special, rows = vocabulary.special, []
    refuse_no_texts(texts)
    for text in texts:
        refuse_no_text(text)
        if not knows(vocabulary, text, longest):
            raise DataError(
                f"{text!r} has no word that the model knows: try plain words such as 'two dogs in snow'"
            )
        rows.append([special.start, *vocabulary.encode(text)[: longest - 2], special.end])
    return rows


def remarks_on(vocabulary: Vocabulary | Subwords | Pieces, text: str, longest: int) -> list[str]:
    """What a person should know who asks with this text: words that the model does not know, and what is cut.

    Empty where the model reads the whole text.
    """
    found = []
    unknown = vocabulary.unknown_words(text)
    if unknown:
        found.append(f"the model does not know: {', '.join(unknown)}")
    return found + remarks_on_length(vocabulary, text, longest - 2)


def remarks_on_length(vocabulary: Vocabulary | Subwords | Pieces, text: str, limit: int) -> list[str]:
    """What is cut off a text of which a model reads `limit` words or pieces; empty where it reads all."""
    length = len(vocabulary.encode(text))
    if length <= limit:
        return []
    units = "words" if isinstance(vocabulary, Vocabulary) else "pieces of words"
    cut = f"the last {length - limit} are left out"
    return [f"the text has {length} {units} and the model reads {limit}: {cut}"]
