"""Word vectors in the formats that other programs read: word2vec text, GloVe text, npz and safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from patchword.errors import ConfigError
from patchword.files import whole_file
from patchword.tasks.words.model import Space, WordVectors
from patchword.tensors import write_tensors

FORMATS = {"word2vec": ".txt", "glove": ".txt", "npz": ".npz", "safetensors": ".safetensors"}
"""Formats, and what their files end in."""


def export(model: WordVectors, space: Space, to: str, out: Path) -> int:
    """Write the words that have a vector of this kind; returns how many.

    word2vec and glove are text, one word a line, the first with a header of two numbers: gensim reads both
    (`KeyedVectors.load_word2vec_format(path, no_header=True)` for glove). npz holds `words` and `vectors`;
    safetensors holds `vectors`, and `words` as UTF-8 bytes with a line break after each.

    Raises ConfigError for another format, or vectors that the model has not.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to {to!r}: expected one of {', '.join(FORMATS)}")
    others = {suffix: name for name, suffix in FORMATS.items() if suffix != FORMATS[to]}
    if out.suffix.lower() in others:
        raise ConfigError(
            f"--out {out} ends as files of --to {others[out.suffix.lower()]} do, and --to {to} is written: "
            f"let it end in {FORMATS[to]}, or change --to"
        )
    vectors_WD = model.vectors(space)
    kept = np.flatnonzero(vectors_WD.any(1))
    words, vectors_WD = [model.words[number] for number in kept], vectors_WD[kept]
    with whole_file(out) as aside:
        if to in ("word2vec", "glove"):
            _write_text(aside, words, vectors_WD, header=to == "word2vec")
        elif to == "npz":
            with open(aside, "wb") as file:
                np.savez(file, words=np.array(words), vectors=vectors_WD)
        else:
            letters = torch.frombuffer(
                bytearray("".join(f"{word}\n" for word in words).encode()), dtype=torch.uint8
            )
            write_tensors(aside, {"vectors": torch.from_numpy(vectors_WD), "words": letters})
    return len(words)


def _write_text(path: Path, words: list[str], vectors_WD: np.ndarray, header: bool) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        if header:
            file.write(f"{len(words)} {vectors_WD.shape[1]}\n")
        for word, vector_D in zip(words, vectors_WD, strict=True):
            # Nine significant digits give a float32 back as it was.
            file.write(f"{word} {' '.join(f'{number:.9g}' for number in vector_D)}\n")
