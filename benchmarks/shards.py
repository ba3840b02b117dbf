"""Photographs and noise through `patchword filter` into Parquet shards; trainings on these that are killed.

    python benchmarks/shards.py --data dataset_flickr8k.json --images images --out run [--count 300]

A crawl of `--count` training photographs with their first caption, and half as many pairs of noise (file
names, one text again and again, damaged files), is filtered; the shards that come out train a captioner and
two towers (small ones, for three epochs), each by one process and by two (gloo). Every training runs once
alone, and once more with a SIGKILL to all its processes after a third and after two thirds of its steps, and
`--resume`. Losses and weights of both are compared, and losses of two processes with those of one. It needs
Linux.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TIMED = ("seconds", "images_per_second", "captions_per_second")
TOWER = """{ kind = "vit", trainable_from = 0, architecture = { hidden_size = 32, num_hidden_layers = 2,
num_attention_heads = 2, intermediate_size = 64, image_size = 32, patch_size = 8, hidden_dropout_prob = 0.0,
attention_probs_dropout_prob = 0.0 } }"""
TEXT = """{ kind = "bert", trainable_from = 0, architecture = { hidden_size = 32, num_hidden_layers = 1,
num_attention_heads = 2, intermediate_size = 64, hidden_dropout_prob = 0.0,
attention_probs_dropout_prob = 0.0 } }"""
DATA = """
[data]
annotations = "{clean}"
images = "{clean}"
cache = "{cache}"
minimum_count = 2
window = 64
[[stage]]
epochs = 3
batch = 16
learning_rates = {{ "" = 1e-3 }}
"""
TASKS = {
    "captioner": f'task = "caption"\ntower = {TOWER}\n'.replace("\nnum", " num").replace("\natt", " att")
    + """captioner = { kind = "caption_transformer", width = 32, heads = 2, hidden = 64, encoder_layers = 1,
decoder_layers = 1, dropout = 0.0 }
""".replace(",\n", ", "),
    "towers": f'task = "retrieve"\nvision = {TOWER}\ntext = {TEXT}\n'.replace("\nnum", " num").replace(
        "\natt", " att"
    ),
}


def crawl(records: Sequence[dict], images: Path, target: Path) -> int:
    """A tar of pairs in WebDataset's form; how many there are."""
    random = np.random.default_rng(0)
    pairs = []
    for number, record in enumerate(records):
        content = (images / record["filename"]).read_bytes()
        pairs.append((content, record["sentences"][0]["raw"]))
        if number % 2:
            kind = number // 2 % 3
            noise = (f"IMG_{number:04d}.jpg", "great stock photo of a nice thing", "a photo of a thing")[kind]
            pairs.append((content[:200] if kind == 2 else content, noise))
    order = random.permutation(len(pairs))
    with tarfile.open(target, "w") as file:
        for place, number in enumerate(order):
            content, text = pairs[number]
            for suffix, held in (("jpg", content), ("txt", text.encode())):
                one = tarfile.TarInfo(f"{place:06d}.{suffix}")
                one.size = len(held)
                file.addfile(one, io.BytesIO(held))
    return len(pairs)


def patchword(*words: str, processes: int = 1, until: tuple[Path, int] | None = None) -> None:
    """One command, by torchrun where there are several processes; with `until` (run folder, step) killed when
    a checkpoint of that step is there."""
    several = ["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", *(several if processes > 1 else []), "patchword", *words],
        env=environment,
        stderr=subprocess.PIPE if until is None else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    if until is None:
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: status {process.returncode}\n{said[-2000:]}")
        return
    while process.poll() is None and step_of(until[0]) < until[1]:
        time.sleep(0.01)
    if process.poll() is not None:
        raise SystemExit(f"{' '.join(words)}: ended before it was to be killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def step_of(run: Path) -> int:
    """Step of the last checkpoint."""
    try:
        state = json.loads((run / "checkpoints" / "last" / "training.json").read_text())
        return int(state["position"]["step"])
    except (OSError, ValueError):  # not there yet, or being replaced
        return -1


def events(run: Path) -> list[dict]:
    """What a run logged, without its times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def losses(run: Path) -> list[float]:
    """Of every step."""
    return [row["loss"] for row in events(run) if row["event"] == "step"]


def differ(one: Path, other: Path) -> float:
    """Largest difference of two models' weights."""
    ours, theirs = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (one, other))
    return max(float(np.abs(ours[name] - theirs[name]).max(initial=0)) for name in ours)


def main() -> None:
    """Prints what the filter kept, and a line for each training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="captions as Karpathy's JSON")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--count", type=int, default=300)
    asked = parser.parse_args()
    out = asked.out.resolve()
    out.mkdir(parents=True)
    records = [one for one in json.loads(asked.data.read_text())["images"] if one["split"] == "train"]
    pairs = crawl(records[: asked.count], asked.images, out / "crawl.tar")
    patchword("filter", str(out / "crawl.tar"), "--out", str(out / "clean"))
    report = json.loads((out / "clean" / "report.json").read_text())
    shards = [path.name for path in sorted((out / "clean").glob("*.parquet"))]
    dropped = {rule["rule"]: rule["pairs"] for rule in report["dropped"]}
    print(json.dumps({"pairs": pairs, "kept": report["kept"], "dropped": dropped, "shards": shards}))
    for task, text in TASKS.items():
        config = out / f"{task}.toml"
        config.write_text(
            text.replace("task =", f'out = "{out / task}"\nlog_steps = 1\ncheckpoint_steps = 1\ntask =')
            + DATA.format(clean=out / "clean", cache=out / "cache")
        )
        for processes in (1, 2):
            alone, killed = out / f"{task}-{processes}", out / f"{task}-{processes}-killed"
            words = ["train", str(config), "--device", "cpu"]
            patchword(*words, f"out={alone}", processes=processes)
            steps = len(losses(alone))
            for share in (1, 2):
                goes_on = [*words, f"out={killed}", "--resume"]
                patchword(*goes_on, processes=processes, until=(killed, share * steps // 3))
            patchword(*goes_on, processes=processes)
            first = losses(out / f"{task}-1")
            found = {
                "training": task,
                "processes": processes,
                "steps": steps,
                "loss": [round(losses(alone)[0], 3), round(losses(alone)[-1], 3)],
                "log_alike": events(alone) == events(killed),
                "weights_differ_by": differ(alone, killed),
                "from_one_process": max(map(abs, np.subtract(losses(alone), first))),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
