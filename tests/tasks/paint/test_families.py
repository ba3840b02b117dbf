"""Adversarial painters and painters of tokens as a user types them: trained, resumed, painted, refused."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from patchword.cli import app
from patchword.errors import ConfigError, TrainingError
from patchword.tasks.paint.adversarial import adversarial_step
from patchword.tasks.paint.families import TokenChoice, Wish
from patchword.tasks.paint.model import load_painter
from patchword.tasks.paint.train import PaintTraining
from patchword.tasks.start import start
from patchword.train.settings import StageSettings
from patchword.train.step import Shares, StepContext

COMMON = """
task = "paint"
out = "{out}"
seed = 2
average = 0.0
checkpoint_steps = 2
log_steps = 1
sheet = 2
[scenes]
count = 48
selection = 8
max_words = 12
{text}
[painter]
{painter}
{stages}
"""
TEXT = """[text]
kind = "bert"
[text.architecture]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
"""
SMALL = "size = 16\nwidth = 4\njudge_width = 4\n"
CODEC = '[painter.codec]\nkind = "{}"\nsize = 16\ncodes = 16\nwidth = 8\n'
BOTH = '"painter.generator" = 2e-4, "painter.discriminator" = 2e-4, "text" = 0.0'
CODEC_THEN_TOKENS = ('"" = 0.0, "painter.codec" = 1e-3', '"" = 1e-3, "painter.codec" = 0.0')
FAMILIES = {
    "conditional_gan": (TEXT, SMALL, (BOTH,)),
    "df_gan": (TEXT, SMALL, (BOTH,)),
    "stack_gan": (
        TEXT,
        SMALL + "first_size = 8\n",
        (
            '"painter.first" = 2e-4, "painter.second" = 0.0, "text" = 0.0',
            '"painter.first" = 0.0, "painter.second" = 2e-4, "text" = 0.0',
        ),
    ),
    "attn_gan": (
        TEXT,
        SMALL + "region_width = 4\nwords = 16\n",
        (
            '"painter.matching" = 1e-3, "text" = 1e-3, "painter.generator" = 0.0, "painter.discriminator" = 0.0',
            BOTH + ', "painter.matching" = 0.0',
        ),
    ),
    "dalle": (
        "",
        "width = 16\nlayers = 2\nheads = 2\ntext_length = 14\n" + CODEC.format("discrete_vae"),
        CODEC_THEN_TOKENS,
    ),
    "parti": (TEXT, "width = 16\nlayers = 2\nheads = 2\n" + CODEC.format("vit_vqgan"), CODEC_THEN_TOKENS),
}


def configuration(out, kind: str, rates=None) -> str:
    text, painter, usual = FAMILIES[kind]
    stages = "".join(
        f'[[stage]]\nname = "part {number}"\nepochs = 1\nbatch = 16\nlearning_rates = {{ {one} }}\nwarm_up_steps = 0\n'
        for number, one in enumerate(rates or usual)
    )
    return COMMON.format(out=out, text=text, painter=f'kind = "{kind}"\n{painter}', stages=stages)


def train(folder, kind: str, rates=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.toml"
    path.write_text(configuration(folder / "run", kind, rates))
    app(["train", str(path), "--device", "cpu"], standalone_mode=False)
    return folder / "run"


@pytest.fixture(scope="module", params=FAMILIES)
def painter(request, tmp_path_factory):
    """A trained painter of each family: the kind, and its run."""
    return request.param, train(tmp_path_factory.mktemp(request.param), request.param)


def test_a_family_is_trained_and_paints_what_its_seed_says(painter, tmp_path, capsys):
    kind, run = painter
    assert len(list((run / "sheets").glob("*.png"))) == len(FAMILIES[kind][2])
    model = load_painter(run / "best", "cpu")
    together = model.paint("a red circle", [3, 4])
    assert together.shape == (2, 16, 16, 3) and together.dtype == np.uint8
    alone = model.paint("a red circle", [4])
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1, "a picture depends on its own seed alone"
    one, other = model.draw(["a red circle"] * 2, Wish([3, 4]))
    assert not torch.equal(one, other)
    out = tmp_path / "painted"
    words = [
        "paint",
        "a red circle",
        "-n",
        "2",
        "--seed",
        "3",
        "--model",
        str(run / "best"),
        "--out",
        str(out),
    ]
    app([*words, "--device", "cpu", "--json"], standalone_mode=False)
    painted = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [one["seed"] for one in painted] == [3, 4]


def test_what_a_stage_holds_does_not_move(painter):
    kind, run = painter
    if kind in ("conditional_gan", "df_gan"):
        assert len(FAMILIES[kind][2]) == 1  # one stage teaches all of it
        return
    held = {"stack_gan": "first", "attn_gan": "matching", "dalle": "codec", "parti": "codec"}[kind]
    first = train(run.parent / "first", kind, FAMILIES[kind][2][:1])
    before, after = (load_file(one / "best" / "model.safetensors") for one in (first, run))
    same = {
        name for name in before if "num_batches" not in name and bool((before[name] == after[name]).all())
    }
    moved = {name for name in before if name.startswith("painter.")} - same
    assert moved, "the second stage taught something"
    own = {name for name in before if name.startswith(f"painter.{held}.") and "running_" not in name}
    assert own and own <= same | {name for name in own if "num_batches" in name}, sorted(own - same)[:3]


@pytest.mark.parametrize("kind", ["df_gan", "parti"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, monkeypatch, kind):
    """It is stopped one step after its last checkpoint: in the only stage, or in the second one."""

    class Stop(Exception):
        pass

    whole = train(tmp_path / "whole", kind)
    update, last = PaintTraining.after_step, 3 * len(FAMILIES[kind][2])
    seen = []

    def stop_at_the_end(self, step, objective):
        seen.append(step)
        if len(seen) == last:
            raise Stop
        return update(self, step, objective)

    cut = tmp_path / "cut"
    monkeypatch.setattr(PaintTraining, "after_step", stop_at_the_end)
    with pytest.raises(Stop):
        train(cut, kind)
    monkeypatch.setattr(PaintTraining, "after_step", update)
    app(["train", str(cut / "run.toml"), "--device", "cpu", "--resume"], standalone_mode=False)
    one, other = (load_file(run / "best" / "model.safetensors") for run in (whole, cut / "run"))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)


@pytest.mark.parametrize(
    ("kind", "rates", "message"),
    [
        ("df_gan", (BOTH.replace('"text" = 0.0', '"text" = 1e-4'),), 'give "text" the rate 0'),
        ("stack_gan", ('"" = 1e-4, "text" = 0.0',), "teaches both stages"),
        ("attn_gan", ('"" = 1e-4',), "the matching model first"),
        ("parti", ('"" = 1e-4',), "teaches both of codec and transformer"),
    ],
)
def test_stages_that_make_no_sense_are_refused(tmp_path, kind, rates, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, kind, rates)


def test_wishes_that_a_family_cannot_fulfil_are_refused(painter):
    kind, run = painter
    model = load_painter(run / "best", "cpu")
    if kind in ("dalle", "parti"):
        likeliest = TokenChoice(temperature=0.0)
        one, other = model.paint("a red circle", [1, 2], guidance=1.0, tokens=likeliest)
        assert np.array_equal(one, other), "the likeliest tokens do not depend on the seed"
        with pytest.raises(ConfigError, match="neither steps nor a threshold"):
            model.paint("a red circle", [1], steps=4)
    else:
        with pytest.raises(ConfigError, match="in one pass and knows no guidance"):
            model.paint("a red circle", [1], guidance=2.0)
        with pytest.raises(ConfigError, match="in one pass and knows no choice of tokens"):
            model.paint("a red circle", [1], tokens=TokenChoice())


def test_texts_longer_than_the_transformer_reads_are_refused_before_a_training(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(configuration(tmp_path / "run", "dalle").replace("text_length = 14", "text_length = 10"))
    with pytest.raises(ConfigError, match="text_length is 10.*make 14"):
        start(path, [], False, False, "cpu", "patchword train run.toml")


@pytest.mark.parametrize("broken", ["generator", "discriminator"])
def test_a_step_in_which_one_side_is_not_finite_moves_neither(broken):
    """Else the other one would go on against an adversary that stood still."""
    model = nn.ModuleDict({"generator": nn.Linear(2, 2), "discriminator": nn.Linear(2, 1)})

    class Losses(nn.Module):
        def forward(self, batch, shares):
            parts = {name: part(torch.ones(1, 2)).sum() for name, part in model.items()}
            parts[broken] = parts[broken] * float("nan")
            return {"loss": sum(parts.values()), **parts}

    class Part:
        def to(self, device):
            return self

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimisers = tuple(torch.optim.Adam(part.parameters(), lr=0.1) for part in model.values())
    context = StepContext(
        Accelerator(cpu=True), model, Losses(), optimisers, StageSettings(), 0, Shares(1, 1, 0.0)
    )
    found = adversarial_step(context, [Part()])
    assert not found.taken
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_adversary_that_blows_up_ends_the_training_in_words(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(configuration(tmp_path / "run", "conditional_gan", (BOTH.replace("2e-4", "1e30"),)))
    with pytest.raises(TrainingError, match="was not finite in 3 steps in a row.*lower the learning rate"):
        start(path, ["stage.0.epochs=3"], False, False, "cpu", "patchword train run.toml")
