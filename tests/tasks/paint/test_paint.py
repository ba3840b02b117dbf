"""Painting as a user types it: trained on drawn scenes, painted, resumed, refused; pipelines of diffusers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.cli import app
from patchword.data.scenes import write_scenes
from patchword.errors import ConfigError, DataError, ModelError, WriteError
from patchword.tasks.paint import unclip
from patchword.tasks.paint.families import Wish
from patchword.tasks.paint.marks import SOURCE_TYPE, read_facts
from patchword.tasks.paint.model import load_painter
from patchword.tasks.start import start

CONFIG = """
task = "paint"
out = "{out}"
seed = 2
checkpoint_steps = 3
log_steps = 1
sheet = 3
{data}
[text]
kind = "bert"
trainable_from = 0
[text.architecture]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
[painter]
kind = "denoiser"
size = 16
width = 16
multipliers = [1, 2]
attention_at = [8]
head_width = 8
steps = 50
drop_text = 0.2
[[stage]]
epochs = 2
batch = 16
learning_rates = {{ "" = 4e-3 }}
"""
SCENES = """
[scenes]
count = 64
selection = 8
"""


def type_in(*words: object) -> int:
    return app([str(word) for word in words], standalone_mode=False) or 0


def train(folder, config: str, *settings: str, resume: bool = False):
    path = folder / "run.toml"
    path.write_text(config)
    return start(path, settings, resume, False, "cpu", "patchword train run.toml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paint")
    return train(folder, CONFIG.format(out=folder / "run", data=SCENES))


def test_a_training_leaves_a_model_a_report_and_a_sheet_per_validation(run):
    sheets = sorted(path.name for path in (run / "sheets").iterdir())
    assert sheets == ["1-train-epoch-0001.png", "1-train-epoch-0002.png"]
    with Image.open(run / "sheets" / sheets[0]) as sheet:
        assert min(sheet.size) > 100
    report = (run / "report.html").read_text()
    assert "Painted samples" in report and report.count("data:image/jpeg") == 2
    card = (run / "best" / "README.md").read_text()
    assert "flat shapes on plain grounds" in card and "drawn scenes of level 1: 64 trained on" in card
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [event["scores"]["loss"] for event in events if event["event"] == "validation"]
    assert losses[1] < losses[0] < 1.3


def test_a_resumed_training_is_the_same_training_bit_for_bit(run, tmp_path):
    """It is stopped after the first epoch, whose checkpoint holds averaged and trained weights."""

    class Stop(Exception):
        pass

    import patchword.tasks.paint.train as module

    drawn = module.PaintTraining._draw_sheet

    def stop_in_the_second(self, stage, epoch):
        if epoch == 1:
            raise Stop
        drawn(self, stage, epoch)

    config = CONFIG.format(out=tmp_path / "run", data=SCENES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module.PaintTraining, "_draw_sheet", stop_in_the_second)
        with pytest.raises(Stop):
            train(tmp_path, config)
    resumed = train(tmp_path, config, resume=True)
    assert load_painter(resumed / "best", "cpu").identity == load_painter(run / "best", "cpu").identity


def test_paint_writes_marked_files_that_their_seed_repeats(run, tmp_path, capsys):
    words = (
        "paint",
        "a red circle",
        "--model",
        run / "best",
        "-n",
        3,
        "--steps",
        4,
        "--seed",
        7,
        "--out",
        tmp_path,
    )
    assert type_in(*words, "--grid", "--html", "--explain") == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / f"a-red-circle-{seed}.png") for seed in (7, 8, 9)]
    facts = read_facts(tmp_path / "a-red-circle-8.png")
    assert facts["generated"] is True and facts["seed"] == 8 and facts["prompt"] == "a red circle"
    with Image.open(tmp_path / "a-red-circle-8.png") as picture:
        assert picture.size == (16, 16) and SOURCE_TYPE in picture.info["c2pa.actions"]
        assert SOURCE_TYPE in picture.info["XML:com.adobe.xmp"]
        pixels = np.asarray(picture)
    painter = load_painter(run / "best", "cpu")
    alone = painter.paint("a red circle", [8], steps=4)[0]
    assert np.abs(alone.astype(int) - pixels).max() <= 1
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure>") == 3 + 3 * 5 and "These pictures are generated" in page
    assert read_facts(tmp_path / "sheet.png")["prompt"] == "a red circle"
    assert (tmp_path / "words-7.png").exists()


def test_every_line_of_a_file_is_painted_and_a_bad_line_is_listed(run, tmp_path, capsys):
    """A picture follows from its prompt and seed, whatever else is painted beside it; a second call paints
    nothing anew."""
    lines = ["a red circle", "", "xylophone", "a small blue square", *["a green star"] * 7]
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n\n")
    words = ("paint", "--prompts", tmp_path / "prompts.txt", "--model", run / "best", "--steps", 4)
    assert type_in(*words, "-n", 2, "--seed", 5, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    printed = said.out.split()
    assert len(printed) == len(set(printed)) == 2 * 9
    assert printed[2] == str(tmp_path / "out" / "0004-a-small-blue-square-11.png")
    assert "line 2 is left out: the prompt is empty" in said.err
    assert "line 3 is left out: 'xylophone' has no word that the model knows" in said.err
    facts = read_facts(Path(printed[2]))
    assert (facts["prompt"], facts["seed"]) == ("a small blue square", 11)
    with Image.open(printed[2]) as picture:
        pixels = np.asarray(picture)
    alone = load_painter(run / "best", "cpu").paint("a small blue square", [11], steps=4)[0]
    assert np.abs(alone.astype(int) - pixels).max() <= 1
    Path(printed[5]).unlink()
    before = {path: Path(path).stat().st_mtime_ns for path in printed if Path(path).exists()}
    assert type_in(*words, "-n", 2, "--seed", 5, "--out", tmp_path / "out") == 1
    assert "17 of 18 pictures were there already" in capsys.readouterr().err
    assert all(Path(path).stat().st_mtime_ns == when for path, when in before.items())
    for more, message in (
        (("a red circle",), "give either a prompt"),
        (("--rank", "two-towers"), "--rank shows one prompt"),
        (("--html",), "--html shows one prompt"),
    ):
        with pytest.raises(ConfigError, match=message):
            type_in(*words, *more, "--out", tmp_path / "other")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="is empty: expected one prompt a line"):
        type_in("paint", "--prompts", tmp_path / "empty.txt", "--out", tmp_path / "other")


def test_what_is_painted_already_is_kept_and_what_is_not_ours_is_refused(run, tmp_path):
    words = ["paint", "a star", "--model", run / "best", "--steps", 3, "--out", tmp_path]
    type_in(*words, "-n", 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    type_in(*words, "-n", 3)
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    with pytest.raises(ConfigError, match="a-star-1.png exists already and was not painted by this command"):
        type_in(*words, "-n", 3, "--guidance", 3)
    type_in(*words, "-n", 3, "--guidance", 3, "--overwrite")
    assert read_facts(tmp_path / "a-star-1.png")["guidance"] == 3


def test_a_full_disk_keeps_what_is_done_and_the_command_goes_on(run, tmp_path, monkeypatch):
    import patchword.tasks.paint.paint as module

    monkeypatch.setattr(module, "AT_ONCE", 1)
    whole = module.write_bytes

    def full_after_two(path, content):
        if len(list(tmp_path.iterdir())) == 2:
            raise WriteError(f"{path} cannot be written: the disk is full: free some space")
        whole(path, content)

    words = ["paint", "a star", "--model", run / "best", "--steps", 3, "-n", 4, "--out", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_bytes", full_after_two)
        with pytest.raises(WriteError, match="the disk is full"):
            type_in(*words)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(done) == 2
    type_in(*words)
    assert len(list(tmp_path.iterdir())) == 4 and all(
        path.stat().st_mtime_ns == at for path, at in done.items()
    )


def test_guidance_and_text_count_and_one_and_zero_are_exact(run):
    painter = load_painter(run / "best", "cpu")

    def draw(text, guidance):
        return painter.draw([text], Wish([3], guidance, 5))

    assert torch.equal(draw("a red circle", 0.0), draw("a blue star", 0.0))
    assert torch.allclose(draw("a red circle", 0.0), draw("", 1.0), atol=1e-3)  # the same but for padding
    assert not torch.equal(draw("a red circle", 1.0), draw("a blue star", 1.0))
    both, conditional, nothing = draw("a red circle", 3.0), draw("a red circle", 1.0), draw("", 1.0)
    assert not torch.equal(both, conditional) and not torch.equal(both, nothing)


def test_bad_prompts_and_wishes_are_told(run, tmp_path, capsys):
    paint = ("paint", "--model", run / "best", "--steps", 2, "-n", 1, "--out", tmp_path)
    with pytest.raises(DataError, match="the prompt is empty: say what to paint"):
        type_in(*paint, "  ")
    with pytest.raises(DataError, match="'zebra' has no word that the model knows"):
        type_in(*paint, "zebra")
    type_in(*paint, "a red zebra " + "star " * 30)
    told = capsys.readouterr().err
    assert "the model never learnt zebra, and takes no notice of it; it knows: " in told
    assert "the prompt has 33 words and the model reads 24: the last 9 are left out" in told
    with pytest.raises(ConfigError, match="steps is 99, and the model's schedule has 1 to 50"):
        type_in("paint", "a star", "--model", run / "best", "--steps", 99, "--out", tmp_path)
    with pytest.raises(ConfigError, match="holds bytes that are no UTF-8"):
        type_in(*paint, "a red star \udce9")
    painter = load_painter(run / "best", "cpu")
    for seeds in ([-1], [2**70], [1.5], []):
        with pytest.raises(ConfigError, match="seed"):
            painter.paint("a red star", seeds, steps=1)
    for guidance in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="guidance is"):
            painter.paint("a red star", [1], guidance, steps=1)
    with pytest.raises(DataError, match="expected a text, found None"):
        painter.paint(None, [1], steps=1)
    # Said before anything is painted.
    with pytest.raises(ConfigError, match="paints from the text alone and enlarges nothing"):
        type_in("paint", "a star", "--model", run / "best", "--enlarge", run / "best", "--out", tmp_path)
    with pytest.raises(ModelError, match="is a model for 'caption'"):
        load_painter("flickr8k", "cpu")


def test_guidance_is_refused_where_no_text_was_left_out(tmp_path):
    run = train(
        tmp_path, CONFIG.format(out=tmp_path / "run", data=SCENES), "painter.drop_text=0", "stage.0.epochs=1"
    )
    painter = load_painter(run / "best", "cpu")
    assert painter.paint("a star", [1], steps=2).shape == (1, 16, 16, 3)
    with pytest.raises(ConfigError, match="guidance is 2, and this model was trained without left-out texts"):
        painter.paint("a star", [1], guidance=2.0, steps=2)


def test_it_trains_on_captioned_pictures_with_all_parts(tmp_path):
    """A learnt variance, v as target, and the frozen text tower of two towers."""
    for split, count in (("train", 24), ("val", 8)):
        write_scenes(tmp_path / "data", count, size=24, split=split, captions=2)
    data = f'[data]\nannotations = "{tmp_path}/data/dataset.json"\nimages = "{tmp_path}/data/images"\n'
    data += f'cache = "{tmp_path}/cache"\nminimum_count = 1\n'
    config = CONFIG.format(out=tmp_path / "run", data=data)
    head, _, rest = config.partition("[text]")
    config = (
        head.replace("sheet = 3", 'sheet = 3\ntext_from = "two-towers"')
        + "[painter]"
        + rest.partition("[painter]")[2]
    )
    run = train(
        tmp_path, config, "painter.learnt_variance=true", 'painter.target="velocity"', "stage.0.epochs=1"
    )
    painter = load_painter(run / "best", "cpu")
    assert painter.paint("two dogs", [1], steps=3).shape == (1, 16, 16, 3)
    ancestral = painter.draw(["two dogs"], Wish([1], steps=3, ancestral=True))
    assert ancestral.shape == (1, 3, 16, 16) and ancestral.isfinite().all()
    names = {name for name, parameter in painter.model.named_parameters() if name.startswith("text.")}
    assert names


def test_unclip_trains_prior_and_decoder_in_stages_of_one_run(tmp_path):
    """Over the shipped towers: each stage moves its own part alone, and what is saved paints and varies."""
    config = CONFIG.format(out=tmp_path / "run", data=SCENES).replace(
        "sheet = 3", 'sheet = 3\ntext_from = "two-towers"'
    )
    decoder = "size = 16\nwidth = 16\nmultipliers = [1, 2]\nattention_at = [8]\nhead_width = 8\nsteps = 50\n"
    painter = f'[painter]\nkind = "unclip"\n[painter.prior]\nwidth = 16\nlayers = 1\nsteps = 50\n[painter.decoder]\n{decoder}'
    stages = "".join(
        f'[[stage]]\nname = "{name}"\nepochs = 1\nbatch = 16\nlearning_rates = {{ "" = 0, "painter.{name}" = 1e-2 }}\n'
        for name in ("prior", "decoder")
    )
    config = config.partition("[text]")[0] + painter + "picture_width = 256\n" + stages
    run = train(tmp_path, config)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, second = ([event for event in events if event["stage"] == name] for name in ("prior", "decoder"))
    assert "cosine" in first[0]["losses"] and "squared_error" in second[0]["losses"]
    painter = load_painter(run / "checkpoints" / "last", "cpu")
    assert painter.paint("a red circle", [1, 2], steps=3).shape == (2, 16, 16, 3)
    nothing = painter.tell(["", ""])
    varied = unclip.vary(painter.model, nothing, torch.rand(2, 3, 16, 16) * 2 - 1, Wish([1, 2], steps=3))
    assert varied.shape == (2, 3, 16, 16)
    ends = (torch.rand(1, 3, 16, 16) * 2 - 1, torch.rand(1, 3, 16, 16) * 2 - 1)
    way = unclip.blend(painter.model, painter.tell([""] * 3), ends, (0.0, 0.5, 1.0), Wish([1] * 3, steps=3))
    for place, end in ((0, ends[0]), (2, ends[1])):
        alone = unclip.vary(painter.model, painter.tell([""]), end, Wish([1], steps=3))
        assert torch.allclose(way[place], alone[0], atol=1e-4)
    assert not torch.allclose(way[1], way[0], atol=1e-3) and not torch.allclose(way[1], way[2], atol=1e-3)
    narrow = config.replace("picture_width = 256", "picture_width = 16").replace("/run", "/narrow")
    with pytest.raises(ConfigError, match="picture_width is 16, and the space of the two towers is 256 wide"):
        train(tmp_path, narrow)
    text = "[text]\nkind = 'bert'\n[text.architecture]\nhidden_size = 16\nnum_attention_heads = 2\n"
    with pytest.raises(ConfigError, match="works in the space of two towers: name them by text_from"):
        train(tmp_path, config.replace('text_from = "two-towers"', "") + text)


def test_latent_diffusion_over_an_autoencoder_of_diffusers(tmp_path):
    """Latents have variance one, the scale is saved, and the autoencoder goes back to diffusers as it came."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
    made.save_pretrained(tmp_path / "codec")
    config = CONFIG.format(out=tmp_path / "run", data=f'codec = "{tmp_path}/codec"\n{SCENES}')
    steady = 'painter.target="velocity"'
    settings = (
        "painter.size=8",
        "painter.channels=4",
        steady,
        "painter.attention_at=[4]",
        "stage.0.epochs=1",
    )
    run = train(tmp_path, config, *settings)
    painter = load_painter(run / "best", "cpu")
    assert painter.size == 16 and painter.paint("a red circle", [1, 2], steps=3).shape == (2, 16, 16, 3)
    codec = painter.model.codec
    pictures = torch.rand(32, 3, 16, 16) * 2 - 1
    codec.measure(pictures)
    latents = codec.encode(pictures)
    assert latents.shape == (32, 4, 8, 8) and latents.std().item() == pytest.approx(1, rel=1e-3)
    expected = made.decode(made.encode(pictures).latent_dist.mean).sample
    assert torch.allclose(codec.decode(latents), expected, atol=1e-5)
    codec.autoencoder.save_pretrained(tmp_path / "back")
    back = AutoencoderKL.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in made.state_dict().items())
    with pytest.raises(ConfigError, match="painter.channels is 3, and the codec's latents have 4"):
        train(tmp_path, config.replace("/run", "/run2"), settings[0], *settings[2:4])
    with pytest.raises(ConfigError, match='nothing bounds latents: set painter.target = "velocity"'):
        train(tmp_path, config.replace("/run", "/run3"), *settings[:2], settings[3])
    kept_by_another = (*settings[:2], settings[3], 'painter.schedule="scaled_linear"', "painter.steps=1000")
    train(tmp_path, config.replace("/run", "/run4"), *kept_by_another, "stage.0.epochs=1")


def test_a_cascade_enlarges_what_another_model_painted(run, tmp_path):
    """The second step sees the first one's picture: another one gives another result."""
    config = CONFIG.format(out=tmp_path / "run", data=SCENES.replace("64", "32"))
    settings = (
        "painter.size=32",
        "painter.attention_at=[16]",
        "painter.small_size=16",
        "painter.small_noise=0.2",
        "stage.0.epochs=1",
    )
    second = train(tmp_path, config, *settings) / "best"
    words = (
        "paint",
        "a red circle",
        "--model",
        run / "best",
        "--steps",
        2,
        "-n",
        1,
        "--out",
        tmp_path / "out",
    )
    assert type_in(*words, "--enlarge", second) == 0
    with Image.open(tmp_path / "out" / "a-red-circle-1.png") as picture:
        assert picture.size == (32, 32)
    model = load_painter(second, "cpu")
    dark, light = (np.full((1, 16, 16, 3), value, np.uint8) for value in (10, 240))
    assert (model.enlarge("a star", dark, [1], steps=2) != model.enlarge("a star", light, [1], steps=2)).any()
    with pytest.raises(
        ConfigError, match="this model enlarges pictures of another one: name it by --enlarge"
    ):
        model.paint("a star", [1])
    with pytest.raises(ConfigError, match="enlarges nothing: it was trained without painter.small_size"):
        load_painter(run / "best", "cpu").enlarge("a star", dark, [1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("", "exactly one of data and scenes is needed; found none"),
        ("[scenes]\nlevels = [4]\n", "scenes.levels has 4: expected 1, 2 or 3"),
        ("[scenes]\nstyles = [9]\n", "scenes.styles has 9: expected 0 to 5"),
    ],
)
def test_wrong_data_settings_are_told(tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, CONFIG.format(out=tmp_path / "run", data=more))
