"""Compares a training step of our transformers with torch's nn.Transformer of the same shape.

    python benchmarks/train_step.py [--repeats 2]

Ours are Meshed-Memory and the caption transformer. 50 pictures of 50 regions (width 2048), captions of 20
tokens, 10,201 words, width 512, 3 + 3 layers, 8 heads, dropout 0.1, one thread; a step is forward,
cross-entropy and backward. The numbers are CPU seconds, the best of the repeats, and the peak memory beyond
weights and gradients, each model in its own process. Meshed-Memory does more work than the plain model: it
attends to three encoder levels and weights them. `torch's product` lets torch choose the library of the
products (see `layers/linear.py`), as on processors where MKL is fast.

The second table is the rest of a step at the size of Meshed-Memory: AdamW in torch's three forms, and
clipping. An optimiser reads at least weights, gradients and both moments, and writes all but the gradients;
`floor` is the time of a copy that moves as many bytes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import nn
from torch.nn import functional as F

from patchword.layers import linear
from patchword.models.captioners.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.models.captioners.meshed_memory import MeshedMemoryConfig, MeshedMemoryTransformer
from patchword.types import VisualFeatures

TORCHS = ", torch's product"
PICTURES, REGIONS, WIDTH_IN, LENGTH, WORDS, WIDTH = 50, 50, 2048, 20, 10_201, 512


class Plain(nn.Module):
    """nn.Transformer as it is commonly used for captioning."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH_IN, WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.transformer = nn.Transformer(WIDTH, 8, 3, 3, 2048, batch_first=True)
        self.output = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, regions_BNC, tokens_BT):
        """Returns the logits (B, T, V)."""
        mask_TT = nn.Transformer.generate_square_subsequent_mask(tokens_BT.shape[1])
        return self.output(
            self.transformer(
                self.embed(regions_BNC), self.words(tokens_BT), tgt_mask=mask_TT, tgt_is_causal=True
            )
        )


class Ours(nn.Module):
    """Gives a captioner the interface of `Plain`."""

    def __init__(self, captioner: nn.Module) -> None:
        super().__init__()
        self.captioner = captioner

    def forward(self, regions_BNC, tokens_BT):
        """Returns the logits (B, T, V)."""
        lengths_B = torch.full((len(tokens_BT),), tokens_BT.shape[1])
        return self.captioner.decode(
            tokens_BT, lengths_B, self.captioner.encode(VisualFeatures(regions_BNC))
        ).logits_BTV


MODELS = {
    "nn.Transformer": Plain,
    "meshed memory": lambda: Ours(MeshedMemoryTransformer(MeshedMemoryConfig(), WIDTH_IN, WORDS)),
    "caption transformer": lambda: Ours(CaptionTransformer(CaptionTransformerConfig(), WIDTH_IN, WORDS)),
}


def measure(name: str, repeats: int) -> tuple[float, float]:
    """Returns the best CPU seconds of a step and its peak memory in GiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if name.endswith(TORCHS):
        linear.mkl_is_slow = lambda: False
    model, best = MODELS[name.removesuffix(TORCHS)]().train(), float("inf")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    regions_BNC, tokens_BT = (
        torch.randn(PICTURES, REGIONS, WIDTH_IN),
        torch.randint(4, WORDS, (PICTURES, LENGTH)),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(repeats):
        begin = time.process_time()
        F.cross_entropy(
            model(regions_BNC, tokens_BT).flatten(0, 1), tokens_BT.roll(-1, 1).flatten()
        ).backward()
        best = min(best, time.process_time() - begin)
    return best, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def rest(repeats: int) -> dict[str, tuple[float, float]]:
    """CPU seconds and minimum gigabytes moved by the parts of a step that do not depend on the batch."""
    parameters = list(MeshedMemoryTransformer(MeshedMemoryConfig(), WIDTH_IN, WORDS).parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    gigabytes = sum(parameter.numel() for parameter in parameters) * 4 / 1e9
    source = torch.ones(sum(parameter.numel() for parameter in parameters))
    target = torch.empty_like(source)
    forms = {
        "AdamW, plain": {"foreach": False},
        "AdamW, foreach": {"foreach": True},
        "AdamW, fused": {"fused": True},
    }
    work = {
        name: (torch.optim.AdamW(parameters, lr=1e-4, **form).step, 7 * gigabytes)
        for name, form in forms.items()
    }
    work["clipping"] = (lambda: nn.utils.clip_grad_norm_(parameters, 5.0), 3 * gigabytes)
    work["copy"] = (lambda: target.copy_(source), 2 * gigabytes)
    found = {}
    for name, (call, moved) in work.items():
        call()
        best = float("inf")
        for _ in range(repeats):
            begin = time.process_time()
            call()
            best = min(best, time.process_time() - begin)
        found[name] = (best, moved)
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"torch {torch.__version__}, one thread, best of {chosen.repeats}\n{'model':38s}CPU seconds    GiB")
    for name in [*MODELS, "meshed memory" + TORCHS, "caption transformer" + TORCHS]:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            seconds, gibibytes = process.submit(measure, name, chosen.repeats).result()
        print(f"{name:38s}{seconds:11.2f}{gibibytes:7.2f}", flush=True)
    torch.set_num_threads(1)
    found = rest(max(5, chosen.repeats))
    rate = found["copy"][1] / found["copy"][0]
    print(f"\n{'the rest of a step':22s}milliseconds  gigabytes  floor, ms")
    for name, (seconds, moved) in found.items():
        print(f"{name:22s}{seconds * 1e3:12.1f}{moved:11.2f}{moved / rate * 1e3:11.1f}")


if __name__ == "__main__":
    main()
