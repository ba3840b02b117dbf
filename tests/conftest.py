"""What tests of several folders share: tiny models with random weights, drawn data, a training that takes
seconds, the command line."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

LONG = (
    "rules/test_wheel.py",
    "train/test_kills.py",
    "tasks/caption/test_fused.py",
    "recorded/test_recorded.py",
    "rules/test_typed.py",
    "tasks/paint/test_families.py",
    "tasks/paint/test_paint.py",
    "tasks/label/test_train.py",
    "train/test_training.py",
)
"""Files that take long, begun first: of two workers the one that is given such a file last works on alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs what is marked so."""
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long files first; `make test` keeps that order (--no-loadscope-reorder). Slow tests are skipped, and
    so counted, where --slow is not given."""
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: `make test-slow` runs it"))
    here, places = Path(__file__).parent, {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.relative_to(here).as_posix(), len(LONG)))


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis tries the same examples each time; with --slow it looks for new ones."""
    hypothesis.settings.register_profile("same", derandomize=True)
    hypothesis.settings.register_profile("new", derandomize=False)
    hypothesis.settings.load_profile("new" if config.getoption("--slow") else "same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Fixtures draw the same weights each time."""
    _begin_to_draw()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """A test draws the same weights each time and alone as among others: torch begins each process with
    another seed, and of a tiny model's random weights a few say nothing at all."""
    _begin_to_draw()


def _begin_to_draw() -> None:
    import torch

    torch.manual_seed(0)


PIECES = [
    "a",
    "c",
    "d",
    "g",
    "o",
    "t",
    "!",
    "!</w>",
    "a</w>",
    "t</w>",
    "g</w>",
    "o</w>",
    "ca",
    "do",
    "cat</w>",
    "dog</w>",
    "s</w>",
    "s",
]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A tiny CLIP with random weights and a tokenizer of twenty pieces, as transformers saves them."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    pieces = {piece: number for number, piece in enumerate([*PIECES, "<|startoftext|>", "<|endoftext|>"])}
    (path / "vocab.json").write_text(json.dumps(pieces))
    (path / "merges.txt").write_text("#version: 0.2\nc a\nd o\nca t</w>\ndo g</w>\n")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "projection_dim": 12}
    text = {
        **sizes,
        "hidden_size": 8,
        "vocab_size": 20,
        "max_position_embeddings": 12,
        "bos_token_id": 18,
        "eos_token_id": 19,
    }
    vision = {**sizes, "hidden_size": 16, "image_size": 16, "patch_size": 4}
    torch.manual_seed(2)
    model = CLIPModel(
        CLIPConfig(vision_config=vision, text_config={**text, "pad_token_id": 19}, projection_dim=12)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def write_panoptic():
    """Writes drawn scenes' masks as COCO writes panoptic ones, each shape a class (1: circle, ...); returns
    the path of the JSON."""

    def write(folder: Path, scenes, image_ids, size: int) -> Path:
        from patchword.data.scenes import masks
        from patchword.data.scenes.world import SHAPES

        (folder / "panoptic").mkdir(parents=True, exist_ok=True)
        annotations = []
        for scene, owners_KSS, image_id in zip(scenes, masks(scenes, size), image_ids, strict=True):
            ids = [3 * 65536 + 7 * 256 + k for k in range(len(scene.things))]
            colours_SS3 = np.zeros((size, size, 3), dtype=np.uint8)
            for k, number in enumerate(ids):
                colours_SS3[owners_KSS[k]] = (number % 256, number // 256 % 256, number // 65536)
            Image.fromarray(colours_SS3).save(folder / "panoptic" / f"{image_id}.png")
            parts = [
                {"id": one, "category_id": 1 + SHAPES.index(thing.shape)}
                for one, thing in zip(ids, scene.things, strict=True)
            ]
            annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": parts})
        path = folder / "panoptic.json"
        path.write_text(json.dumps({"annotations": annotations}))
        return path

    return write


CONFIG = """
task = "caption"
out = "{out}"
seed = 3
checkpoint_steps = 1
log_steps = 1
[data]
annotations = "{data}/dataset.json"
images = "{data}/images"
cache = "{cache}"
minimum_count = 1
[data.augmentation]
smallest_area = 0.8
[tower]
kind = "convolutional"
stem = 8
widths = [8, 16]
blocks = [0, 0]
size = 16
drop_path = 0.1
[captioner]
kind = "show_attend_tell"
word_width = 16
width = 24
attention_width = 16
dropout = 0.3
[decoding]
beams = 2
max_length = 12
[[stage]]
name = "first"
epochs = 2
batch = 16
captions_per_picture = 2
learning_rates = {{ "tower" = 1e-3, "captioner" = 5e-3 }}
warm_up_steps = 3
[stage.objective]
kind = "cross_entropy"
doubly_stochastic = 0.1
[[stage]]
name = "second"
epochs = 1
batch = 16
learning_rates = {{ "tower" = 0.0, "captioner" = 1e-3 }}
"""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    from patchword.data.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 48), ("val", 12)):
        write_scenes(folder, count, level=1, size=24, split=split)
    return folder


@pytest.fixture(scope="session")
def shards(scenes, tmp_path_factory):
    """The drawn data set as shards: three of the training pictures, one of those that select."""
    folder = tmp_path_factory.mktemp("shards")
    images = json.loads((scenes / "dataset.json").read_text())["images"]
    for split, size in (("train", 16), ("val", 12)):
        some = [one for one in images if one["split"] == split]
        for first in range(0, len(some), size):
            with tarfile.open(folder / f"{split}-{first:05d}.tar", "w") as archive:
                for number, one in enumerate(some[first : first + size]):
                    texts = "\n".join(sentence["raw"] for sentence in one["sentences"])
                    picture = (scenes / "images" / one["filename"]).read_bytes()
                    for suffix, content in (("png", picture), ("txt", texts.encode())):
                        member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(scope="session")
def config(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    path = folder / "run.toml"
    path.write_text(CONFIG.format(out=folder / "run", data=scenes, cache=folder / "cache"))
    return path


@pytest.fixture(scope="session")
def run_patchword():
    """Calls the command line as a person types it, in this process: what a process of its own would add is
    its start, five seconds each time. Gives what `subprocess.run` gives; `start_patchword` starts a
    process."""
    from patchword.cli import main

    def call(*words: object) -> subprocess.CompletedProcess:
        command = ["patchword", *map(str, words)]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        status = 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", command)
            try:
                main()
            except SystemExit as ended:
                status = ended.code or 0
        said = (one.buffer.getvalue().decode("utf-8", "surrogateescape") for one in (out, err))
        return subprocess.CompletedProcess(command, status, *said)

    return call


@pytest.fixture(scope="session")
def start_patchword():
    """Starts the command line in a process of its own, with as many threads as this one has, so that its
    numbers are the same bit for bit."""

    def start(*words: object) -> subprocess.Popen:
        import torch

        command = [sys.executable, "-c", "from patchword.cli import main; main()", *map(str, words)]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "passive"}
        return subprocess.Popen(
            command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    return start


@pytest.fixture(scope="session")
def trained(config, run_patchword) -> Path:
    """The run folder of a finished training."""
    finished = run_patchword("train", config, "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    return config.parent / "run"


@pytest.fixture
def in_place_of_ray(monkeypatch):
    """Workers of a job in this process, which ends after as many parts as `most` says; counts those made."""
    from patchword.jobs import cluster
    from patchword.jobs.part import do_part, make_work

    state = {"made": 0, "most": 99}

    def on_ray(job, parts, pending, address, workers):
        work = make_work(job)
        for number in pending:
            if state["made"] == state["most"]:
                raise KeyboardInterrupt
            state["made"] += 1
            yield do_part(job, number, parts[number], work)

    monkeypatch.setattr(cluster, "_on_ray", on_ray)
    return state


WORDS = "a photo of the picture dog cat red blue ball in snow wine glass"


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> Path:
    """The folder of the model."""
    import torch

    from patchword.checkpoints.facts import ModelFacts
    from patchword.data.pictures import Preprocessing
    from patchword.models.pairs.two_towers import TwoTowersConfig
    from patchword.tasks.retrieve.model import TwoTowerModel, TwoTowerSettings, build_two_towers
    from patchword.text.words import Vocabulary
    from patchword.towers.bert import BertTowerConfig
    from patchword.towers.convolutional import ConvolutionalConfig

    vocabulary = Vocabulary.build([WORDS], minimum_count=1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = TwoTowerSettings(
        vision=ConvolutionalConfig(stem=8, widths=(8,), blocks=(0,), size=16, shared_width=12),
        text=BertTowerConfig(
            architecture={**sizes, "vocab_size": vocabulary.size, "max_position_embeddings": 24},
            trainable_from=0,
        ),
        two_towers=TwoTowersConfig(width=12),
        preprocessing=Preprocessing(
            size=16, fit="squash", interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        ),
        vocabulary_size=vocabulary.size,
    )
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("models") / "towers"
    TwoTowerModel(
        build_two_towers(settings), settings, vocabulary, ModelFacts(name="towers"), torch.device("cpu")
    ).write(folder)
    return folder


@pytest.fixture(scope="session")
def aligner(towers) -> Path:
    """The folder of an alignment model over the same towers, its head random."""
    import torch

    from patchword.checkpoints.facts import ModelFacts
    from patchword.models.pairs.patch_slimming import PatchSlimmingConfig
    from patchword.tasks.align.model import AlignmentModel, AlignModelSettings, build_aligned
    from patchword.tasks.retrieve.load import load_two_towers

    trained = load_two_towers(towers, "cpu")
    settings = AlignModelSettings(
        **trained.settings.model_dump(), patch_slimming=PatchSlimmingConfig(width=12, aggregated=3)
    )
    torch.manual_seed(5)
    model = build_aligned(settings, None)
    model.towers.load_state_dict(trained.model.state_dict())
    model.begin_in_the_shared_space()
    folder = towers.with_name("aligner")
    AlignmentModel(
        model, settings, trained.vocabulary, ModelFacts(name="aligner"), torch.device("cpu")
    ).write(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with a red picture, a blue one under a name that is no ASCII, and a file that is no
    picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "bl\u00e5.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def patchword(monkeypatch, capsysbinary):
    """Calls the command line as a user types it; gives exit status, standard output and standard error. Bytes
    that are no UTF-8, of odd file names, come as surrogates, as the system gives them to Python."""
    from patchword.cli import main

    def call(*words):
        monkeypatch.setattr("sys.argv", ["patchword", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = (part.decode("utf-8", "surrogateescape") for part in capsysbinary.readouterr())
        return ended.value.code, *printed

    return call


class Page(HTMLParser):
    """Every tag closed in order; no script, no handler, nothing from elsewhere."""

    EMPTY = {"meta", "img", "line", "circle", "polyline", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.images = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        assert tag not in ("script", "iframe", "object", "link", "base", "form")
        assert not [key for key in values if key.startswith("on")]
        assert values.get("src", "data:").startswith("data:image/") or "src" not in values
        assert "href" not in values
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


class MiddleOnly:
    """A copy of a model that sees the middle two thirds of a picture, and a picture that is green there and
    red around it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder / "middle"
        shutil.copytree(model, self.folder)
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        config["preprocessing"] |= {"fit": "short_side_center_crop", "cover": 1.5}
        (self.folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        self.picture = folder / "rimmed.png"
        rimmed = Image.new("RGB", (96, 96), "red")
        rimmed.paste((0, 255, 0), (16, 16, 80, 80))
        rimmed.save(self.picture)

    @staticmethod
    def shown(page: Path) -> list[float]:
        """The share of each photograph in a page that is the red rim."""
        import base64
        import re

        found = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page.read_text(encoding="utf-8"))
        pictures = [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]
        return [float((np.asarray(one)[..., 0] > 128).mean()) for one in pictures]


@pytest.fixture
def middle_only(tmp_path):
    """`middle_only(model folder)`: what shows whether a page lays its maps over what the model saw."""
    return lambda model: MiddleOnly(tmp_path, model)


@pytest.fixture
def parse():
    """Parse a page or fragment strictly; the result has its text, tags and images."""
    return Page


@pytest.fixture
def small_disk():
    """A context in which no file grows beyond so many bytes: a full disk, without a disk of one's own."""
    resource = pytest.importorskip("resource", reason="limits of processes are of POSIX")

    @contextmanager
    def limited(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def read_only():
    """A folder in which nothing may be written, with a file in it; root gives up its rights for as long."""
    folder = Path(tempfile.mkdtemp())
    (folder / "kept.json").write_text("what was there")
    folder.chmod(0o555)
    was = os.geteuid() if hasattr(os, "geteuid") else pytest.skip("rights of folders are of POSIX")
    if was == 0:
        os.seteuid(65534)
    yield folder
    if was == 0:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


STORED_TURNED = {
    1: None,
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_90",
    7: "TRANSVERSE",
    8: "ROTATE_270",
}
"""How a camera stores the pixels that it marks with each EXIF orientation: opening the file must undo it."""


@pytest.fixture(scope="session")
def stored_turned():
    """The bytes of a picture as a camera stores it that was held in one of the eight ways:
    `stored_turned(picture, number)`."""

    def store(picture: Image.Image, number: int, kind: str = "PNG", **options: object) -> bytes:
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = number
        turn = STORED_TURNED[number]
        turned = picture if turn is None else picture.transpose(Image.Transpose[turn])
        turned.save(buffer, kind, exif=exif, **options)
        return buffer.getvalue()

    return store


@pytest.fixture(scope="session")
def turned_photos(tmp_path_factory, stored_turned) -> Path:
    """One photograph nine times, without loss: `upright.png`, which carries no orientation, and
    `turned-1.png` to `turned-8.png`, which are stored turned and say so."""
    import skimage.data

    folder = tmp_path_factory.mktemp("turned")
    photo = Image.fromarray(skimage.data.astronaut()).resize((96, 72))
    photo.save(folder / "upright.png")
    for number in STORED_TURNED:
        (folder / f"turned-{number}.png").write_bytes(stored_turned(photo, number))
    return folder
