"""`patchword vokens`: each token of a text with a picture of one's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.outputs import PAGES, Overwrite, complain, print_json, refuse_existing, refuse_suffix
from patchword.errors import DataError
from patchword.files import write_text


def vokens(
    text: Annotated[str, typer.Argument(help="A text, or a text file with one per line.")],
    bank: Annotated[
        Path,
        typer.Option("--bank", help="Index of pictures, made by `patchword index` with the same towers."),
    ],
    model: Annotated[str, typer.Option("--model", help="A vokenizer: a folder or a hub id.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a page (.html): the text with a picture under each word.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the vokens (.jsonl), for a training that learns from them.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per text.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Print each token of a text, the picture of the bank that fits it best where it stands, how well, and
    how much more than the mean of the bank."""
    refuse_suffix("--html", html, PAGES)
    refuse_suffix("--out", out, (".jsonl",))
    refuse_existing(overwrite, {"--html": html, "--out": out})
    texts = _texts(text)
    from patchword.tasks.vokens.model import load_vokenizer
    from patchword.tasks.vokens.page import vokens_page

    vokenizer = load_vokenizer(model, device)
    pictures = vokenizer.bank(bank)
    for remark in dict.fromkeys(remark for one in texts for remark in vokenizer.towers.remarks(one)):
        complain(remark)
    found = vokenizer.vokens(texts, pictures)
    rows = [
        {"text": one, "vokens": [voken._asdict() for voken in vokens]}
        for one, vokens in zip(texts, found, strict=True)
    ]
    if out is not None:
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if html is not None:
        write_text(html, vokens_page(texts, found, len(pictures.paths)))
    for row, vokens_ in zip(rows, found, strict=True):
        if as_json:
            print_json(row)
            continue
        for voken in vokens_:
            print(f"{voken.token}\t{voken.relevance:.3f}\t{voken.preference:.1f}\t{voken.picture}")


_TEXTS_IN = (".txt", ".text", ".md", ".csv", ".jsonl", ".json")
"""One word that ends so is the name of a file, which should be there."""


def _texts(text: str) -> list[str]:
    """The lines of a file, or the text itself. Raises DataError where there is no word to find a picture
    for."""
    from patchword.data.corpus import text_lines

    looks_like_one = text.endswith(_TEXTS_IN) and len(text.split()) == 1
    if os.path.isdir(text) or (looks_like_one and not os.path.isfile(text)):
        raise DataError(f"there is no text file {text}: give one, or a text in words")
    lines = [text]
    if os.path.isfile(text):  # False for a text that is no possible name, where Path.is_file raises
        lines = [line.strip() for line in text_lines([Path(text)])]
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{text!r} has no text: expected words, or a file with a text per line")
    return lines
