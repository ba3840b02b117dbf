"""Compares our caption metrics with pycocoevalcap: time, CPU time, peak memory, and equality of the numbers.

    pip install 'patchword[bench]'        # and a Java on the path
    python benchmarks/metrics.py INPUTS.json [--repeats 3] [--meteor]

INPUTS is a JSON object with `ids` and `caps` (five or more captions per image); the first caption of each
image is scored against the others. The parts are tokenisation (predictions and references), BLEU + ROUGE-L +
CIDEr on tokens, both together, METEOR if requested, and the CIDEr reward of 50 images x 5 samples. Ours is
timed cold (empty memo) and warm. Times are medians of wall and CPU seconds, including those of Java.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from patchword.metrics import score_tokens
from patchword.metrics.cider import CiderReward
from patchword.metrics.frequencies import DocumentFrequencies
from patchword.text import ptb

METRICS = ("bleu", "rouge", "cider")


class Cost(NamedTuple):
    """Wall and CPU seconds of a call."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def cost(
    call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None
) -> tuple[Cost, object]:
    """Returns the median cost of a call and its result; `before` runs before each repeat, untimed."""
    runs, result = [], None
    for _ in range(repeats):
        before()
        wall, cpu = time.perf_counter(), cpu_seconds()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = call()
        runs.append((time.perf_counter() - wall, cpu_seconds() - cpu))
    return Cost(*(statistics.median(column) for column in zip(*runs, strict=True))), result


def our_tokens(references: dict, predictions: dict) -> tuple[dict, dict]:
    """Tokenizes references and predictions with our tokenizer."""
    flat = iter(ptb.tokenize([caption for captions in references.values() for caption in captions]))
    tokens = {image: [next(flat) for _ in captions] for image, captions in references.items()}
    return tokens, dict(zip(predictions, ptb.tokenize(list(predictions.values())), strict=True))


def their_tokens(references: dict, predictions: dict) -> tuple[dict, dict]:
    """Tokenizes references and predictions with pycocoevalcap."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    return (
        tokenizer.tokenize(
            {image: [{"caption": caption} for caption in captions] for image, captions in references.items()}
        ),
        tokenizer.tokenize({image: [{"caption": caption}] for image, caption in predictions.items()}),
    )


def their_scores(references: dict, predictions: dict) -> dict[str, float]:
    """Scores tokens with pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    values = dict(
        zip(
            ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
            Bleu(4).compute_score(references, predictions)[0],
            strict=True,
        )
    )
    rouge, cider = (
        Rouge().compute_score(references, predictions)[0],
        Cider().compute_score(references, predictions)[0],
    )
    return values | {"ROUGE_L": rouge, "CIDEr": cider}


def their_meteor(references: dict, predictions: dict) -> dict[str, float]:
    """Scores tokens with pycocoevalcap's METEOR and ends its Java process."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    value = meteor.compute_score(references, predictions)[0]
    meteor.meteor_p.stdin.close()
    meteor.meteor_p.wait()
    return {"METEOR": value}


def reward_costs(references: dict, repeats: int) -> tuple[Cost, Cost]:
    """Returns the cost of the reward of 250 samples, theirs and ours.

    Theirs is pycocoevalcap's CiderD formula, which processes the references again each time.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    groups = list(references.values())
    reward = CiderReward(
        groups, end_token=False, frequencies=DocumentFrequencies.of(groups, "image", end_token=False)
    )
    images = [image for image in range(50) for _ in range(5)]
    samples = [groups[image][place % len(groups[image])] for place, image in enumerate(images)]

    def theirs() -> object:
        scorer = CiderScorer()
        for words, image in zip(samples, images, strict=True):
            scorer += (" ".join(words), [" ".join(reference) for reference in groups[image]])
        return scorer.compute_score()

    return cost(theirs, repeats)[0], cost(lambda: reward.reward(samples, images), 3 * repeats)[0]


def peak_memory(part: str, inputs: Path) -> float:
    """Peak resident MB of a new process that scores everything but METEOR, including its children."""
    command = [sys.executable, __file__, str(inputs), "--only", part]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.split()[-1]
    )


def run_once(part: str, references: dict, predictions: dict) -> None:
    """Scores once and prints the peak memory of this process in MB."""
    with contextlib.redirect_stdout(io.StringIO()):
        if part == "ours":
            score_tokens(*our_tokens(references, predictions), METRICS)
        else:
            their_scores(*their_tokens(references, predictions))
    # VmHWM restarts with the program; ru_maxrss would include the process that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own = int(status.split("VmHWM:")[1].split()[0])
    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024)


def main() -> None:
    """Prints the table, the peak memory and the largest difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--meteor", action="store_true")
    parser.add_argument(
        "--only", choices=("ours", "theirs"), help="score once and print the peak memory in MB"
    )
    options = parser.parse_args()
    data = json.loads(options.inputs.read_text(encoding="utf-8"))
    references = {image: captions[1:] for image, captions in zip(data["ids"], data["caps"], strict=True)}
    predictions = {image: captions[0] for image, captions in zip(data["ids"], data["caps"], strict=True)}
    if options.only:
        run_once(options.only, references, predictions)
        return
    repeats, forget = options.repeats, ptb.forget
    cold, tokens = cost(lambda: our_tokens(references, predictions), repeats, forget)
    warm, _ = cost(lambda: our_tokens(references, predictions), repeats)
    java, theirs = cost(lambda: their_tokens(references, predictions), repeats)
    ours_counted, report = cost(lambda: score_tokens(*tokens, METRICS), repeats)
    counted, expected = cost(lambda: their_scores(*theirs), repeats)
    rows = [
        ("tokenisation, cold", java, cold),
        ("tokenisation, warm", java, warm),
        ("BLEU, ROUGE-L, CIDEr", counted, ours_counted),
    ]
    for name, ours in (("without METEOR, cold", cold), ("without METEOR, warm", warm)):
        rows.append(
            (
                name,
                *(Cost(a.wall + b.wall, a.cpu + b.cpu) for a, b in ((java, counted), (ours, ours_counted))),
            )
        )
    values = {name: score.value for name, score in report.scores.items()}
    if options.meteor:
        jar, found = cost(lambda: their_meteor(*theirs), repeats)
        own, meteor = cost(lambda: score_tokens(*tokens, ("meteor",)), repeats)
        rows.append(("METEOR", jar, own))
        expected |= found
        values |= {name: score.value for name, score in meteor.scores.items()}
    rows.append(("reward, 250 samples", *reward_costs(tokens[0], repeats)))
    print(
        f"{len(predictions)} images, {sum(map(len, references.values()))} references, median of {repeats}; "
        "seconds\n"
    )
    print(
        "| part | pycocoevalcap wall | CPU | ours wall | CPU | ratio wall | CPU |\n| --- | --- | --- | --- "
        "| --- | --- | --- |"
    )
    for name, peer, own in rows:
        ratios = f"{peer.wall / own.wall:.1f} | {peer.cpu / own.cpu:.1f}"
        print(f"| {name} | {peer.wall:.3f} | {peer.cpu:.3f} | {own.wall:.3f} | {own.cpu:.3f} | {ratios} |")
    peaks = [peak_memory(part, options.inputs) for part in ("theirs", "ours")]
    print(f"\npeak memory without METEOR: theirs {peaks[0]:.0f} MB, ours {peaks[1]:.0f} MB")
    print(
        "largest difference of a corpus value:",
        max(abs(values[name] - float(expected[name])) for name in expected),
    )


if __name__ == "__main__":
    main()
