"""Compares our tokenizer with the Java one on random captions of real words and punctuation.

    python benchmarks/fuzz_tokenizer.py CAPTIONS [--count 20000] [--seed 1]

It needs Java and pycocoevalcap. CAPTIONS is any file of references that `patchword score` reads; its words
are used. It prints the rate of differences and each difference.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from patchword.metrics.files import read_references
from patchword.text.ptb import DROPPED, tokenize

JOINTS = (
    ". |, |! |? |; |: | - |-| -- |... | \"|\" | '|' |/| & | (|) |'s |.|'|\u2019s | \u2013 |\u2026 ".split("|")
)
ENDS = [".", ".", ".", "!", "?", " .", '"', "...", "?!", ")", ""]


def java_tokens(captions: list[str]) -> list[list[str]]:
    """Returns the tokens of each caption from the jar.

    Each caption is followed by a neutral line, so that look-ahead cannot reach the next one.
    """
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("pycocoevalcap is not installed: pip install 'patchword[bench]'")
    jar = Path(next(iter(package.submodule_search_locations))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("".join(f"{caption}\nx\n" for caption in captions), encoding="utf-8")
        command = [
            "java",
            "-cp",
            str(jar),
            "edu.stanford.nlp.process.PTBTokenizer",
            "-preserveLines",
            "-lowerCase",
            str(file),
        ]
        lines = subprocess.run(command, check=True, capture_output=True).stdout.decode("utf-8").split("\n")
    return [
        [token for token in line.split(" ") if token and token not in DROPPED]
        for line in lines[: 2 * len(captions) : 2]
    ]


def caption_of(words: list[str], chance: random.Random) -> str:
    """Draws a caption from the words, with random joints and a random end."""
    text = chance.choice(words)
    for _ in range(chance.randint(1, 11)):
        text += (" " if chance.random() < 0.65 else chance.choice(JOINTS)) + chance.choice(words)
    return text + chance.choice(ENDS)


def main() -> None:
    """Prints the rate of differences and each difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captions", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    words = [
        word
        for group in read_references(options.captions).values()
        for caption in group
        for word in caption.split()
    ]
    captions = [caption_of(words, chance) for _ in range(options.count)]
    ours = tokenize([line for caption in captions for line in (caption, "x")])[::2]
    different = [(c, a, b) for c, a, b in zip(captions, ours, java_tokens(captions), strict=True) if a != b]
    print(f"{len(different)} of {len(captions)} captions differ ({len(different) / len(captions):.1e})")
    for caption, own, theirs in different:
        print(f"{caption!r}\n  ours {own}\n  java {theirs}")


if __name__ == "__main__":
    main()
