"""Runs all equality kits of the caption metrics in a folder; exit status 1 at any difference.

    python benchmarks/check_metrics.py FOLDER [--meteor]

It prints one line per kit. FOLDER holds golden_inputs*.json with golden_scores*.json, golden50*.json,
golden_scst.json, ptb_cases.json and ptb_unicode.json. BLEU, ROUGE-L, CIDEr and the reward must agree to
1e-12, METEOR to 1e-9, and tokens exactly.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from patchword.metrics import report
from patchword.metrics.cider import CiderReward
from patchword.metrics.frequencies import DocumentFrequencies
from patchword.text.ptb import tokenize


def check_set(
    name: str, references: dict, predictions: dict, corpus: dict, per_image: dict, meteor: bool
) -> bool:
    """Compares the scores of one kit, for the corpus and for each image; True where they agree."""
    scores = report(
        references, predictions, metrics=("bleu", "rouge", "cider", *(("meteor",) if meteor else ()))
    ).scores
    good = True
    for metric, score in scores.items():
        whole = abs(score.value - corpus[metric])
        each = (
            np.abs(np.array([*score.per_item.values()]) - per_image[metric]).max()
            if metric in per_image
            else 0.0
        )
        fine = max(whole, each) <= (1e-9 if metric == "METEOR" else 1e-12)
        good &= fine
        print(
            f"{name:12} {metric:8} corpus {whole:.1e}  per image {each:.1e}  "
            f"{'equal' if fine else 'DIFFERENT'}"
        )
    return good


def check_tokens(cases: dict) -> bool:
    """Compares the tokens of single captions; True where all agree."""
    wrong = count = 0
    for group in ("laps", "other"):
        for caption, expected in cases.get(group, {}).items():
            count += 1
            wrong += " ".join(tokenize([caption, "x"])[0]) != expected
    for case in cases.get("next_line_dependent", []):
        count += 1
        wrong += " ".join(tokenize([case["caption"], case["next_line"]])[0]) != case["tokens"]
    print(f"tokens       {count} captions, {wrong} different")
    return not wrong


def check_unicode(table: dict) -> bool:
    """Compares how every code point is tokenized, alone and inside a word; True where all agree."""
    wrong = 0
    for char, (kind, beside) in table.items():
        alone = tokenize([char])[0]
        expected = {"self": [char], "lower": [char.lower()], "dropped": []}.get(kind, alone)
        wrong += alone != expected or (len(tokenize([f"a{char}b"])[0]) > 1) != (beside == "split")
    print(f"unicode      {len(table)} code points, {wrong} different")
    return not wrong


def check_reward(step: dict, captions: list[list[str]]) -> bool:
    """Compares the CIDEr reward of a self-critical step; True where it agrees."""
    numbers: dict[str, str] = {}
    documents = []
    for group in captions:
        words = [" ".join(tokens).split() for tokens in tokenize(group[:5])]
        documents.append(
            [[numbers.setdefault(word, str(len(numbers) + 1)) for word in caption] for caption in words]
        )
    references = [[caption.split()[:-1] for caption in group] for group in step["refs"]]
    candidates = [caption.split()[:-1] for caption in step["res"]]
    reward = CiderReward(references, frequencies=DocumentFrequencies.of(documents))
    images = np.repeat(np.arange(len(references)), len(candidates) // len(references))
    worst = np.abs(reward.reward(candidates, images) - step["scores"]).max()
    print(f"reward       {len(candidates)} samples, largest difference {worst:.1e}")
    return bool(worst <= 1e-12)


def main() -> None:
    """Runs all kits and exits with 1 where one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--meteor", action="store_true")
    options = parser.parse_args()

    def read(name: str) -> dict:
        return json.loads((options.folder / name).read_text(encoding="utf-8"))

    inputs, scores = read("golden_inputs.json"), read("golden_scores.json")
    good = []
    for name, first, last in (("human", 1, 5), ("perturbed", 0, 5)):
        references = dict(zip(inputs["ids"], (group[first:last] for group in inputs["caps"]), strict=True))
        captions = [group[0] for group in inputs["caps"]] if name == "human" else inputs["perturbed"]
        predictions = dict(zip(inputs["ids"], captions, strict=True))
        good.append(
            check_set(
                name,
                references,
                predictions,
                scores["corpus"][name],
                scores["per_image"][name],
                options.meteor,
            )
        )
    raw, scores = read("golden_inputs_raw2017.json"), read("golden_scores_raw2017.json")
    references = {image: group[1:] for image, group in zip(raw["ids"], raw["caps"], strict=True)}
    predictions = {image: group[0] for image, group in zip(raw["ids"], raw["caps"], strict=True)}
    good.append(
        check_set("raw2017", references, predictions, scores["corpus"], scores["per_image"], options.meteor)
    )
    items, scores = read("golden50.json")["items"], read("golden50_scores.json")
    references, predictions = (
        {item["id"]: item["refs"] for item in items},
        {item["id"]: item["cand"] for item in items},
    )
    good.append(
        check_set("awkward", references, predictions, scores["corpus"], scores["per_image"], options.meteor)
    )
    good += [check_tokens(read("ptb_cases.json")), check_unicode(read("ptb_unicode.json"))]
    good.append(check_reward(read("golden_scst.json"), inputs["caps"]))
    print("all equal" if all(good) else "NOT all equal")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
