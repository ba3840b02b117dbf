import io
import json

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.composed import CaptionModel
from patchword.data.pictures import Preprocessing
from patchword.errors import ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.prototypes import PrototypeConfig
from patchword.models.captioners.caption_transformer import CaptionTransformerConfig, RegionAlignmentConfig
from patchword.tasks.caption.load import load
from patchword.tasks.caption.model import CaptioningModel, ModelSettings
from patchword.tasks.caption.options import DecodingSettings
from patchword.tasks.caption.prototypes import read_prototypes
from patchword.text.words import Vocabulary
from patchword.towers.convolutional import ConvolutionalConfig

VOCABULARY = Vocabulary.build(["a dog in the snow"], minimum_count=1)


def model(placement, alignment=None):
    tower = ConvolutionalConfig(stem=8, widths=(8,), blocks=(0,), size=16, shared_width=6)
    memory = None if placement is None else PrototypeConfig(placement=placement, count=3)
    captioner = CaptionTransformerConfig(
        width=16,
        heads=2,
        hidden=16,
        encoder_layers=1,
        decoder_layers=1,
        max_positions=12,
        memory=memory,
        region_alignment=alignment,
    )
    codebook = None if alignment is None else Codebook(["tree", "sky"], torch.eye(2, 6), "tower")
    settings = ModelSettings(
        tower=tower,
        captioner=captioner,
        preprocessing=Preprocessing(
            size=16, fit="squash", interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
        ),
        decoding=DecodingSettings(beams=1, max_length=6),
        vocabulary_size=VOCABULARY.size,
        codebook=None if codebook is None else codebook.describe(),
    )
    built = CaptionModel.build(tower, captioner, VOCABULARY.size, codebook)
    return CaptioningModel(built, settings, VOCABULARY, ModelFacts(name="tiny"), torch.device("cpu"))


def remember(captioning, *contexts):
    """The first prototype is alive, and these are its contexts."""
    memory = captioning.model.captioner.memory
    memory.live_LM[0, 0] = True
    memory.sizes_LM[0, 0] = 5
    for number, context in enumerate(contexts):
        memory.contexts_LMKW[0, 0, number, : len(context)] = torch.tensor(context, dtype=torch.int32)


def test_contexts_are_what_was_said(tmp_path, capsys):
    from patchword.cli.memory import memory as show

    captioning, start = model("self_concat"), VOCABULARY.special.start
    remember(captioning, [start, *VOCABULARY.encode("a dog in")])
    captioning.save(tmp_path / "m")
    described = json.loads((tmp_path / "m" / "prototypes.json").read_text(encoding="utf-8"))
    first, second, _ = described["layers"][0]
    assert first["alive"] and first["bank_share"] == 1 and first["contexts"] == ["a dog in"]
    assert not second["alive"] and second["contexts"] == []
    show(tmp_path / "m", layer=None, top=5, as_json=False)
    assert "a dog in" in capsys.readouterr().out
    again = load(tmp_path / "m", "cpu")
    again.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "prototypes.json").read_text(encoding="utf-8")) == described


def test_a_loaded_model_knows_them(tmp_path):
    captioning, start = model("self_concat"), VOCABULARY.special.start
    remember(captioning, [start, *VOCABULARY.encode("a dog in")])
    captioning.save(tmp_path / "m")
    loaded = load(tmp_path / "m", "cpu")
    assert loaded.prototype_captions == {0: ("a dog in",)}
    loaded.save(tmp_path / "again")
    for file in ("config.json", "README.md"):
        assert "prototype_captions" not in (tmp_path / "again" / file).read_text(encoding="utf-8")
    said = loaded.caption(np.zeros((16, 16, 3), np.uint8))
    assert all(index == 0 for word in said.prototypes for index, share in word if share > 0), (
        "only this one is alive"
    )
    words = loaded.stream(np.zeros((16, 16, 3), np.uint8), trace=True)
    streamed = []
    while True:
        try:
            streamed.append(next(words))
        except StopIteration as ended:
            whole = ended.value
            break
    assert tuple(streamed) == whole.tokens == said.tokens and whole.prototypes == said.prototypes
    assert (
        whole.log_probability == pytest.approx(said.log_probability, abs=1e-5)
        and whole.complete == said.complete
    )


def test_what_made_a_word_reaches_report_and_service(tmp_path):
    """A model with alignment and memory, end to end: patches, concepts of those patches, prototypes with
    their nearest contexts.
    """
    from patchword.cli.caption import caption

    captioning, start = (
        model("self_concat", RegionAlignmentConfig(layers=1, contrast_width=0)),
        VOCABULARY.special.start,
    )
    dog, snow = ([start, *VOCABULARY.encode(said)] for said in ("a dog in", "the snow"))
    remember(captioning, dog, dog, snow)
    captioning.save(tmp_path / "m")
    Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 64, 3)).save(
        tmp_path / "a.png"
    )
    loaded = load(tmp_path / "m", "cpu")
    said = loaded.caption(tmp_path / "a.png")
    assert (
        said.tokens
        and said.contexts == {0: ("a dog in", "the snow")}
        and set(said.concepts) <= {"tree", "sky"}
    )
    with Image.open(io.BytesIO(said.picture)) as carried:
        assert carried.size == (64, 48), "squashed, not cut: all of the picture is kept"
    for file in ("page.html", "figure.svg"):
        with pytest.raises(typer.Exit) as ended:
            caption(
                [str(tmp_path / "a.png")],
                model=str(tmp_path / "m"),
                explain=tmp_path / file,
                device="cpu",
                batch=1,
            )
        assert ended.value.exit_code == 0
    page, figure = ((tmp_path / file).read_text(encoding="utf-8") for file in ("page.html", "figure.svg"))
    assert (
        page.count("<q>a dog in</q>") == len(said.tokens)
        and "concepts of its patches" in page
        and "<script" not in page
    )
    assert figure.count("prototype 0") == len(said.tokens)

    pytest.importorskip("fastapi", reason="the service is an extra")
    from starlette.testclient import TestClient

    from patchword.serve.app import create_app

    with TestClient(create_app({"m": loaded}), base_url="http://127.0.0.1:8321") as client:
        found = client.post("/caption?trace=1&beams=1", content=(tmp_path / "a.png").read_bytes()).json()
    assert [word[0]["captions"] for word in found["prototypes"]] == [["a dog in", "the snow"]] * len(
        said.tokens
    )
    assert found["concepts"] == list(said.concepts) and len(found["attention"]["weights"][0]) == len(
        said.concepts
    )


def test_damaged_prototypes_are_refused(tmp_path):
    model("self_concat").save(tmp_path / "m")
    (tmp_path / "m" / "prototypes.json").write_text("{")
    with pytest.raises(ModelError, match="prototypes.json is not the file that was written"):
        load(tmp_path / "m", "cpu")
    with pytest.raises(ModelError, match="prototypes.json is not JSON"):
        read_prototypes(tmp_path / "m")


@pytest.mark.parametrize("placement", ["cross_add", "sequential"])
def test_contexts_are_patches_with_their_words(tmp_path, placement):
    captioning = model(placement, RegionAlignmentConfig(layers=1, contrast_width=0))
    remember(captioning, [4, 7, 1])
    captioning.save(tmp_path / "m")
    described = json.loads((tmp_path / "m" / "prototypes.json").read_text(encoding="utf-8"))
    assert described["placement"] == placement and described["layers"][0][0]["contexts"] == ["patch 7: sky"]


def test_without_memory_there_is_no_file(tmp_path):
    model(None).save(tmp_path / "m")
    assert not (tmp_path / "m" / "prototypes.json").exists() and (tmp_path / "m" / "config.json").exists()
