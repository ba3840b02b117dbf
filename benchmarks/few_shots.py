"""What caches of shots and gradients, and fused attention, are worth: times and memory, random weights.

python benchmarks/few_shots.py             # answers after 1, 2, 4, 8 shots, read once and read again
python benchmarks/few_shots.py --gradients # peak memory of a contrastive step, whole and by cached gradients
python benchmarks/few_shots.py --blocks    # co-attention and gated blocks against their equations
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

REPEATS = 15


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

            slow, fast = _fastest(again, once)
        print(f"| {count} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |")


def _fastest(*runs) -> list[float]:
    """Milliseconds of each, the fastest of its repeats; they take turns, so that a busy machine slows all."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(REPEATS + 1):
        for run, found in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            if repeat:
                found.append(1000 * (time.perf_counter() - began))
    return [min(found) for found in times]


def blocks() -> None:
    """Milliseconds of a block and of its equations written out, forwards, and forwards and backwards."""
    print("| block | literal, ms | ours, ms | ratio |\n| --- | --: | --: | --: |")
    for name, (literal, ours) in {**_co_attention(), **_gated()}.items():
        with torch.inference_mode():
            given = [part.detach().clone() for part in (literal(), ours())]
        torch.testing.assert_close(*given, atol=1e-4, rtol=1e-4)
        for way, prepare in (("forwards", _forwards), ("and backwards", _backwards)):
            if way == "and backwards" and "one token" in name:
                continue  # a step of generation has no gradient
            slow, fast = _fastest(prepare(literal), prepare(ours))
            print(f"| {name}, {way} | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} |")


def _forwards(run):
    def timed() -> None:
        with torch.inference_mode():
            run()

    return timed


def _backwards(run):
    def timed() -> None:
        run().sum().backward()

    return timed


def _literal_attention(module, x_BNC, other_BMW, mask_BM):
    """softmax(Q K' / sqrt(D)) V with every matrix written out, as the papers' code has it."""
    batch, heads = len(x_BNC), module.heads

    def split(tensor):
        return tensor.reshape(batch, tensor.shape[1], heads, -1).permute(0, 2, 1, 3)

    queries, keys, values = (
        split(part) for part in (module.query(x_BNC), module.key(other_BMW), module.value(other_BMW))
    )
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if mask_BM is not None:
        scores = scores + (1.0 - mask_BM[:, None, None].float()) * -10000.0
    context = scores.softmax(-1) @ values
    return context.permute(0, 2, 1, 3).reshape(batch, x_BNC.shape[1], -1)


def _co_attention():
    from patchword.layers.co_attention import CoAttention

    torch.manual_seed(0)
    block = CoAttention(768, 1024, 1024, 8)
    text, picture = torch.randn(16, 32, 768), torch.randn(16, 37, 1024)
    real = torch.ones(16, 32, dtype=torch.bool)
    real[:, 20:] = False

    def literal():
        asked = []
        for side, x, other, mask in (
            (block.text_asks, text, picture, torch.ones(16, 37)),
            (block.picture_asks, picture, text, real),
        ):
            asked.append(side.norm(x + side.output(_literal_attention(side, x, other, mask))))
        return torch.cat([block.text_thinks(asked[0]).flatten(), block.picture_thinks(asked[1]).flatten()])

    def ours():
        return torch.cat([part.flatten() for part in block(text, picture, real, None)])

    return {"co-attention, 16 pairs of 32 words and 37 regions": (literal, ours)}


def _gated():
    from patchword.models.captioners.flamingo import FlamingoConfig, GatedBlock

    torch.manual_seed(0)
    block = GatedBlock(512, 512, FlamingoConfig(heads=8, head_width=64, initial_gate=0.5))
    found = {}
    for name, rows, tokens, pictures in (
        ("64 tokens, 5 pictures", 4, 64, 5),
        ("one token, 9 pictures", 1, 1, 9),
    ):
        x, seen = torch.randn(rows, tokens, 512), torch.randn(rows, pictures * 64, 512)
        last = torch.arange(tokens) * pictures // tokens + 1 if tokens > 1 else torch.tensor([pictures])
        last = last.expand(rows, -1)
        owner = torch.arange(pictures * 64) // 64 + 1
        bias = torch.zeros(rows, 1, tokens, pictures * 64)
        bias = bias.masked_fill((owner != last[..., None])[:, None], float("-inf"))
        with torch.no_grad():
            remembered = block.attention.project(seen)

        def literal(x=x, seen=seen, last=last, owner=owner, rows=rows, tokens=tokens):
            """Pictures are projected in every call, as where nothing is kept."""
            attention, heads = block.attention, block.attention.heads
            q, k, v = (
                part.reshape(rows, part.shape[1], heads, -1).permute(0, 2, 1, 3)
                for part in (attention.query(block.norm(x)), attention.key(seen), attention.value(seen))
            )
            scores = torch.einsum("bhid,bhjd->bhij", q * q.shape[-1] ** -0.5, k)
            scores = scores.masked_fill((owner != last[..., None])[:, None], torch.finfo(scores.dtype).min)
            scores = scores - scores.amax(-1, keepdim=True).detach()
            out = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
            out = attention.output(out.permute(0, 2, 1, 3).reshape(rows, tokens, -1))
            y = x + block.attention_gate.tanh() * out
            return y + block.feed_gate.tanh() * block.feed_forward(y)

        def ours(x=x, seen=seen, bias=bias, last=last, tokens=tokens, kept=remembered):
            found = kept if tokens == 1 else block.attention.project(seen)
            return block(x, *found, bias, (last > 0)[..., None])

        found[f"gated block, {name}"] = (literal, ours)
    return found


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
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--one", choices=("whole", "cached"))
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    if given.one:
        one_step(given.one, given.batch)
    elif given.blocks:
        blocks()
    elif given.gradients:
        gradients()
    else:
        shots()
