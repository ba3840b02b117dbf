"""Captioners as ONNX files: the captions of the model's plain search and its doubt, without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import patchword as patchword_package
from patchword.checkpoints.facts import ModelFacts
from patchword.composed import CaptionModel
from patchword.data.pictures import Preprocessing
from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.prototypes import PrototypeConfig
from patchword.models.captioners.adaptive import AdaptiveConfig
from patchword.models.captioners.caption_transformer import CaptionTransformerConfig, RegionAlignmentConfig
from patchword.models.captioners.meshed_memory import MeshedMemoryConfig
from patchword.models.captioners.show_attend_tell import ShowAttendTellConfig
from patchword.models.captioners.show_tell import ShowTellConfig
from patchword.tasks.caption.export import agreement, export_captioner
from patchword.tasks.caption.exported import ExportedCaptioner
from patchword.tasks.caption.load import load
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.options import DecodingOptions, DecodingSettings
from patchword.text.words import Vocabulary
from patchword.towers.convolutional import ConvolutionalConfig

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
WORDS = "a dog runs in the snow two black cats sit on red mats near some old trees".split()
VOCABULARY = Vocabulary(tuple(WORDS), "english", 1)
SIZES = {"width": 16, "heads": 2, "hidden": 24, "encoder_layers": 1, "decoder_layers": 2, "max_positions": 12}
CAPTIONERS = {
    "show_tell": ShowTellConfig(width=8),
    "show_tell, gru": ShowTellConfig(width=8, cell="gru", picture="initial_state"),
    "show_attend_tell": ShowAttendTellConfig(word_width=8, width=8, attention_width=8),
    "adaptive": AdaptiveConfig(word_width=8, width=8, attention_width=8),
    "meshed_memory": MeshedMemoryConfig(**SIZES, slots=3),
    "caption_transformer": CaptionTransformerConfig(**SIZES),
    "aligned": CaptionTransformerConfig(**SIZES, region_alignment=RegionAlignmentConfig(contrast_width=0)),
    **{
        f"memory, {placement}": CaptionTransformerConfig(
            **SIZES, memory=PrototypeConfig(placement=placement, count=5)
        )
        for placement in ("self_concat", "cross_add", "sequential")
    },
}
SEARCHES = (
    DecodingOptions(),
    DecodingOptions(beams=1, no_repeat=1),
    DecodingOptions(beams=4, length_penalty=1, no_repeat=2, max_length=9, min_length=5),
)


@pytest.fixture(scope="module")
def pictures():
    """Of several sizes, noise of one colour each."""
    generator = np.random.default_rng(0)
    return [
        (generator.integers(0, 60, (20 + 9 * n, 40, 3)) + generator.integers(0, 195, 3)).astype(np.uint8)
        for n in range(6)
    ]


def save(captioner, out):
    """A small model with random weights, among which every prototype is alive."""
    torch.manual_seed(1)
    tower = ConvolutionalConfig(stem=8, widths=(8, 12), blocks=(1, 1), size=32, shared_width=6)
    aligned = getattr(captioner, "region_alignment", None) is not None
    codebook = Codebook(["tree", "sky", "dog"], torch.randn(3, 6), "tower") if aligned else None
    model = CaptionModel.build(tower, captioner, VOCABULARY.size, codebook)
    with torch.no_grad():  # larger weights, so that pictures of different colours get different captions
        for weights in model.parameters():
            weights.mul_(3 if weights.dim() > 1 else 1)
    memory = getattr(model.captioner, "memory", None)
    if memory is not None:
        memory.live_LM.fill_(True)
        for name in ("keys_LMC", "values_LMC"):
            getattr(memory, name).normal_()
        for module in model.modules():
            if hasattr(module, "gate_C"):
                torch.nn.init.normal_(module.gate_C)
    settings = ModelSettings(
        tower=tower,
        captioner=captioner,
        preprocessing=Preprocessing(size=32),
        decoding=DecodingSettings(beams=3, max_length=7),
        vocabulary_size=VOCABULARY.size,
        codebook=None if codebook is None else codebook.describe(),
    )
    CaptioningModel(model, settings, VOCABULARY, ModelFacts(), torch.device("cpu")).save(out)
    return out


@pytest.mark.parametrize("name", CAPTIONERS)
def test_every_captioner_says_the_same_when_exported(name, pictures, patchword, tmp_path):
    folder = save(CAPTIONERS[name], tmp_path / "model")
    status, out, err = patchword("export", folder, "--out", tmp_path / "onnx")
    assert status == 0 and "of a photograph it says the same caption" in out, err
    model, exported = load(folder, "cpu"), load(tmp_path / "onnx")
    assert isinstance(exported, ExportedCaptioner)
    for search in SEARCHES:
        ours = model.caption(pictures, trace=False, options=search)
        assert len({one.log_probability for one in ours}) > 3, "they look at the pictures"
        for some, expected in ((pictures, ours), (pictures[:1], ours[:1])):
            found = exported.caption(some, options=search)
            assert [one.tokens for one in found] == [one.tokens for one in expected]
            assert [one.complete for one in found] == [one.complete for one in expected]
            np.testing.assert_allclose(
                [one.log_probability for one in found], [one.log_probability for one in expected], atol=1e-4
            )
    assert exported.caption(pictures[0]) == exported.caption(pictures)[0]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    folders = tmp_path_factory.mktemp("shipped")
    for to in ("onnx", "int8"):
        model, exported = export_captioner("flickr8k", folders / to, to)
        photos = [skimage.data.astronaut(), skimage.data.cat(), skimage.data.rocket()]
        same, apart = agreement(model, exported, photos)
        assert (same, apart < 1e-4) == (3, True) if to == "onnx" else same >= 1
    return folders


def test_the_shipped_captioner_marks_what_cannot_be_trusted_without_torch(shipped, patchword, tmp_path):
    photos = {
        "astronaut": skimage.data.astronaut(),
        "coffee": skimage.data.coffee(),
        "cat": skimage.data.cat(),
    }
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in photos]
    own = [json.loads(line) for line in patchword("caption", *files, "--json")[1].splitlines()]
    script = (
        "import sys\nfrom patchword.tasks.caption.exported import ExportedCaptioner\n"
        "for one in ExportedCaptioner(sys.argv[1]).caption(sys.argv[2:]):\n"
        "    print(one.text, one.unsure, [concept.word for concept in one.named], sep='|')\n"
        "assert 'torch' not in sys.modules"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, shipped / "onnx", *files], capture_output=True, text=True, check=True
    )
    for line, one in zip(told.stdout.splitlines(), own, strict=True):
        text, unsure, named = line.split("|")
        assert unsure == str(one["unsure"]) and named == str([concept["word"] for concept in one["concepts"]])
        assert not one["unsure"] or text == one["caption"]
    status, out, _ = patchword("caption", *files, "--model", shipped / "onnx")
    assert status == 0 and out.count("\tunsure: ") == sum(one["unsure"] for one in own) > 0


def test_weights_of_eight_bits_take_less_room(shipped):
    sizes = [sum(path.stat().st_size for path in (shipped / to).iterdir()) for to in ("onnx", "int8")]
    assert sizes[1] < 0.7 * sizes[0]


def test_what_an_export_cannot_do_is_refused(shipped, patchword, tmp_path):
    exported = ExportedCaptioner(shipped / "onnx")
    for options in (DecodingOptions(mention=("dog",)), DecodingOptions(dtype="bfloat16")):
        with pytest.raises(ConfigError, match="use the model that it was made of"):
            exported.caption([skimage.data.cat()], options=options)
    with pytest.raises(ConfigError, match="max_length is 900, and the model has positions for"):
        exported.caption([skimage.data.cat()], options=DecodingOptions(max_length=900))
    with pytest.raises(ConfigError, match="captions have 20 tokens at most"):
        exported.caption([skimage.data.cat()], options=DecodingOptions(min_length=200))
    with pytest.raises(ConfigError, match="is exported and runs on the processor: leave device 'meta' out"):
        load(shipped / "onnx", "meta")
    status, _, err = patchword("export", "easy-vqa", "--out", tmp_path / "no")
    assert status == 2 and "export is for models of tasks caption and retrieve" in err
    assert not (tmp_path / "no").exists()


def test_a_graph_that_would_say_something_else_is_not_kept(monkeypatch, patchword, tmp_path):
    """Scores that are written into a buffer are constants to what writes the graph."""
    folder = save(CAPTIONERS["show_attend_tell"], tmp_path / "model")
    monkeypatch.setattr("patchword.layers.additive.torch.jit.is_tracing", lambda: False)
    status, _, err = patchword("export", folder, "--out", tmp_path / "onnx")
    assert status == 2 and "is another than the model's" in err and not (tmp_path / "onnx").exists()


def test_a_damaged_export_says_so(shipped, tmp_path):
    for file, content in (("words.onnx", b"nothing"), ("exported.json", b"{}"), ("exported.json", b"[")):
        copy = tmp_path / f"copy {len(list(tmp_path.iterdir()))}"
        shutil.copytree(shipped / "int8", copy)
        (copy / file).write_bytes(content)
        with pytest.raises(ModelError, match="export (the model|one) anew") as told:
            ExportedCaptioner(copy)
        assert str(copy) in str(told.value)


def test_an_export_of_another_model_is_named(shipped, patchword, tmp_path):
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers" / "exported.json").write_text('{"task": "retrieve", "identity": "x"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    status, _, err = patchword("caption", tmp_path / "a.png", "--model", tmp_path / "towers")
    assert status == 2 and "is an export of a model of task retrieve, and a captioner is needed" in err
    with pytest.raises(ModelError, match="is an export, which `caption --model` and `search --model` run"):
        patchword_package.load(shipped / "int8")
    status, _, err = patchword("search", tmp_path, "a dog", "--model", shipped / "int8")
    assert status == 2 and "is an export of a model of task caption, and two towers are needed" in err
