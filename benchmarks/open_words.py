"""Measures a search for words that no training caption holds: does a query with such a word find its picture,
and what does the word itself bring?

    python benchmarks/open_words.py two-towers --data dataset_flickr8k.json --images DIR --split val

Of the captions of the split, those are taken that hold a word which occurs in no caption of the training
split. Each is searched for among all pictures of the split three times: as it stands, without its new words,
and with each new word replaced by another caption's new word. Beside them stand the other captions, and as
many of these with one of their words removed, the rarest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from patchword.data.formats.readers import read_captions, split_records
from patchword.metrics.bootstrap import grouped_interval
from patchword.tasks.retrieve.load import load_two_towers
from patchword.text import ptb


class Query(NamedTuple):
    """A caption in words, the picture it belongs to, and the places of its words that are looked at."""

    words: list[str]
    picture: int
    places: list[int]


def queries_of(captions: list[tuple[str, int]], counts: dict[str, int]) -> tuple[list[Query], list[Query]]:
    """Queries with a word that never occurred, and the others with the place of their rarest word."""
    new, known = [], []
    for words, (_, picture) in zip(ptb.tokenize([text for text, _ in captions]), captions, strict=True):
        unseen = [place for place, word in enumerate(words) if word not in counts and word.isalpha()]
        if unseen:
            new.append(Query(words, picture, unseen))
        elif words:
            rarest = min(range(len(words)), key=lambda place: counts.get(words[place], 0))
            known.append(Query(words, picture, [rarest]))
    return new, known


def ranks(towers: object, queries: list[str], pictures_NE: np.ndarray, own_Q: np.ndarray) -> np.ndarray:
    """The place of each query's own picture among all, the first is 1."""
    vectors_QE = np.concatenate(
        [towers.embed_texts(queries[at : at + 64]) for at in range(0, len(queries), 64)]  # type: ignore[attr-defined]
    )
    scores_QN = vectors_QE @ pictures_NE.T
    return 1 + (scores_QN > scores_QN[np.arange(len(queries)), own_Q][:, None]).sum(axis=1)


def without(query: Query) -> str:
    """The query without the words that are looked at."""
    return " ".join(word for place, word in enumerate(query.words) if place not in query.places) or "a"


def measure(
    model: Annotated[str, typer.Argument(help="Two towers.")],
    data: Annotated[Path, typer.Option(help="Annotations.")],
    images: Annotated[Path, typer.Option(help="Folder of the pictures.")],
    split: Annotated[
        str, typer.Option(help="Split to measure on; its words are compared with train's.")
    ] = "val",
) -> None:
    """Print recall of the own picture at 1, 5 and 10 and its median place for each kind of query."""
    towers = load_two_towers(model)
    everything = read_captions(data)
    counts: dict[str, int] = {}
    for words in ptb.tokenize(
        [text for record in split_records(everything, "train") for text in record.captions]
    ):
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    records = split_records(everything, split)
    new, known = queries_of([(text, n) for n, one in enumerate(records) for text in one.captions], counts)
    pictures_NE = np.concatenate(
        [
            towers.embed_images([images / one.file for one in records[at : at + 32]])
            for at in range(0, len(records), 32)
        ]
    )
    generator = np.random.default_rng(0)
    chosen = [known[n] for n in generator.permutation(len(known))[: len(new)]]
    others = [new[n] for n in np.roll(np.arange(len(new)), 1)]
    swapped = [
        " ".join(
            other.words[other.places[0]] if place in query.places else word
            for place, word in enumerate(query.words)
        )
        for query, other in zip(new, others, strict=True)
    ]
    rows = {
        "with a new word": ([" ".join(query.words) for query in new], new),
        "the same without it": ([without(query) for query in new], new),
        "the same with another caption's new word": (swapped, new),
        "as many other captions": ([" ".join(query.words) for query in chosen], chosen),
        "the same without their rarest word": ([without(query) for query in chosen], chosen),
    }
    found = {
        name: ranks(towers, texts, pictures_NE, np.array([query.picture for query in queries]))
        for name, (texts, queries) in rows.items()
    }
    words = {query.words[place] for query in new for place in query.places}
    print(
        f"{len(new)} of {len(new) + len(known)} captions hold one of {len(words)} new words; "
        f"{len(records)} pictures\n"
    )
    print("| query | R@1 | R@5 | R@10 | median place |\n| --- | --: | --: | --: | --: |")
    for name, places in found.items():
        recalls = " | ".join(f"{100 * (places <= k).mean():.1f}" for k in (1, 5, 10))
        print(f"| {name} | {recalls} | {np.median(places):.0f} |")
    for one, other in (list(found)[:2], list(found)[:3:2], list(found)[3:]):
        gains = (found[one] <= 10).astype(float) - (found[other] <= 10)
        groups: dict[int, list[float]] = {}
        for gain, query in zip(gains.tolist(), rows[one][1], strict=True):
            groups.setdefault(query.picture, []).append(100 * gain)
        low, high = grouped_interval(list(groups.values()))
        print(f"\nR@10, {one} minus {other}: {100 * gains.mean():+.1f} ({low:+.1f} to {high:+.1f})")


if __name__ == "__main__":
    typer.run(measure)
