"""`patchword codebook`: words for the patches of a tower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchword.cli.index import DEFAULT_MODEL
from patchword.cli.outputs import complain, refuse_taken
from patchword.errors import counted

SENTENCES = "all-minilm-l6-v2"


def codebook(
    out: Annotated[Path, typer.Option("--out", help="Folder of the codebook.")],
    words: Annotated[
        Path | None,
        typer.Argument(help="Words or phrases, one per line; 80 everyday objects where left out."),
    ] = None,
    tower: Annotated[
        str,
        typer.Option(
            "--tower",
            help="Two towers: shipped name, folder, hub id, or hub:ID of a CLIP; all-minilm-l6-v2: the "
            "packaged sentence "
            "encoder, for towers with aligned = class_names.",
        ),
    ] = DEFAULT_MODEL,
    from_captions: Annotated[
        Path | None,
        typer.Option(
            "--from-captions", help="Annotations: nouns and adjectives of the training captions are added."
        ),
    ] = None,
    class_names: Annotated[
        bool, typer.Option("--class-names", help="Add the common words of ImageNet's 1,000 classes.")
    ] = False,
    minimum_count: Annotated[
        int, typer.Option(min=1, max=10**9, help="How often a word of the captions must occur.")
    ] = 5,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
) -> None:
    """Embed a word list with a text tower, for region alignment; words that the tower does not know are
    listed and left out.
    """
    from patchword.tasks.retrieve.codebook import gather_words, make_codebook, make_sentence_codebook
    from patchword.tasks.retrieve.load import load_two_towers

    refuse_taken({"--out": out})
    wanted = gather_words(words, from_captions, minimum_count, class_names)
    if tower == SENTENCES:
        book = make_sentence_codebook(wanted)
    else:
        book, unknown = make_codebook(load_two_towers(tower, device), wanted)
        if unknown:
            complain(f"the tower does not know {counted(len(unknown), 'word')}: {', '.join(unknown)}")
    book.save(out)
    print(
        f"{out}: {counted(len(book), 'word')}, {book.embeddings_WE.shape[1]} wide, for the tower {book.tower}"
    )
