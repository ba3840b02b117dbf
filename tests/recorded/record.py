"""Records what Patchword gives to a user, so that two versions of the code can be compared bit for bit.

    python tests/recorded/record.py tests/recorded/recorded.json        # 20 seconds on one core

The script takes pictures from installed packages and draws a small world of its own. It knows Patchword
only by its command line (`python -m patchword ...`), by the objects that `patchword.load` returns, and by
`patchword.metrics.score`. It therefore runs unchanged on versions whose internal modules differ.
`test_recorded.py` compares a new recording with `recorded.json`.

An array or a file is recorded as the SHA-256 of its exact bytes beside a few plain numbers. Everything else
is recorded as it is, with numbers in full precision. Values under a key that begins with `exact` or
`sha256` repeat on one type of machine only. All others can also be compared, within a tolerance, between
machines.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import io
import itertools
import json
import os
import platform
import runpy
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any

NAMES = {
    "label": "label",
    "question_answering": "answerer",
    "questions_per_picture": "questions_per_picture",
    "region_alignment": "region_alignment",
    "table": "table",
}
"""Names in the TOML files that differ between versions of Patchword. To adapt the script, edit the values."""

RENAMED_KEYS: dict[str, str] = {}
"""Keys of metrics.jsonl and of results that were renamed after the recording: new name to recorded name."""

TIMED = {"seconds", "images_per_second", "captions_per_second", "reward_share"}
"""Keys of metrics.jsonl that hold times, which no two runs share."""

PHOTOS = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)
"""Photographs in installed packages."""

PARTS = {
    "data": 'annotations = "drawn/captions.csv", images = "drawn", cache = "cache", minimum_count = 1',
    "convolutional": 'kind = "convolutional", stem = 8, widths = [8, 16], blocks = [0, 0], size = 16',
    "bert": "hidden_size = 16, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 16, "
    "initializer_range = 0.2",
    "vit": "hidden_size = 24, num_hidden_layers = 3, num_attention_heads = 3, intermediate_size = 32, "
    "initializer_range = 0.2, image_size = 12, patch_size = 6",
}
"""What several configurations have in common."""

TOWERS = """
data = { $data }
vision = { $convolutional, shared_width = 16 }
text = { kind = "bert", trainable_from = 0, architecture = { $bert } }
two_towers = { width = 16 }
"""
LABEL = """
vision = { kind = "vit", architecture = { $vit } }
text = { kind = "bert", architecture = { $bert } }
stage = [{ epochs = 3, validate_every = 3, batch = 8, learning_rates = { "" = 1e-2 } }]
[data]
$table = "drawn/labels.csv"
images = "drawn"
cache = "cache"
minimum_count = 1
cache_tokens = true
"""
CONFIGS = {
    "caption": """
task = "caption"
data = { $data, augmentation = { smallest_area = 0.8 } }
tower = { $convolutional, drop_path = 0.1 }
captioner = { kind = "show_attend_tell", word_width = 16, width = 24, attention_width = 16, dropout = 0.3 }
decoding = { beams = 2, max_length = 10 }
[[stage]]
name = "first"
epochs = 2
batch = 8
captions_per_picture = 2
learning_rates = { tower = 1e-3, captioner = 5e-3 }
warm_up_steps = 3
objective = { kind = "cross_entropy", doubly_stochastic = 0.1 }
[[stage]]
name = "second"
epochs = 1
batch = 8
start_from = "best"
learning_rates = { tower = 0.0, captioner = 1e-3 }
""",
    "retrieve": f"""
task = "retrieve"
{TOWERS}
stage = [{{ epochs = 3, batch = 8, learning_rates = {{ "" = 5e-3 }} }}]
""",
    "fused": """
task = "caption"
tower_from = "runs/retrieve/best"
text_from = "runs/retrieve/best"
codebook = "book"
data = { $data }
tower = { $convolutional, shared_width = 16 }
decoding = { beams = 2, max_length = 10 }
[captioner]
kind = "caption_transformer"
width = 16
heads = 2
hidden = 16
encoder_layers = 1
decoder_layers = 2
dropout = 0.1
[captioner.$region_alignment]
layers = 1
assignment = "gumbel"
top_k = 4
count_normalised = true
contrast_width = 8
text_regulariser = true
[captioner.memory]
count = 4
neighbours = 2
bank = 256
bank_at_most = 64
cluster_every = 2
effect_after = 1
iterations = 2
[[stage]]
name = "align"
epochs = 1
batch = 8
captions_per_picture = 2
memory = "off"
learning_rates = { tower = 0.0, captioner = 5e-3 }
objective = { kind = "cross_entropy", patch_contrast = 0.25, text_regulariser = [0.1, 0.2] }
[[stage]]
name = "joint"
epochs = 3
validate_every = 3
batch = 8
captions_per_picture = 2
memory = "ramp"
learning_rates = { tower = 1e-4, captioner = 5e-3 }
objective = { kind = "cross_entropy", label_smoothing = 0.1, patch_contrast = [0.25, 0.0] }
[[stage]]
name = "self-critical"
epochs = 1
batch = 8
learning_rates = { tower = 0.0, captioner = 3e-4 }
objective = { kind = "self_critical", samples = 3, max_length = 10 }
""",
    "align": f"""
task = "align"
{TOWERS}
patch_slimming = {{ width = 16, aggregated = 1 }}
[[stage]]
epochs = 3
batch = 8
captions_per_picture = 2
learning_rates = {{ "" = 1e-2 }}
objective = {{ kind = "hinge", contrastive_weight = 1.0 }}
""",
    "answer": """
task = "answer"
data = { annotations = "drawn/questions.jsonl", images = "drawn", cache = "cache" }
tower = { $convolutional }
[$question_answering]
width = 16
heads = 2
hidden = 16
picture_layers = 0
question_layers = 1
dropout = 0.1
[[stage]]
epochs = 3
batch = 8
$questions_per_picture = 2
learning_rates = { "" = 6e-3 }
decay = "cosine"
validate_every = 3
""",
    "label": f"""
task = "$label"
model = {{ kind = "prompt_fusion", query = 2, query_context = 1, fusion_context = 2 }}
{LABEL}
""",
    "structure": f"""
task = "structure"
budget = 3500
evolution = {{ generations = 1, population = 2, parents = 1, mutations = 1, crossings = 0 }}
{LABEL}
[prompt_search]
fused_layers = [1, 2]
query = [0, 2]
query_context = [0, 1]
fusion_context = [0, 2]
map_width = [8]
""",
}
"""The configuration of each training. Entries of `NAMES` and `PARTS` follow a dollar sign."""

REFERENCES = {
    "1": [
        "A dog runs through the snow.",
        "A brown dog is running in deep snow.",
        "The dog's paws are white.",
    ],
    "2": ["Two men play football on a green field.", "Two players fight for the ball."],
    "3": ["A woman in a red coat reads a newspaper at a café.", "A lady reads, sitting outside."],
    "4": ["Children jump into a pool.", "Three kids are jumping into the water - all at once!"],
}
PREDICTIONS = {
    "1": "a dog is running in the snow",
    "2": "two men are playing soccer on a field",
    "3": "a woman sits at a table",
    "4": "children jumping into the water",
}


def main(out: Path) -> None:
    """Record everything in a temporary folder and write the recording to `out`."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE"):
        os.environ[name] = "1"  # before torch is imported for the first time
    os.environ |= {"MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
    out = out.resolve()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            write_photos()
            write_drawn_world()
            recording = {
                "machine": machine(),
                "captions": captions(),
                "two towers": two_towers(),
                "search": search(),
                "pairs": pairs(),
                "answers": answers(),
                "scores": scores(),
                "trainings": trainings(),
            }
        finally:
            os.chdir(before)
    out.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What exact equality depends on: the processor, the instructions that torch uses, and the libraries."""
    import torch

    facts = {"system": platform.system(), "processor": platform.processor() or platform.machine()}
    if Path("/proc/cpuinfo").exists():
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        values = {key.strip(): value.strip() for key, value in lines}
        facts["processor"] = "/".join(values.get(key, "") for key in ("model name", "cpu family", "model"))
    facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    for package in ("torch", "numpy", "pillow", "transformers", "faiss-cpu"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    return facts


# Pictures and data sets.


def write_photos() -> None:
    """Copy six photographs out of installed packages into the folder `photos`."""
    Path("photos").mkdir()
    for photo in PHOTOS:
        package, _, file = photo.partition("/")
        found = importlib.util.find_spec(package)  # finds the folder without importing the package
        if found is None or found.origin is None:
            raise SystemExit(f"the recording needs a picture of the package {package}: install it")
        shutil.copy(Path(found.origin).parent / file, "photos")


def draw(colour: str, shape: str, side: str, size: int) -> Any:
    """Draw one coloured shape on the left or the right half of a light square picture."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (size, size), (240, 236, 250))
    pen, unit, left = ImageDraw.Draw(picture), size // 8, size // 8 + (side == "right") * 3 * size // 8
    box = (left, 2 * unit, left + 3 * unit, 5 * unit)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "rectangle":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    return picture


def write_drawn_world() -> None:
    """Draw 18 pictures with captions, questions and labels; 15 are for training and 3 for validation."""
    folder = Path("drawn")
    folder.mkdir()
    colours, shapes, sides = ("red", "green", "blue"), ("circle", "rectangle", "triangle"), ("left", "right")
    told, asked, labelled = [("image", "caption", "split")], [], [("image", "text", "label", "split")]
    for number, (colour, shape, side) in enumerate(itertools.product(colours, shapes, sides)):
        name, split = f"{number:02}.png", "val" if number % 5 == 4 else "train"
        draw(colour, shape, side, 24).save(folder / name)
        told.append((name, f"a {colour} {shape} on the {side}", split))
        told.append((name, f"the {shape} is {colour}", split))
        is_circle = "yes" if shape == "circle" else "no"
        for question, answer in (("what color is the shape?", colour), ("is there a circle?", is_circle)):
            asked.append(
                {"image": name, "question": question, "answer": answer, "type": "one", "split": split}
            )
        named = colours[number % 3]
        match = "match" if named == colour else "mismatch"
        labelled.append((name, f"a {named} thing on the {side}", match, split))
    lines = [json.dumps(row) + "\n" for row in asked]
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    for file, rows in (("captions.csv", told), ("labels.csv", labelled)):
        with open(folder / file, "w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows(rows)


# How Patchword is called, and how values are recorded.


def patchword(*words: str) -> str:
    """What `python -m patchword` prints with these words; it runs in this process, which saves imports."""
    printed, said, arguments = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["patchword", *words]
    status: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            runpy.run_module("patchword", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.argv = arguments
    if status:
        raise SystemExit(f"patchword {' '.join(words)} ended with status {status}:\n{said.getvalue()}")
    return printed.getvalue()


def json_lines(text: str) -> list[Any]:
    """Values of JSON lines, each as `plain` gives it."""
    return [plain(json.loads(line)) for line in text.splitlines() if line.strip()]


def plain(value: Any) -> Any:
    """The same value without what is timed, under recorded names, with files named without their folders."""
    if isinstance(value, dict):
        kept = {RENAMED_KEYS.get(key, key): one for key, one in value.items() if key not in TIMED}
        return {key: Path(one).name if key in ("path", "image") else plain(one) for key, one in kept.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def array(values: Any) -> dict[str, Any] | None:
    """An array: the digest of its bytes, its shape and type, and three numbers of it."""
    import numpy as np

    if values is None:
        return None
    values = np.ascontiguousarray(values)
    places = sorted({0, values.size // 2, values.size - 1}) if values.size else []
    numbers = [float(values.reshape(-1)[place]) for place in places]
    shape, kind = list(values.shape), str(values.dtype)
    return {"sha256": sha256(values.tobytes()), "shape": shape, "type": kind, "numbers": numbers}


def sha256(content: bytes) -> str:
    """The digest of these bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def weights(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, without their names, so that parts of a model may be renamed."""
    from safetensors.numpy import load_file

    tensors = load_file(file).values()
    parts = sorted(f"{one.dtype} {one.shape} {sha256(one.tobytes())}" for one in tensors)
    parameters = sum(one.size for one in tensors)
    return {"sha256": sha256("\n".join(parts).encode()), "tensors": len(parts), "parameters": parameters}


# What is recorded.


def captions() -> list[Any]:
    """Captions of the shipped captioner with tokens, probabilities and traces, and what `caption` prints."""
    import patchword as package

    model = package.load("flickr8k", device="cpu")
    paths = sorted(Path("photos").iterdir())
    rows: list[Any] = []
    for path, found in zip(paths, model.caption(paths, n_best=3), strict=True):
        best = found.prototypes or ()
        row = {"image": path.name, "text": found.text, "tokens": found.tokens, "complete": found.complete}
        row |= {"log_probability": found.log_probability, "attention": array(found.attention_Thw)}
        row |= {"concepts": found.concepts, "prototypes": [[number for number, _ in word] for word in best]}
        row |= {"prototype_weights": array([[weight for _, weight in word] for word in best])}
        row |= {"exact_contexts": sha256(repr(sorted(found.contexts.items())).encode())}
        row |= {"sha256_picture": sha256(found.picture)}
        row |= {"others": [[one.text, one.log_probability] for one in found.alternatives]}
        rows.append(plain(row))
    rows.append({"stream": list(model.stream(paths[0]))})
    return rows + json_lines(patchword("caption", "photos", "--beam", "2", "--json", "--device", "cpu"))


def two_towers() -> dict[str, Any]:
    """Vectors of the shipped two towers, and labels of photographs by Python and by `label --json`."""
    import patchword as package

    model = package.load("two-towers", device="cpu")
    paths = sorted(Path("photos").iterdir())
    texts = ["two dogs in snow", "a woman in an orange suit", "a cup of coffee"]
    labels = ["a dog", "a cat", "a woman", "a building"]
    lines = patchword("label", "photos", "--labels", ", ".join(labels), "--json", "--device", "cpu")
    return {
        "pictures": array(model.embed_images(paths)),
        "texts": array(model.embed_texts(texts)),
        "labels": array(model.label(paths, labels)),
        "label --json": json_lines(lines),
    }


def search() -> dict[str, Any]:
    """What `index` says of the photographs, and what `search` finds by words, by a picture, and ranked again.

    Empty where faiss is not installed, which both commands need.
    """
    if importlib.util.find_spec("faiss") is None:
        return {}
    made = json_lines(patchword("index", "photos", "--out", "index", "--json"))
    queries = {
        "words": ["a woman smiling at the camera"],
        "like": ["--like", "photos/flower.jpg"],
        "rerank": ["a building near water", "--rerank", "laps", "-k", "4"],
    }
    found = {name: patchword("search", "index", *words, "--json") for name, words in queries.items()}
    return {"index": made, **{name: json_lines(lines) for name, lines in found.items()}}


def pairs() -> dict[str, Any]:
    """Similarities of the shipped alignment model, one pair explained, and `pair --json`."""
    import patchword as package

    model = package.load("laps", device="cpu")
    paths = sorted(Path("photos").iterdir())
    texts = ["a cat looks up", "a woman in an orange suit", "a house by the water"]
    similarities = model.similarities(model.picture_cache(paths), model.text_cache(texts))
    found = model.explain("photos/chelsea.png", texts[0])
    words = [[one.word, one.found, one.cosine, *one.patch, array(one.gifts_hw)] for one in found.words]
    explained = {"similarity": found.similarity, "cosine": found.cosine, "words": words}
    explained |= {"kept": found.kept_hw.astype(int).tolist()}
    explained |= {"scores": array(found.scores_hw), "weights": array(found.weights_Phw)}
    lines = json_lines(patchword("pair", "photos/astronaut.png", texts[1], "--json", "--device", "cpu"))
    return {"similarities": array(similarities.numpy()), "explained": explained, "pair --json": lines}


def answers() -> dict[str, Any]:
    """Answers of the shipped model about drawings, one of them with its trace, and `ask --json`."""
    import patchword as package

    model = package.load("easy-vqa", device="cpu")
    things = (("red", "circle", "left"), ("teal", "triangle", "right"), ("black", "rectangle", "left"))
    drawings = [draw(*thing, size=256) for thing in things]
    questions = ["what color is the shape?", "what shape is present?", "is there a blue shape?"]
    asked = list(itertools.product(drawings, questions))
    found = model.ask([drawing for drawing, _ in asked], [question for _, question in asked], n_best=2)
    traced = model.explain(drawings[0], questions[0])
    drawings[1].save("drawing.png")
    lines = json_lines(patchword("ask", "drawing.png", questions[1], "--json", "--device", "cpu"))
    return {
        "answers": [[[one.text, one.probability] for one in answers] for answers in found],
        "tokens": list(traced.tokens),
        "answer attention": array(traced.answer_attention_hw),
        "word attention": array(traced.attention_Lhw),
        "ask --json": lines,
    }


def scores() -> dict[str, Any]:
    """Metrics of four captions, by Python and by the command. SPICE is left out, as it needs Java."""
    from patchword.metrics import score

    found = {name: one for name, one in score(REFERENCES, PREDICTIONS).items() if name != "SPICE"}
    images = [{"id": int(image)} for image in REFERENCES]
    pairs = [(int(image), text) for image, texts in REFERENCES.items() for text in texts]
    told = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(pairs)]
    said = [{"image_id": int(image), "caption": text} for image, text in PREDICTIONS.items()]
    Path("references.json").write_text(json.dumps({"images": images, "annotations": told}), encoding="utf-8")
    Path("said.json").write_text(json.dumps(said), encoding="utf-8")
    settings = ("--metrics", "bleu,rouge,cider,diversity", "--per-image", "--out", "scored.json")
    patchword("score", "said.json", "references.json", *settings)
    return {
        "python": {name: one.value for name, one in found.items()},
        "per image": {name: one.per_item for name, one in found.items() if one.per_item},
        "command": plain(json.loads(Path("scored.json").read_text(encoding="utf-8"))),
    }


def trainings() -> dict[str, Any]:
    """One short training of each task, and what the trained models then say about the validation pictures."""
    rows: dict[str, Any] = {}
    for name, text in CONFIGS.items():
        Path(f"{name}.toml").write_text(Template(text).substitute(NAMES | PARTS), encoding="utf-8")
        if name == "fused":
            words = ("red", "green", "blue", "circle", "rectangle", "triangle", "left")
            Path("words.txt").write_text("\n".join(words), encoding="utf-8")
            where = ("--tower", "runs/retrieve/best", "--out", "book", "--device", "cpu")
            patchword("codebook", "words.txt", *where)
        command = "structure" if name == "structure" else "train"
        patchword(command, f"{name}.toml", f'out="runs/{name}"', "log_steps=1", "--device", "cpu")
        rows[name] = structures() if name == "structure" else training(Path("runs") / name)
    rows["caption"]["exact_predicted"] = predicted("caption", "captions.csv")
    rows["fused"]["exact_predicted"] = predicted("fused", "captions.csv")
    rows["answer"]["exact_predicted"] = predicted("answer", "questions.jsonl")
    rows["label"]["exact_predicted"] = predicted("label", "labels.csv")
    rows["retrieve"]["exact_recall"] = recalled("retrieve")
    rows["align"]["exact_recall"] = recalled("align")
    memory = plain(json.loads(patchword("memory", "runs/fused/checkpoints/last", "--json")))
    rows["fused"]["sha256_memory"] = sha256(json.dumps(memory, sort_keys=True).encode())
    return rows


def training(folder: Path) -> dict[str, Any]:
    """Final and best weights of a run, its log without times, its losses, and its last validation."""
    events = json_lines((folder / "metrics.jsonl").read_text(encoding="utf-8"))
    steps = [event for event in events if event["event"] == "step"]
    return {
        "last": weights(folder / "checkpoints" / "last" / "model.safetensors"),
        "best": weights(folder / "best" / "model.safetensors"),
        "sha256_log": sha256(json.dumps(events, sort_keys=True).encode()),
        "first_losses": steps[0]["losses"],
        "exact_losses": [event["loss"] for event in steps],
        "exact_validation": [event for event in events if event["event"] == "validation"][-1],
    }


def structures() -> dict[str, Any]:
    """The structures that the search tried, with scores and costs."""
    lines = Path("runs/structure/structures.jsonl").read_text(encoding="utf-8")
    return {"exact_structures": json_lines(lines)}


def predicted(name: str, data: str) -> list[Any]:
    """What `predict` writes about the validation pictures with the final model of a training."""
    out = Path(f"{name}.jsonl" if name == "label" else f"{name}.json")
    where = ("--data", f"drawn/{data}", "--images", "drawn", "--split", "val", "--out", str(out))
    patchword("predict", f"runs/{name}/checkpoints/last", *where, "--device", "cpu")
    return json_lines(out.read_text(encoding="utf-8"))


def recalled(name: str) -> list[Any]:
    """The recalls that `recall` prints for the validation pictures with the final model of a training."""
    where = ("--data", "drawn/captions.csv", "--images", "drawn", "--split", "val")
    lines = patchword("recall", f"runs/{name}/checkpoints/last", *where, "--json", "--device", "cpu")
    return [row["scores"] for row in json_lines(lines)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python record.py RECORDING.json")
    main(Path(sys.argv[1]))
