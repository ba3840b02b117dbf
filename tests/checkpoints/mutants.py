"""Small folders of every kind, what they are used for, and ways to damage them: shared by tests and by
benchmarks/fuzz_folders.py.
"""

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchword.data.store import Store, write_store
from patchword.errors import PatchwordError

KIT = Path(__file__).resolve().parents[1] / "kits" / "format1"
PICTURE = np.random.default_rng(7).integers(0, 256, (20, 24, 3), dtype=np.uint8)
SLOW = 10
"""Seconds of the processor's time."""

SETTINGS = ("config.json", "README.md")
"""Files of a model folder that a person may edit: another value may mean another result."""


def caption(model):
    found = model.caption(PICTURE)
    contexts = {str(index): list(texts) for index, texts in found.contexts.items()}
    return {
        "text": found.text,
        "log_probability": found.log_probability,
        "concepts": list(found.concepts or ()),
        "prototypes": [[list(pair) for pair in word] for word in found.prototypes or ()],
        "contexts": contexts,
    }


def retrieve(model):
    return {
        "image": model.embed_images([PICTURE])[0].tolist(),
        "text": model.embed_texts(["a dog in snow"])[0].tolist(),
    }


def align(model):
    found = model.explain(PICTURE, "a dog in snow")
    return {"similarity": found.similarity, "cosine": found.cosine}


def answer(model):
    return [[one.text, one.probability] for one in model.ask(PICTURE, "what is the dog", 3, anyway=True)]


def label(model):
    return model.probabilities([PICTURE], ["a red dog"])[0].tolist()


ASKED = {"caption": caption, "retrieve": retrieve, "align": align, "answer": answer, "label": label}
"""What is asked of a model of each task."""


class Victim(NamedTuple):
    """A folder, how it is opened, what is made of it, and that result."""

    folder: Path
    open: Callable[[Path], Any]
    use: Callable[[Any], Any]
    result: Any
    settings: tuple[str, ...] = ()


def victims(folder: Path) -> dict[str, Victim]:
    """One folder of each kind, written by this version."""
    import torch  # data files are mutated without it

    from patchword.interface import load
    from patchword.layers.codebook import Codebook

    found = {}
    for task, use in ASKED.items():
        load(KIT / task, "cpu").save(folder / task)
        found[task] = (folder / task, lambda path: load(path, "cpu"), use, SETTINGS)
    rows = np.arange(24, dtype=np.float16).reshape(4, 3, 2)
    files = [f"{number}.jpg" for number in range(4)]
    entries = {"tower": "t", "hw": [1, 3]}
    write_store(folder / "store", files, entries, iter([{"grid": rows, "class": rows[:, 0]}]), lambda n: None)
    found["store"] = (folder / "store", Store.open, stored, ())
    Codebook(["tree", "sky", "dog"], torch.eye(3, 4), "tower").save(folder / "codebook")
    found["codebook"] = (folder / "codebook", Codebook.read, coded, ())
    return {
        kind: Victim(path, opened, use, repr(use(opened(path))), settings)
        for kind, (path, opened, use, settings) in found.items()
    }


def stored(store):
    names = store.manifest["files"]
    order = store.rows(sorted(names)).tolist()
    entries = {name: store.manifest.get(name) for name in ("tower", "hw")}
    return (
        entries,
        {name: field[order].tolist() for name, field in sorted(store.fields.items())},
        sorted(names),
    )


def coded(codebook):
    return codebook.words, codebook.tower, codebook.templates, codebook.embeddings_WE.tolist()


VALUES = (
    0,
    -1,
    1,
    2,
    7,
    10**6,
    10**30,
    -(10**30),
    1e308,
    float("inf"),
    float("nan"),
    None,
    True,
    "",
    "x",
    [],
    {},
)


def mutate(source: Path, target: Path, seed: int) -> list[str]:
    """A copy of a folder with one to three mutations; returns what was done, each beginning with the name of
    its file.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    chance = random.Random(seed)
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        paths = sorted(path for path in target.iterdir() if path.is_file())
        if not paths:
            break
        path = chance.choice(paths)
        if path.suffix == ".json" and chance.random() < 0.7:
            done.append(f"{path.name}: {mutate_json(path, chance)}")
        else:
            done.append(f"{path.name}: {mutate_bytes(path, paths, chance)}")
    return done


def mutate_bytes(path: Path, paths: list[Path], chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    kind = chance.choice(("flip", "cut", "empty", "remove", "exchange", "append", "zeros"))
    place = chance.randrange(len(content)) if content else 0
    if kind == "flip" and content:
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif kind == "append":
        content += bytes(chance.randrange(1, 20))
    elif kind == "exchange":
        content = bytearray(chance.choice(paths).read_bytes())
    elif kind == "empty":
        content.clear()
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{kind} at {place}"


def mutate_json(path: Path, chance: random.Random) -> str:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        path.write_text("null")
        return "null"
    parents = []
    waiting = [content]
    while waiting:
        one = waiting.pop()
        children = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, value in children:
            parents.append((one, key))
            waiting.append(value)
    if not parents:
        path.write_text("[]")
        return "emptied"
    parent, key = chance.choice(parents)
    kind = chance.choice(("replace", "replace", "replace", "remove", "repeat", "rename"))
    if kind == "remove":
        del parent[key]
    elif kind == "repeat" and isinstance(parent, list):
        parent.append(parent[key])
    elif kind == "rename" and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    else:
        parent[key] = chance.choice(VALUES)
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"{kind} {key!r}"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    kind: str
    wrong: bool = False
    said: str = ""


def judge(victim: Victim, mutant: Path, mutation: list[str]) -> Outcome:
    """Open and use a mutant."""
    began = time.process_time()
    opened = None
    try:
        opened = victim.open(mutant)
        result = repr(victim.use(opened))
    except PatchwordError as error:
        said = str(error)
        if opened is None and mutant.name not in said:
            return Outcome("error without folder", True, said)
        return Outcome("slow", True) if time.process_time() - began > SLOW else Outcome("refused", said=said)
    except Exception as error:
        return Outcome("traceback", True, f"{type(error).__name__}: {error}")
    if time.process_time() - began > SLOW:
        return Outcome("slow", True)
    if result == victim.result:
        return Outcome("the same")
    edited = {one.partition(":")[0] for one in mutation}
    return Outcome("other settings") if edited & set(victim.settings) else Outcome("silently different", True)
