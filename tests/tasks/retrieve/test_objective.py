"""Losses over pairs, on two processes and on one: the same loss and the same gradient."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from patchword.data.captions import CaptionBatch, Inputs
from patchword.models.pairs.aligned_towers import AlignedTowers
from patchword.models.pairs.patch_slimming import PatchSlimmingConfig
from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig, softmax_loss
from patchword.tasks.align.objective import Alignment, HingeSettings, InfoNceSettings
from patchword.tasks.retrieve.objective import ContrastiveObjective
from patchword.towers.bert import BertTower
from patchword.towers.settings import BertTowerConfig, ConvolutionalConfig
from patchword.train.gather import Gather
from patchword.train.step import Shares

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 12,
}
OBJECTIVES = ("softmax", "sigmoid", "hinge", "infonce")


def objective_of(name):
    from patchword.towers.convolutional import ConvolutionalTower

    torch.manual_seed(0)
    vision = ConvolutionalTower(
        ConvolutionalConfig(stem=4, widths=(8,), blocks=(0,), size=16, shared_width=8)
    )
    text = BertTower(BertTowerConfig(architecture={**SIZES, "max_position_embeddings": 8}, trainable_from=0))
    towers = TwoTowers(
        TwoTowersConfig(width=8, loss=name if name in OBJECTIVES[:2] else "softmax"), vision, text
    )
    if name in OBJECTIVES[:2]:
        return ContrastiveObjective(
            towers, 0, Gather()
        ).eval()  # batch norm and dropout at rest: they see the pictures of one process only
    settings = HingeSettings(contrastive_weight=0.5, margin=0.5) if name == "hinge" else InfoNceSettings()
    return Alignment(
        AlignedTowers(towers, PatchSlimmingConfig(width=8, aggregated=3)), settings, 10, Gather()
    ).eval()


def batch_of(pictures):
    """Of five pictures with one to three captions of different lengths, those that are asked for."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(5, 3, 16, 16, generator=generator)
    captions = [
        [[10, 1, 2, 11], [10, 3, 11]],
        [[10, 4, 5, 6, 7, 11]],
        [[10, 8, 11]],
        [[10, 9, 1, 11], [10, 2, 2, 3, 11], [10, 4, 11]],
        [[10, 6, 5, 11]],
    ]
    rows = [(row, place) for place, picture in enumerate(pictures) for row in captions[picture]]
    lengths = [len(row) for row, _ in rows]
    tokens = torch.tensor([row + [0] * (max(lengths) - len(row)) for row, _ in rows])
    owners = torch.tensor([place for _, place in rows])
    return CaptionBatch(
        tuple(pictures), Inputs(pixels_B3HW=pixels[pictures]), tokens, torch.tensor(lengths), owners
    )


def loss_and_gradient(name, pictures, processes):
    objective = objective_of(name)
    batch = batch_of(pictures)
    named = objective(
        batch, Shares(1.0, 5 / processes, 0.15)
    )  # past the warm-up and all negatives of ten epochs
    named["loss"].backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in objective.parameters()]
    return named["loss"].detach(), torch.cat([gradient.flatten() for gradient in gradients])


def of_one_process(index):
    """Runs in each of two processes: prints, per objective, the mean loss and gradient over both."""
    torch.distributed.init_process_group("gloo")
    found = {}
    for name in OBJECTIVES:
        loss, gradient = loss_and_gradient(name, ([0, 1, 2], [3, 4])[index], 2)
        for part in (loss, gradient):
            torch.distributed.all_reduce(part)
        found[name] = [float(loss) / 2, (gradient / 2).tolist()]
    if index == 0:
        print(json.dumps(found))


@pytest.fixture(scope="module")
def of_two():
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29617",
        "WORLD_SIZE": "2",
    }
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    return json.loads(printed[0].splitlines()[-1])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_equal_one(of_two, name):
    loss, gradient = loss_and_gradient(name, [0, 1, 2, 3, 4], 1)
    assert of_two[name][0] == pytest.approx(float(loss), rel=1e-5)
    theirs = torch.tensor(of_two[name][1])
    assert gradient.abs().max() > 1e-3 and (theirs - gradient).abs().max() < 1e-5 * gradient.abs().max()


def test_cosines_are_not_rounded_under_autocast():
    """At a scale of 100 bf16 would round them to halves; the loss is that of the same embeddings in full
    precision.
    """
    objective, batch = objective_of("softmax"), batch_of([0, 1, 2, 3, 4])
    towers = objective.model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        towers.log_scale.fill_(math.log(100.0))
        found = objective(batch, Shares(1.0, 5, 0.15))["loss"]
        pictures_BE = towers.embed_pictures(batch.inputs.pixels_B3HW).float()
        texts_JE = towers.embed_texts(batch.tokens_RT, batch.tokens_RT != 0).float()
    expected = softmax_loss(100 * pictures_BE @ texts_JE.T, batch.picture_of_row_R, 0, 5) / 5
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_alignment_learns_a_handful_of_pairs():
    """From random weights, with all negatives: after some steps pictures find a caption of theirs, which at
    the start they do not.
    """
    objective, batch = objective_of("hinge"), batch_of([0, 1, 2, 3, 4])
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-2)
    hits, losses = [], []
    for _ in range(80):
        named = objective(batch, Shares(1.0, 5, 0.09))
        optimiser.zero_grad()
        named["loss"].backward()
        optimiser.step()
        hits.append(float(named["rank_1"]))
        losses.append(named["align"].item())
    assert hits[-1] >= 0.8 > hits[0] and losses[-1] < 0.6 * losses[0]


if __name__ == "__main__":
    of_one_process(int(sys.argv[1]))
