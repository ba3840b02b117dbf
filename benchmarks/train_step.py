"""A training step of Meshed-Memory and of the caption transformer, against torch's nn.Transformer of the same shape.

    python benchmarks/train_step.py [--repeats 2]

50 pictures of 50 regions (width 2048), captions of 20 tokens, 10,201 words, width 512, 3 + 3 layers, 8 heads, dropout 0.1, one thread:
forward, cross-entropy and backward. CPU seconds, the best of the repeats, and the most memory beyond what weights and gradients take, each
model in a process of its own. Meshed-Memory does more work than the plain model: it looks at three encoder levels, and weighs them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import torch
from torch import nn
from torch.nn import functional as F

from patchword.models.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.models.meshed_memory import MeshedMemoryConfig, MeshedMemoryTransformer
from patchword.types import VisualFeatures

PICTURES, REGIONS, WIDTH_IN, LENGTH, WORDS, WIDTH = 50, 50, 2048, 20, 10_201, 512


class Plain(nn.Module):
    """nn.Transformer as a captioner is commonly made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH_IN, WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 8, 3, 3, 2048, batch_first=True)
        self.output = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, regions_BNC, tokens_BT):
        mask_TT = nn.Transformer.generate_square_subsequent_mask(tokens_BT.shape[1])
        return self.output(self.transformer(self.embed(regions_BNC), self.words(tokens_BT), tgt_mask=mask_TT, tgt_is_causal=True))


class Ours(nn.Module):
    def __init__(self, captioner: nn.Module) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, regions_BNC, tokens_BT):
        lengths_B = torch.full((len(tokens_BT),), tokens_BT.shape[1])
        return self.captioner.decode(tokens_BT, lengths_B, self.captioner.encode(VisualFeatures(regions_BNC))).logits_BTV


MODELS = {
    "nn.Transformer": Plain,
    "meshed memory": lambda: Ours(MeshedMemoryTransformer(MeshedMemoryConfig(), WIDTH_IN, WORDS)),
    "caption transformer": lambda: Ours(CaptionTransformer(CaptionTransformerConfig(), WIDTH_IN, WORDS)),
}


def measure(name: str, repeats: int, found) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, best = MODELS[name]().train(), float("inf")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    regions_BNC, tokens_BT = torch.randn(PICTURES, REGIONS, WIDTH_IN), torch.randint(4, WORDS, (PICTURES, LENGTH))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(repeats):
        begin = time.process_time()
        F.cross_entropy(model(regions_BNC, tokens_BT).flatten(0, 1), tokens_BT.roll(-1, 1).flatten()).backward()
        best = min(best, time.process_time() - begin)
    found.put((best, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"torch {torch.__version__}, one thread, best of {chosen.repeats}\n{'model':22s}CPU seconds    GiB")
    for name in MODELS:
        found = context.Queue()
        process = context.Process(target=measure, args=(name, chosen.repeats, found))
        process.start()
        seconds, gibibytes = found.get()
        process.join()
        print(f"{name:22s}{seconds:11.2f}{gibibytes:7.2f}", flush=True)


if __name__ == "__main__":
    main()
