"""Measures the cost of prototypes: a decoding step by their number, a clustering by the size of the bank.

    python benchmarks/memory.py [--device cpu] [--repeats 3]

Width 512, 3 layers, 8 heads. A step decodes one word for 32 pictures times 5 beams after 10 words, with 196
patches; the clustering is that of one layer with 10 iterations. Times are milliseconds and seconds of CPU
time with one thread (of wall time on another device), the best of the repeats.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from patchword.layers.bank import Bank, cluster
from patchword.layers.prototypes import PrototypeConfig
from patchword.models.captioners.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.types import VisualFeatures

PICTURES, BEAMS, PATCHES, PREFIX = 32, 5, 196, 10


def seconds(call, repeats: int, device: torch.device) -> float:
    """Returns the best time of a call, after one run to warm up."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(repeats + 1):
        begin = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - begin)
    return best


def step_with(prototypes: int, placement: str, device: torch.device):
    """Returns a decoding step with that many prototypes."""
    memory = PrototypeConfig(count=prototypes, placement=placement) if prototypes else None
    captioner = (
        CaptionTransformer(CaptionTransformerConfig(encoder_layers=0, memory=memory), 512, 10_000)
        .eval()
        .to(device)
    )
    if prototypes:
        nn.init.normal_(captioner.memory.keys_LMC)
        captioner.memory.live_LM.fill_(True)
    seen = captioner.encode(VisualFeatures(torch.randn(PICTURES, PATCHES, 512, device=device)))
    tokens_R, state = (
        torch.ones(PICTURES * BEAMS, dtype=torch.long, device=device),
        captioner.start(seen, BEAMS),
    )
    for _ in range(PREFIX):
        _, state, _ = captioner.step(tokens_R, seen, state)
    return lambda: captioner.step(tokens_R, seen, state)


def filled(vectors: int, device: torch.device) -> Bank:
    """Returns a bank of one layer with random vectors."""
    bank = Bank.empty(vectors, 1, 512, 8, device)
    bank.add(
        torch.randn(1, vectors, 512, device=device),
        torch.randn(1, vectors, 512, device=device),
        bank.contexts_NW.clone(),
    )
    return bank


@torch.no_grad()
def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {device}, best of {chosen.repeats}\n\nprototypes   placement      "
        "step, ms   of the bare step"
    )
    bare = seconds(step_with(0, "self_concat", device), chosen.repeats, device)
    print(f"{0:10d}   {'-':12s}{bare * 1e3:11.1f}{1:12.2f}")
    for placement in ("self_concat", "cross_add", "sequential"):
        for count in (32, 128, 512, 1024):
            found = seconds(step_with(count, placement, device), chosen.repeats, device)
            print(f"{count:10d}   {placement:12s}{found * 1e3:11.1f}{found / bare:12.2f}")
    print("\nbank, vectors   prototypes   clustering, s   bank of a layer, MiB")
    for vectors in (4096, 16384, 65536):
        bank, count = filled(vectors, device), min(1024, vectors // 39)
        found = seconds(
            lambda bank=bank, count=count: cluster(bank, count, 32, 10, 4, torch.Generator()), 1, device
        )
        print(f"{vectors:13d}{count:13d}{found:16.2f}{vectors * 512 * 8 / 2**20:23.0f}")


if __name__ == "__main__":
    main()
