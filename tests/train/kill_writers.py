"""Kills what writes files and folders at every operation on them: features, codebook, save, export (and with
eight bits), scenes, table.

    python tests/train/kill_writers.py               # all of them
    python tests/train/kill_writers.py features save

Each is run over nothing and over what an earlier run wrote, is killed at one operation, and run again.
After the kill there is under the name what was there before, or all of what is new; after the second run
there is what a run that is left alone writes, and nothing beside it. One JSON object is printed.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kill_everywhere import Disk, forked
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Preprocessing
from patchword.data.scenes import write_scenes
from patchword.files import recover_folder, write_text
from patchword.interface import load
from patchword.jobs.features import Pictures, StoreOptions, store_features
from patchword.layers.codebook import Codebook
from patchword.models.pairs.two_towers import TwoTowersConfig
from patchword.onnx_graphs import Kind
from patchword.tasks.caption.export import export_captioner
from patchword.tasks.retrieve.export import export_towers
from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
from patchword.text.words import Vocabulary
from patchword.towers.bert import BertTowerConfig
from patchword.towers.convolutional import ConvolutionalConfig, ConvolutionalTower

KIT = Path(__file__).resolve().parents[1] / "kits" / "format1"
Writer = Callable[[Path, int], object]
"""Writes a version (0 or 1) of something under a path."""


def features(place: Path) -> Writer:
    """A store of four pictures by a tower with random weights; versions differ in the pictures' order."""
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), 60 * number, np.uint8)).save(place / f"{number}.png")
    torch.manual_seed(0)
    tower = ConvolutionalTower(ConvolutionalConfig(stem=4, widths=(4,), blocks=(0,), size=16))

    def write(path: Path, version: int) -> None:
        files = [f"{number}.png" for number in range(4)][:: 1 - 2 * version]
        cpu = torch.device("cpu")
        pictures = Pictures(place, files, Preprocessing(size=16))
        store_features(tower, pictures, path, cpu, lambda count: None, StoreOptions(batch=2))

    return write


def codebook(place: Path) -> Writer:
    """A codebook of three words."""
    words = Codebook(["tree", "sky", "dog"], torch.eye(3, 4), "tower")
    return lambda path, version: words.save(path)


def save(place: Path) -> Writer:
    """A model folder."""
    model = load(KIT / "caption", "cpu")
    return lambda path, version: model.save(path)


def export(to: Kind) -> Callable[[Path], Writer]:
    """Two small towers as ONNX files."""

    def writer(place: Path) -> Writer:
        words = Vocabulary.build(["a red circle"], minimum_count=1)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        text = {**sizes, "vocab_size": words.size, "max_position_embeddings": 8}
        settings = TwoTowerSettings(
            vision=ConvolutionalConfig(stem=4, widths=(4,), blocks=(0,), size=16, shared_width=8),
            text=BertTowerConfig(architecture=text),
            two_towers=TwoTowersConfig(width=8),
            preprocessing=Preprocessing(size=16, fit="squash"),
            vocabulary_size=words.size,
        )
        model, facts = build_two_towers(settings), ModelFacts(name="towers")
        TwoTowerModel(model, settings, words, facts, torch.device("cpu")).write(place / "towers")
        return lambda path, version: export_towers(str(place / "towers"), path, to)

    return writer


def captioner(place: Path) -> Writer:
    """A captioner as ONNX files."""
    return lambda path, version: export_captioner(str(KIT / "caption"), path, "onnx")


def scenes(place: Path) -> Writer:
    """Drawn scenes: pictures first, the file that names them last, in one write."""

    def write(path: Path, version: int) -> None:
        write_scenes(path, 2 + version, level=1, size=16)

    return write


def table(place: Path) -> Writer:
    """One file."""
    return lambda path, version: write_text(path, f"version {version}\n" * 1000)


WRITERS = {"features": features, "codebook": codebook, "save": save, "scenes": scenes, "table": table}
WRITERS |= {"export": export("onnx"), "export-int8": export("int8"), "export-captioner": captioner}
OVER = ("features", "scenes", "table")
"""Those that replace what is there; the others refuse to."""


def content(path: Path) -> dict[str, bytes]:
    """Every file under a path, or the file itself, by name."""
    if path.is_file():
        return {"": path.read_bytes()}
    found = {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }
    if "dataset.json" in found:  # pictures that no entry names are not there yet, for whoever reads it
        named = {f"images/{one['filename']}" for one in json.loads(found["dataset.json"])["images"]}
        found = {name: file for name, file in found.items() if name in {*named, "dataset.json"}}
    elif path.name == "scenes":
        found = {}
    return found


def kill(kind: str) -> dict[str, Any]:
    """All kills of one writer."""
    result: dict[str, Any] = {"operations": 0, "kills": 0, "halves": [], "differences": [], "left_behind": []}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as temporary:
        place = Path(temporary)
        write = WRITERS[kind](place)
        (place / "warm").mkdir()
        write(place / "warm" / kind, 0)
        gc.collect()
        gc.freeze()
        for before in (False, True)[: 1 + (kind in OVER)]:
            whole = {}
            for version in (0, 1):
                shutil.rmtree(place / "whole", ignore_errors=True)
                (place / "whole").mkdir()
                if before and version:
                    forked(lambda: write(place / "whole" / kind, 0))
                forked(lambda version=version: write(place / "whole" / kind, version))
                whole[version] = content(place / "whole" / kind)
            stop_at = 0
            while True:
                stop_at += 1
                run = place / "run"
                shutil.rmtree(run, ignore_errors=True)
                run.mkdir()
                if before:
                    forked(lambda run=run: write(run / kind, 0))

                def killed(run: Path = run, stop_at: int = stop_at) -> None:
                    Disk(run, stop_at, False).install()
                    write(run / kind, 1)

                status, said = forked(killed)
                if status == 0:
                    break
                assert status == -signal.SIGKILL, said
                result["kills"] += 1
                recover_folder(run / kind)  # as the next one that writes there does
                found = content(run / kind)
                if found not in (whole[0] if before else {}, whole[1]):
                    result["halves"].append([before, stop_at, sorted(found)])
                status, said = forked(lambda run=run: write(run / kind, 1))
                if content(run / kind) != whole[1]:
                    result["differences"].append([before, stop_at, said])
                beside = sorted(path.name for path in run.iterdir() if path.name != kind)
                if beside:
                    result["left_behind"].append([before, stop_at, beside])
            result["operations"] += stop_at - 1
    return result


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    found = {}
    for asked in sys.argv[1:] or WRITERS:
        found[asked] = kill(asked)
        print(asked, found[asked], file=sys.stderr, flush=True)
    print(json.dumps(found))
