"""What a cache of shots and cached gradients are worth: times and memory on this machine, random weights.

python benchmarks/few_shots.py             # answers after 1, 2, 4, 8 shots, read once and read again
python benchmarks/few_shots.py --gradients # peak memory of a contrastive step, whole and by cached gradients
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

REPEATS = 7


def shots() -> None:
    """Seconds to answer about one more picture, by the number of shots before it."""
    from patchword.models.captioners.flamingo import MARK, Flamingo, FlamingoConfig
    from patchword.towers.language import CausalLanguage
    from patchword.towers.settings import LanguageConfig

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8}
    sizes |= {"num_key_value_heads": 8, "vocab_size": 5000, "max_position_embeddings": 512}
    torch.manual_seed(0)
    language = CausalLanguage(LanguageConfig(architecture={"model_type": "llama", **sizes}))
    config = FlamingoConfig(latents=16, layers=2, heads=8, head_width=32, every=2, initial_gate=0.5)
    model = Flamingo(config, language, 256).eval()
    print("| shots | read again, ms | read once, ms | ratio |\n| --: | --: | --: | --: |")
    for count in (0, 1, 2, 4, 8):
        text = torch.randint(4, 5000, (count, 16))
        prefix = torch.cat(
            [torch.tensor([[1]]), *[torch.cat((torch.tensor([MARK]), row))[None] for row in text]], 1
        )
        grids, asked = torch.randn(count + 1, 49, 256), torch.tensor([[MARK, 5, 6, 7]])

        def again(prefix=prefix, grids=grids, asked=asked) -> None:
            model.read(torch.cat((prefix, asked), 1), model.look(grids)[None])

        with torch.inference_mode():
            before = model.read(prefix, model.look(grids[:-1])[None] if count else None)

            def once(before=before, grids=grids, asked=asked) -> None:
                model.read(asked, model.look(grids[-1:])[None], before)

            slow, fast = (1000 * _median(run) for run in (again, once))
        print(f"| {count} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |")


def _median(run) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def gradients() -> None:
    """Peak memory of one step in a process of its own: the batch whole, and in parts of 32."""
    print("| batch | whole, MiB | cached gradients, MiB |\n| --: | --: | --: |")
    for batch in (32, 128, 512):
        found = []
        for way in ("whole", "cached"):
            command = [sys.executable, __file__, "--one", way, "--batch", str(batch)]
            found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        print(f"| {batch} | {found[0]} | {found[1]} |")


def one_step(way: str, batch: int) -> None:
    """One backward pass; prints by how many MiB the peak memory rose."""
    from accelerate import Accelerator

    from patchword.data.captions import CaptionBatch, Inputs
    from patchword.models.pairs.two_towers import TwoTowers, TwoTowersConfig
    from patchword.tasks.retrieve.cached_gradients import cached_backward
    from patchword.tasks.retrieve.objective import ContrastiveObjective
    from patchword.towers.bert import BertTower
    from patchword.towers.settings import BertTowerConfig, VitTowerConfig
    from patchword.towers.vit import VitTower
    from patchword.train.gather import Gather
    from patchword.train.settings import StageSettings
    from patchword.train.step import Shares, StepContext

    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    vision = VitTower(
        VitTowerConfig(architecture=sizes | {"image_size": 64, "patch_size": 8}, trainable_from=0)
    )
    words = sizes | {"vocab_size": 1000, "max_position_embeddings": 32}
    text = BertTower(BertTowerConfig(architecture=words, trainable_from=0))
    objective = ContrastiveObjective(TwoTowers(TwoTowersConfig(width=64), vision, text), 0, Gather())

    def made(size: int) -> CaptionBatch:
        return CaptionBatch(
            tuple(range(size)),
            Inputs(pixels_B3HW=torch.rand(size, 3, 64, 64)),
            torch.randint(4, 1000, (size, 16)),
            torch.full((size,), 16),
            torch.arange(size),
        )

    shares = Shares(0, batch, 0.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "whole":
        objective(made(batch), shares)["loss"].backward()
    else:
        context = StepContext(
            Accelerator(cpu=True), objective.model, objective, (), StageSettings(), 0, shares
        )
        cached_backward(objective, [made(32) for _ in range(batch // 32)], context)
    print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--one", choices=("whole", "cached"))
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    if given.one:
        one_step(given.one, given.batch)
    elif given.gradients:
        gradients()
    else:
        shots()
