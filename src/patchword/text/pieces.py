"""The tokenizer of a published text tower, with the interface of `Vocabulary`.

It is the WordPiece of BERT or the byte pairs of RoBERTa. Ids are the tokenizer's own, because they are the
rows of the tower's embedding. Its whole state is kept in `vocab.json`, so a model folder needs neither other
files nor the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.errors import ModelError
from patchword.hub import find_published
from patchword.ids import SpecialIds
from patchword.text.words import real_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Pieces:
    """The pieces of a published tokenizer with their own ids.

    Start and end are its class and separator tokens.
    """

    splitter = "pieces"

    def __init__(self, tokenizer: Tokenizer, special: SpecialIds) -> None:
        self._tokenizer, self.special = tokenizer, special
        # Truncation from the tokenizer's file would cut texts in silence; the batch handles lengths and
        # padding.
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Pieces:
        """Loads the tokenizer of published weights from a folder or by a hub id.

        Raises `ModelError` where there is none, or where it lacks a special token.
        """
        from transformers import AutoTokenizer

        at = find_published(str(source), revision)
        try:
            found = AutoTokenizer.from_pretrained(source, revision=at.commit, local_files_only=at.local)
            backend = found.backend_tokenizer
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as reason:
            said = " ".join(str(reason).split())[:200]
            raise ModelError(
                f"{source}: holds no tokenizer that can be read ({said}). Expected tokenizer.json beside "
                "the weights."
            ) from reason
        ids = (found.pad_token_id, found.cls_token_id, found.sep_token_id, found.unk_token_id)
        if None in ids:
            named = ", ".join(
                name
                for name, number in zip(("padding", "class", "separator", "unknown"), ids, strict=True)
                if number is None
            )
            raise ModelError(f"{source}: its tokenizer has no {named} token: use a tower of the BERT family")
        return cls(backend, SpecialIds(pad=ids[0], start=ids[1], end=ids[2], unknown=ids[3]))

    @classmethod
    def from_file(cls, path: Path) -> Pieces:
        """Reads a BERT tokenizer from its tokenizer.json alone.

        Raises `ModelError` where it cannot be read or lacks a special token.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as reason:  # the library raises a bare Exception for every fault
            raise ModelError(
                f"{path}: holds no tokenizer that can be read ({reason}). Expected a tokenizer.json."
            ) from reason
        named = {"padding": "[PAD]", "class": "[CLS]", "separator": "[SEP]", "unknown": "[UNK]"}
        found = {name: tokenizer.token_to_id(piece) for name, piece in named.items()}
        ids = {name: number for name, number in found.items() if number is not None}
        missing = [name for name in found if name not in ids]
        if missing:
            raise ModelError(
                f"{path}: its tokenizer has no {', '.join(missing)} token: use one of the BERT family"
            )
        return cls(
            tokenizer,
            SpecialIds(pad=ids["padding"], start=ids["class"], end=ids["separator"], unknown=ids["unknown"]),
        )

    @property
    def size(self) -> int:
        """V: the number of pieces, including special ones."""
        return self._tokenizer.get_vocab_size()

    def encode(self, caption: str) -> list[int]:
        """Returns the ids of the pieces, without start and end."""
        return self._tokenizer.encode(caption, add_special_tokens=False).ids

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """Where each piece of `encode` stands in the text: characters from and to."""
        return [
            (begin, end) for begin, end in self._tokenizer.encode(caption, add_special_tokens=False).offsets
        ]

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a text for which there is no piece, each once."""
        found = self._tokenizer.encode(caption, add_special_tokens=False)
        unknown = self.special.unknown
        places = [place for number, place in zip(found.ids, found.offsets, strict=True) if number == unknown]
        return list(dict.fromkeys(caption[start:end] for start, end in places))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Returns one piece per id up to the first end, as the tokenizer spells it.

        Raises `DataError` for an id outside the vocabulary.
        """
        return [str(self._tokenizer.id_to_token(number)) for number in real_ids(ids, self.special, self.size)]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids. Raises `DataError` for an id outside the vocabulary."""
        return self._tokenizer.decode(
            real_ids(ids, self.special, self.size), skip_special_tokens=True
        ).strip()

    def to_json(self) -> dict:
        """Returns the content of `vocab.json` in a model folder: the whole tokenizer."""
        return {
            "splitter": self.splitter,
            "special": self.special._asdict(),
            "tokenizer": json.loads(self._tokenizer.to_str()),
        }

    @classmethod
    def from_json(cls, content: dict) -> Pieces:
        """The inverse of `to_json`. Raises `ModelError` where the tokenizer is missing or broken."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(json.dumps(content["tokenizer"])), SpecialIds(**content["special"]))
        except Exception as reason:  # the library raises a bare Exception for every fault
            raise ModelError(f"the tokenizer of the vocabulary cannot be read: {reason}") from reason
