"""A picture that takes too long is left out by all that read many, as a damaged one is."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from patchword.cli.filter import _hashes
from patchword.data.captions import UnreadablePictures
from patchword.data.isolated import PictureReader
from patchword.data.pictures import Preprocessing
from patchword.data.shard_inputs import ShardInputs
from patchword.data.store import pixel_store
from patchword.errors import PictureError
from patchword.jobs.rules import NearDuplicate, Pair, Readable
from patchword.tasks.retrieve.zero_shot import LabelledPictures, zero_shot
from patchword.text.templates import ClassNames

LATE = "slow.jpg: decoding takes more than 1 seconds"


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A good picture, and a progressive JPEG of 7,000 x 7,000 pixels and 90 scans: within the bounds, and many
    seconds of work."""
    made = tmp_path_factory.mktemp("pictures")
    (made / "good.png").write_bytes(encoded(Image.effect_noise((40, 30), 60).convert("RGB"), "PNG"))
    content = encoded(Image.new("L", (7_000, 7_000), 90), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    (made / "slow.jpg").write_bytes(content[:last] + content[last:-2] * 80 + content[-2:])
    return made


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(PictureReader.__init__, "__defaults__", (1.0, None))


def test_rules_of_filter_drop_it_with_the_reason(folder):
    pairs = [Pair(name, "a dog", (folder / name).read_bytes()) for name in ("slow.jpg", "good.png")]
    for rule in (Readable(), NearDuplicate()):
        why, other = rule(pairs)
        assert LATE in why and other is None


def test_a_test_set_is_read_without_it(folder, capsys):
    with PictureReader() as reader:
        assert len(_hashes(folder, reader)) == 1
    assert LATE in capsys.readouterr().err


def test_zero_shot_counts_it_as_unreadable(folder):
    towers = SimpleNamespace(
        embed_texts=lambda texts: np.ones((len(texts), 2)), embed_images=lambda pictures: np.ones((len(pictures), 2))
    )
    found = LabelledPictures([folder / "slow.jpg", folder / "good.png"], [0, 0], [])
    errors = []
    result = zero_shot(towers, found, [ClassNames("dog", ("dog",))], ["a {}"], errors.append)
    assert (result.pictures, result.unreadable) == (1, 1) and LATE in str(errors[0])


def test_a_training_from_shards_leaves_it_out(folder, capsys):
    inputs = ShardInputs(folder, 8, Preprocessing(size=8), None)
    with pytest.raises(UnreadablePictures):
        inputs.load(["good.png", "slow.jpg"], None)
    assert LATE in inputs.bad["slow.jpg"] and "left out" in capsys.readouterr().err
    assert inputs.load(["good.png", "good.png"], None).pixels_B3HW.shape == (2, 3, 8, 8)


def test_a_training_from_files_names_it(folder, tmp_path):
    with pytest.raises(PictureError, match=LATE):
        pixel_store(folder, ["good.png", "slow.jpg"], Preprocessing(size=8), tmp_path / "cache")
