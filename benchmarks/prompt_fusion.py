"""Measures memory and time of a training step of prompt fusion, beside its alternatives.

    python benchmarks/prompt_fusion.py          # the table; about two minutes of CPU time, 3 GB
    python benchmarks/prompt_fusion.py --tiny   # small towers, in seconds: checks that the script works

The alternatives are a linear probe, full training, and the equations with whole layers. Towers are ViT-B/16
at 224 px and BERT-B with random weights; a batch is 8 pictures with 40 tokens each and 101 classes, float32,
one thread. `saved` is the size of all tensors that autograd keeps for the backward pass, each storage counted
once, without weights. `step` is the CPU time of forward, loss and backward from pixels; `cached` is the same
from stored tokens. With frozen towers, a step is the lower layers followed by a cached step, and the lower
layers are timed once for each number of fused ones. The literal row computes the same function by appending
the prompts, running whole layers and cutting rows off; it is written from the equations and is not anybody's
code.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import BertConfig, ViTConfig

from patchword.models.fusion.prompt_fusion import FusionTokens, PromptFusion, PromptFusionConfig, label_loss
from patchword.models.fusion.prompt_search import saved_bytes
from patchword.towers.bert import BertTower
from patchword.towers.vit import VitTower

BATCH, TOKENS, CLASSES = 8, 40, 101
PAIRS = tuple((layers, prompts) for layers in (2, 4) for prompts in (4, 16, 32))
HEADER = (
    "| what is trained | parameters | share | saved MiB | step CPU s | cached CPU s | cached : step |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)


def towers(tiny: bool, trainable_from: int | None) -> tuple[VitTower, BertTower]:
    """Returns both towers with random weights."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2) if tiny else {}
    return VitTower.from_architecture(ViTConfig(**sizes), trainable_from), BertTower.from_architecture(
        BertConfig(**sizes), trainable_from
    )


def fusion(pair: tuple[VitTower, BertTower], layers: int, prompts: int) -> PromptFusion:
    """Returns prompt fusion with the same length for all kinds of prompts."""
    lengths = dict(query=prompts, query_context=prompts, fusion_context=prompts)
    return PromptFusion(PromptFusionConfig(classes=CLASSES, fused_layers=layers, **lengths), *pair).train()


def literal_fuse(model: PromptFusion, tokens: FusionTokens) -> Tensor:
    """The paper's equations with whole layers: append the prompts, run the layer, cut rows off."""
    z_v, z_t, mask_BL = tokens
    patches, words, batch = z_v.shape[1], z_t.shape[1], len(z_v)

    def real(rows_BNC: Tensor) -> Tensor:
        return torch.cat([mask_BL, mask_BL.new_ones(batch, rows_BNC.shape[1] - words)], 1)

    for fused, image_layer, text_layer in model.fused_pairs():
        image, text = fused.image, fused.text
        rows_v = torch.cat(
            [z_v, *(part.expand(batch, -1, -1) for part in (image.query_context_MC, image.query_QC))], 1
        )
        rows_t = torch.cat(
            [z_t, *(part.expand(batch, -1, -1) for part in (text.query_context_MC, text.query_QC))], 1
        )
        for_text = fused.image_to_text(image_layer(rows_v)[:, -len(image.query_QC) :])
        for_image = fused.text_to_image(text_layer(rows_t, real(rows_t))[:, -len(text.query_QC) :])
        rows_v = torch.cat([z_v, image.fusion_context_MC.expand(batch, -1, -1), for_image], 1)
        rows_t = torch.cat([z_t, text.fusion_context_MC.expand(batch, -1, -1), for_text], 1)
        z_v, z_t = image_layer(rows_v)[:, :patches], text_layer(rows_t, real(rows_t))[:, :words]
    image_BY = model.image_head(model.image_tower.finish(z_v).class_BC)
    return (image_BY + model.text_head(z_t[:, 0])) / 2


class Measured(NamedTuple):
    """Saved MiB, CPU seconds and logits of one step."""

    saved: float
    seconds: float
    logits_BY: Tensor


def measure(model: PromptFusion, compute: Callable[[], Tensor], labels_B: Tensor) -> Measured:
    """Runs forward, loss and backward of `compute` once."""
    kept: list[Tensor] = []

    def step() -> Tensor:
        kept.append(compute())
        label_loss(kept[0], labels_B, multi_label=False).backward()
        return kept[0]

    start = time.process_time()
    saved = saved_bytes(model, step) / 2**20
    return Measured(saved, time.process_time() - start, kept[0].detach())


def report(name: str, model: PromptFusion, measured: Measured, lower: float | None) -> None:
    """Prints a row.

    `lower` is the time of the lower layers; None where they are trained, so that nothing can be stored.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    share = trained / sum(parameter.numel() for parameter in model.parameters())
    step = measured.seconds + (lower or 0.0)
    cached = "- | -" if lower is None else f"{measured.seconds:.2f} | {measured.seconds / step:.2f}"
    print(
        f"| {name} | {trained:,} | {share:.2%} | {measured.saved:.0f} | {step:.2f} | {cached} |", flush=True
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small towers")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    inputs = torch.randn(BATCH, 3, 224, 224), torch.randint(1000, 30000, (BATCH, TOKENS))
    labels_B = torch.randint(0, CLASSES, (BATCH,))
    print(HEADER, flush=True)
    frozen = towers(tiny, None)
    stored: dict[int, tuple[FusionTokens, float]] = {}
    for layers in (0, 2, 4):
        model = fusion(frozen, layers, 0)
        start = time.process_time()
        stored[layers] = model.lower(*inputs), time.process_time() - start
    model, (tokens, lower) = fusion(frozen, 0, 0), stored[0]
    report("heads only", model, measure(model, partial(model.fuse, tokens), labels_B), lower)
    for layers, prompts in PAIRS:
        model, (tokens, lower) = fusion(frozen, layers, prompts), stored[layers]
        ours = measure(model, partial(model.fuse, tokens), labels_B)
        report(f"PMF, F {layers}, M {prompts}", model, ours, lower)
        if (layers, prompts) == (2, 4):
            literal = measure(model, partial(literal_fuse, model, tokens), labels_B)
            report("PMF, F 2, M 4, literal", model, literal, lower)
            difference = float(
                (ours.logits_BY - literal.logits_BY).abs().max() / literal.logits_BY.abs().max()
            )
    model = fusion(towers(tiny, 0), 2, 4)
    report("everything, F 2, M 4", model, measure(model, lambda: model(*inputs), labels_B), None)
    print(f"\nlargest difference of the logits to the literal equations, relative: {difference:.1e}")


if __name__ == "__main__":
    main()
