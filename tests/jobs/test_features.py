"""Stored features stand for the frozen tower, and for nothing else."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from patchword.composed import CaptionModel, build_tower
from patchword.data.captions import FeatureInputs, Inputs, PixelInputs
from patchword.data.pictures import Preprocessing
from patchword.data.store import Store, pixel_store, write_store
from patchword.errors import ConfigError, DataError, StoreError, WriteError
from patchword.jobs.features import Pictures, StoreOptions, store_features
from patchword.models.captioners.show_attend_tell import ShowAttendTellConfig
from patchword.towers.settings import ConvolutionalConfig
from patchword.train.settings import StageSettings

FILES = ["astronaut.png", "coffee.png", "chelsea.png"]
PREPROCESSING = Preprocessing(size=32)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in FILES:
        Image.fromarray(getattr(photographs, name.removesuffix(".png"))()).save(folder / name)
    return folder


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ShowAttendTellConfig(word_width=8, width=8, attention_width=8)
    return CaptionModel.build(
        ConvolutionalConfig(stem=4, widths=(8, 8), blocks=(0, 0), size=32), config, 12
    ).eval()


def stored(model, images, out, until_layer=None):
    return store_features(
        model.tower,
        Pictures(images, FILES, PREPROCESSING),
        out,
        torch.device("cpu"),
        lambda count: None,
        StoreOptions(until_layer),
    )


def test_store_equals_pixels_after_the_same_cast(model, images, tmp_path):
    """Loss from the store is the loss from the pictures, bit for bit, when the tower's output goes through
    fp16.
    """
    store = stored(model, images, tmp_path / "store")
    pixels = PixelInputs(
        pixel_store(images, FILES, PREPROCESSING, tmp_path / "cache"), PREPROCESSING, None
    ).load(FILES, None)
    read = FeatureInputs(Store.open(store.folder)).load(FILES, None)
    with torch.inference_mode():
        grid_BNC = model.features(pixels).grid_BNC
        assert torch.equal(grid_BNC.half().float(), model.features(read).grid_BNC)
    assert read.features.hw == (4, 4)


@pytest.mark.parametrize("until", [0, 1])
def test_tokens_inside_the_tower_go_on(model, images, tmp_path, until):
    store = stored(model, images, tmp_path / "store", until)
    pixels = PixelInputs(
        pixel_store(images, FILES, PREPROCESSING, tmp_path / "cache"), PREPROCESSING, None
    ).load(FILES, None)
    with torch.inference_mode():
        whole, resumed = model.features(pixels), model.features(FeatureInputs(store).load(FILES, None))
    assert resumed.hw == whole.hw
    torch.testing.assert_close(resumed.grid_BNC, whole.grid_BNC, atol=2e-2, rtol=2e-2)


def test_stale_partial_and_foreign_stores_are_errors(model, images, tmp_path):
    store = stored(model, images, tmp_path / "store")
    with pytest.raises(StoreError, match="is stale: its tower is"):
        Store.open(store.folder, {"tower": "another"})
    with pytest.raises(StoreError, match="has no row for other.png"):
        store.rows(["other.png"])
    with pytest.raises(ConfigError, match="stored features are 5 wide and the tower 8"):
        model.features(
            Inputs(
                features=FeatureInputs(store)
                .load(FILES, None)
                .features._replace(grid_BNC=torch.zeros(3, 16, 5))
            )
        )
    np.save(store.folder / "grid_BNC.npy", np.zeros((3, 2, 8), dtype=np.float16))
    with pytest.raises(StoreError, match="has shape .* the manifest says"):
        Store.open(store.folder)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match="was interrupted while it was written"):
        Store.open(store.folder)
    with pytest.raises(StoreError, match="holds no store"):
        Store.open(tmp_path / "nothing")


def test_a_store_of_tokens_outlives_the_training_of_what_is_above_it(model, images, tmp_path):
    from patchword.checkpoints.towers import stored_digest

    store, whole = stored(model, images, tmp_path / "tokens", 1), stored(model, images, tmp_path / "grid")
    with torch.no_grad():
        model.tower.layers[1][0].branch[0][0].weight.add_(1)
    store.check({"tower": stored_digest(model.tower, 1)})
    with pytest.raises(StoreError, match="is stale: its tower is"):
        whole.check({"tower": stored_digest(model.tower, None)})
    with torch.no_grad():
        model.tower.layers[0][0].branch[0][0].weight.add_(1)
    with pytest.raises(StoreError, match="is stale: its tower is"):
        store.check({"tower": stored_digest(model.tower, 1)})


def test_pixel_cache_notices_a_changed_picture(images, tmp_path):
    first = pixel_store(images, FILES, PREPROCESSING, tmp_path / "cache")
    assert pixel_store(images, FILES, PREPROCESSING, tmp_path / "cache").folder == first.folder
    changed = tmp_path / "images"
    changed.mkdir()
    for name in FILES:
        (changed / name).write_bytes((images / name).read_bytes())
    Image.fromarray(photographs.rocket()).save(changed / "coffee.png")
    assert pixel_store(changed, FILES, PREPROCESSING, tmp_path / "cache").folder != first.folder


def test_manifest_names_everything(model, images, tmp_path):
    store = stored(model, images, tmp_path / "store")
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert {"tower", "preprocessing", "files", "fields", "pictures", "until_layer", "hw"} <= set(manifest)
    assert manifest["files"] == FILES and manifest["fields"]["grid_BNC"] == [3, 16, 8]


def test_random_views_are_drawn_in_training_and_never_in_evaluation(model, images, tmp_path):
    store = store_features(
        model.tower,
        Pictures(images, FILES, PREPROCESSING),
        tmp_path / "store",
        torch.device("cpu"),
        lambda count: None,
        StoreOptions(views=3),
    )
    inputs = FeatureInputs(store)
    plain_BNC = inputs.load(FILES, None).features.grid_BNC
    assert torch.equal(
        plain_BNC, FeatureInputs(stored(model, images, tmp_path / "one")).load(FILES, None).features.grid_BNC
    )
    drawn = [inputs.load(FILES, torch.Generator().manual_seed(seed)).features.grid_BNC for seed in range(8)]
    assert torch.equal(drawn[0], inputs.load(FILES, torch.Generator().manual_seed(0)).features.grid_BNC)
    seen = {tuple(grid_NC[0].tolist()) for grid_BNC in drawn for grid_NC in grid_BNC[:1]}
    assert len(seen) == 3 and tuple(plain_BNC[0, 0].tolist()) in seen  # 8 draws of 3 views: all of them came


def test_one_pass_stores_the_features_and_the_tokens_that_go_on(model, images, tmp_path):
    from patchword.train.data import stored_inputs

    grid, tokens = stored(model, images, tmp_path / "grid"), stored(model, images, tmp_path / "tokens", 1)
    out, cpu = tmp_path / "both", torch.device("cpu")
    both = store_features(
        model.tower,
        Pictures(images, FILES, PREPROCESSING),
        out,
        cpu,
        lambda count: None,
        StoreOptions(1, with_features=True, batch=2),
    )
    still, learning_stages = (
        [StageSettings(name="only", epochs=1, batch=2, learning_rates={"": 1e-3, "tower": rate})]
        for rate in (0.0, 1e-3)
    )
    assert set(both.fields) == {"grid_BNC", "tokens"} and both.manifest["until_layer"] == 1
    np.testing.assert_allclose(both.fields["grid_BNC"], grid.fields["grid_BNC"], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(both.fields["tokens"], tokens.fields["tokens"], rtol=2e-3, atol=1e-3)
    frozen = stored_inputs(both.folder, model.tower, PREPROCESSING, still).load(FILES, None)
    assert frozen.features is not None and frozen.tokens is None
    upper = ConvolutionalConfig(stem=4, widths=(8, 8), blocks=(0, 0), size=32, trainable_from=1)
    learning = build_tower(upper)
    learning.load_state_dict(model.tower.state_dict())
    with torch.no_grad():
        learning.layers[1][0].branch[0][0].weight.add_(1)
    resumed = stored_inputs(both.folder, learning, PREPROCESSING, learning_stages).load(FILES, None)
    assert resumed.tokens is not None and resumed.features is None and resumed.first_layer == 1
    with pytest.raises(StoreError, match="is stale: its tower is"):
        stored_inputs(both.folder, learning, PREPROCESSING, still)
    with pytest.raises(
        ConfigError, match="replaces the tower's layers below 1, and a stage trains it from layer 0 on"
    ):
        stored_inputs(both.folder, model.tower, PREPROCESSING, learning_stages)


def test_mirrored_views_are_the_features_of_mirrored_pictures(model, images, tmp_path):
    store = store_features(
        model.tower,
        Pictures(images, FILES, PREPROCESSING),
        tmp_path / "store",
        torch.device("cpu"),
        lambda count: None,
        StoreOptions(mirror=True),
    )
    pixels_B3HW = torch.from_numpy(
        PREPROCESSING.normalise(np.stack([PREPROCESSING.apply(Image.open(images / name)) for name in FILES]))
    )
    with torch.inference_mode():
        mirrored_BNC = model.tower(pixels_B3HW.flip(3)).grid_BNC.half().numpy()
    rows = store.rows([f"{name}//1" for name in FILES])
    assert store.manifest["views"] == 2
    np.testing.assert_array_equal(store.fields["grid_BNC"][rows], mirrored_BNC)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_altered_arrays_and_manifests_are_noticed(model, images, tmp_path):
    store = stored(model, images, tmp_path / "store")
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "files": FILES[::-1]}))
    with pytest.raises(
        StoreError, match=r"manifest\.json was altered after it was written.*make the store again"
    ):
        Store.open(store.folder)
    path.write_text(json.dumps(manifest))
    assert Store.open(store.folder).check_files() == ["grid_BNC"]
    flip_last_byte(store.folder / "grid_BNC.npy")
    with pytest.raises(StoreError, match=r"grid_BNC\.npy is damaged.*make the store again"):
        Store.open(store.folder)


def test_a_store_of_the_first_format_opens(model, images, tmp_path):
    store = stored(model, images, tmp_path / "store")
    manifest = json.loads((store.folder / "manifest.json").read_text())
    first = {name: value for name, value in manifest.items() if name not in ("digest", "digests")}
    (store.folder / "manifest.json").write_text(json.dumps({**first, "format": 1}))
    again = Store.open(store.folder)
    assert again.check_files() == [] and np.array_equal(again.fields["grid_BNC"], store.fields["grid_BNC"])


def test_no_space_is_one_error_and_the_old_store_stays(model, images, tmp_path, small_disk):
    store = stored(model, images, tmp_path / "store")
    before = store.fields["grid_BNC"].tobytes()
    with small_disk(300), pytest.raises(WriteError, match="store cannot be written"):
        stored(model, images, tmp_path / "store")
    assert Store.open(store.folder).fields["grid_BNC"].tobytes() == before
    assert names_in(tmp_path) == ["store"]
    assert stored(model, images, tmp_path / "store").fields["grid_BNC"].tobytes() == before


def test_space_is_taken_before_the_pictures_are_looked_at(model, images, tmp_path, monkeypatch):
    """A disk that cannot hold the store is noticed at the first batch, not at the last."""
    done = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(WriteError, match="the disk is full: free some space .*are needed and .* are free"):
        store_features(
            model.tower,
            Pictures(images, FILES, PREPROCESSING),
            tmp_path / "s",
            torch.device("cpu"),
            done.append,
            StoreOptions(batch=1),
        )
    assert not done and names_in(tmp_path) == []


def test_a_read_only_folder_is_one_error_before_anything_is_made(read_only):
    made = iter([{"grid_BNC": np.zeros((1, 2, 3), dtype=np.float16)}])
    with pytest.raises(WriteError, match="writing is not allowed there"):
        write_store(read_only / "store", ["a.jpg"], {}, made, lambda count: None)
    assert next(made) is not None
    assert names_in(read_only) == ["kept.json"]


def test_what_a_killed_command_left_is_removed(model, images, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"store.partial-{ended.pid}").mkdir()
    stored(model, images, tmp_path / "store")
    assert names_in(tmp_path) == ["store"]


@pytest.mark.parametrize(
    "files",
    [
        {"manifest.json": '{"name": "my web page"}'},
        {"manifest.json": "mine"},
        {"manifest.json": '{"format": 1, "files": []}', "only-copy.jpg": "picture"},
        {"grid.npy": "numbers of my own"},
    ],
)
def test_kind_2_a_folder_that_looks_like_a_store_is_kept(model, images, tmp_path, files):
    (tmp_path / "mine").mkdir()
    for name, content in files.items():
        (tmp_path / "mine" / name).write_text(content)
    with pytest.raises(WriteError, match="mine exists and is no store"):
        stored(model, images, tmp_path / "mine")
    assert {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()} == files


def test_a_folder_that_is_no_store_is_never_replaced(model, images, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "only-copy.jpg").write_bytes(b"picture")
    with pytest.raises(WriteError, match="photos exists and is no store"):
        stored(model, images, tmp_path / "photos")
    assert names_in(tmp_path / "photos") == ["only-copy.jpg"]


@pytest.mark.parametrize("options", [{}, {"views": 2}, {"mirror": True}, {"batch": 1}], ids=str)
def test_kind_4_a_picture_that_cannot_be_read_is_listed_and_the_others_keep_their_rows(
    model, images, tmp_path, options
):
    """The store of three good pictures among three that cannot be read has the rows of the good ones alone,
    in order, also where the first batch holds no good one."""
    for name in FILES:
        (tmp_path / name).write_bytes((images / name).read_bytes())
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes((images / FILES[0]).read_bytes()[:3000])
    mixed = ["a.jpg", FILES[0], "b.jpg", FILES[1], "gone.jpg", FILES[2]]
    heard = []

    def store(files, out):
        unreadable = lambda name, error: heard.append((name, str(error)))  # noqa: E731
        there = (model.tower, Pictures(tmp_path, files, PREPROCESSING), tmp_path / out, torch.device("cpu"))
        return store_features(*there, lambda count: None, StoreOptions(**options), unreadable)

    found, good = store(mixed, "mixed"), store(FILES, "good")
    assert [name for name, _ in heard] == ["a.jpg", "b.jpg", "gone.jpg"]
    assert "0 bytes" in heard[0][1] and "does not exist" in heard[2][1]
    assert found.manifest["files"] == good.manifest["files"]
    assert found.manifest["left_out"] == dict(heard) and found.manifest["pictures"] != ""
    for name, rows in good.fields.items():
        assert found.fields[name].shape == rows.shape
        assert np.allclose(found.fields[name].astype(np.float32), rows.astype(np.float32), atol=2e-3)
    assert sorted(found.check_files()) == sorted(found.fields)
    with pytest.raises(StoreError, match="no row for b.jpg, which could not be read when it was made"):
        found.rows(["b.jpg"])


def test_kind_4_no_picture_at_all_is_an_error_and_leaves_no_store(model, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        there = (
            model.tower,
            Pictures(tmp_path, ["a.jpg"], PREPROCESSING),
            tmp_path / "out",
            torch.device("cpu"),
        )
        store_features(*there, lambda count: None, unreadable=lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_kind_9_the_command_counts_what_it_stored(images, tmp_path, run_patchword):
    """Not what it was asked to store; and the exit status says that something was lost."""
    for name in FILES:
        (tmp_path / name).write_bytes((images / name).read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    rows = "".join(f"{name},a thing\n" for name in (*FILES, "broken.jpg"))
    (tmp_path / "mine.csv").write_text(f"image,caption\n{rows}")
    (tmp_path / "tower.toml").write_text(TOWER.format(folder=tmp_path))
    command = ("features", tmp_path / "tower.toml", "--data", tmp_path / "mine.csv", "--images", tmp_path)
    finished = run_patchword(*command, "--out", tmp_path / "store", "--device", "cpu")
    assert finished.returncode == 1, finished.stderr
    assert "3 pictures, 1 could not be read and are left out" in finished.stdout
    assert "broken.jpg" in finished.stderr
    assert Store.open(tmp_path / "store").manifest["files"] == FILES


TOWER = """
task = "caption"
out = "{folder}/run"
[data]
annotations = "{folder}/mine.csv"
images = "{folder}"
[tower]
kind = "convolutional"
stem = 4
widths = [8]
blocks = [0]
size = 32
[captioner]
kind = "show_tell"
"""
