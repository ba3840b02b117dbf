"""Prompt fusion: what a training step keeps in memory and costs, beside a probe, full training and the equations with whole layers.

    python benchmarks/prompt_fusion.py            # the table (each row in its own process; several minutes on two cores)
    python benchmarks/prompt_fusion.py --tiny     # the same with small towers, in seconds: a check that the script works

ViT-B/16 at 224 px and BERT-B with random weights, 8 pictures with 40 tokens each, 101 classes, float32, one thread. `saved` is the size of
all tensors that autograd keeps for the backward pass, each storage counted once, weights left out. `step` is the processor time of forward,
loss and backward from pixels; `cached` the same from stored tokens. The literal row computes the same function by appending the prompts,
running whole layers and cutting rows off; it is written from the equations and is not anybody's code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from torch import Tensor
from transformers import BertConfig, ViTConfig

from patchword.models.prompt_fusion import FusionTokens, PromptFusion, PromptFusionConfig, label_loss
from patchword.towers.bert import BertTower
from patchword.towers.vit import VitTower

BATCH, TOKENS, CLASSES = 8, 40, 101
ROWS = {
    "heads only": dict(fused_layers=0),
    "PMF, F 2, M 4, literal": dict(fused_layers=2, prompts=4, literal=True),
    "PMF, F 2, M 4": dict(fused_layers=2, prompts=4),
    "PMF, F 2, M 16": dict(fused_layers=2, prompts=16),
    "PMF, F 2, M 32": dict(fused_layers=2, prompts=32),
    "PMF, F 4, M 4": dict(fused_layers=4, prompts=4),
    "PMF, F 4, M 16": dict(fused_layers=4, prompts=16),
    "PMF, F 4, M 32": dict(fused_layers=4, prompts=32),
    "everything trained, F 2, M 4": dict(fused_layers=2, prompts=4, trainable_from=0),
}


def build(tiny: bool, fused_layers: int, prompts: int = 0, trainable_from: int | None = None) -> PromptFusion:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2) if tiny else {}
    image_tower = VitTower.from_architecture(ViTConfig(**sizes), trainable_from)
    text_tower = BertTower.from_architecture(BertConfig(**sizes), trainable_from)
    lengths = dict(query=prompts, query_context=prompts, fusion_context=prompts)
    return PromptFusion(PromptFusionConfig(classes=CLASSES, fused_layers=fused_layers, **lengths), image_tower, text_tower)


def literal_fuse(model: PromptFusion, tokens: FusionTokens) -> Tensor:
    """The paper's equations with whole layers: append, run, cut."""
    z_v, z_t, mask_BL = tokens
    patches, words, batch = z_v.shape[1], z_t.shape[1], len(z_v)

    def real(rows_BNC: Tensor) -> Tensor:
        return torch.cat([mask_BL, mask_BL.new_ones(batch, rows_BNC.shape[1] - words)], 1)

    for fused, image_layer, text_layer in model.fused_pairs():
        image, text = fused.image, fused.text
        rows_v = torch.cat([z_v, *(part.expand(batch, -1, -1) for part in (image.query_context_MC, image.query_QC))], 1)
        rows_t = torch.cat([z_t, *(part.expand(batch, -1, -1) for part in (text.query_context_MC, text.query_QC))], 1)
        for_text = fused.image_to_text(image_layer(rows_v)[:, -len(image.query_QC) :])
        for_image = fused.text_to_image(text_layer(rows_t, real(rows_t))[:, -len(text.query_QC) :])
        rows_v = torch.cat([z_v, image.fusion_context_MC.expand(batch, -1, -1), for_image], 1)
        rows_t = torch.cat([z_t, text.fusion_context_MC.expand(batch, -1, -1), for_text], 1)
        z_v, z_t = image_layer(rows_v)[:, :patches], text_layer(rows_t, real(rows_t))[:, :words]
    image_BY = model.image_head(model.image_tower.finish(z_v).class_BC)
    return (image_BY + model.text_head(z_t[:, 0])) / 2


class SavedBytes:
    """Counts what autograd keeps while it is entered: every storage once, parameters left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.storages: dict[int, int] = {}
        self.held: list[Tensor] = []  # a storage must not be freed and its address used again while we count
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            self.storages[storage.data_ptr()] = storage.nbytes()
            self.held.append(tensor)
        return tensor

    def mebibytes(self) -> float:
        return sum(self.storages.values()) / 2**20


def measure(name: str, tiny: bool) -> dict[str, float]:
    torch.set_num_threads(1)
    settings = dict(ROWS[name])
    fuse = literal_fuse if settings.pop("literal", False) else PromptFusion.fuse
    model = build(tiny, **settings).train()
    image, ids_BL = torch.randn(BATCH, 3, 224, 224), torch.randint(1000, 30000, (BATCH, TOKENS))
    labels_B = torch.randint(0, CLASSES, (BATCH,))
    saved = SavedBytes(model)
    with saved.hooks:
        label_loss(fuse(model, model.lower(image, ids_BL)), labels_B, multi_label=False).backward()
    start = time.process_time()
    tokens = model.lower(image, ids_BL)
    logits_BY = fuse(model, tokens)
    label_loss(logits_BY, labels_B, multi_label=False).backward()
    step = time.process_time() - start
    stored = FusionTokens(tokens.image_BNC.detach(), tokens.text_BLC.detach(), tokens.text_mask_BL)
    start = time.process_time()
    label_loss(fuse(model, stored), labels_B, multi_label=False).backward()
    cached = time.process_time() - start
    with torch.no_grad():
        difference = float((literal_fuse(model, stored) - logits_BY).abs().max() / logits_BY.abs().max())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in model.parameters())
    return dict(trained=trained, share=trained / everything, saved=saved.mebibytes(), step=step, cached=cached, difference=difference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small towers")
    parser.add_argument("--row", choices=ROWS, help="measure one row in this process and print it as JSON")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options.tiny)))
        return
    print("| what is trained | parameters | share | saved MiB | step CPU s | cached CPU s | cached : step |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    largest = 0.0
    for name in ROWS:
        command = [sys.executable, __file__, "--row", name, *(["--tiny"] if options.tiny else [])]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        # With trained lower layers there is nothing constant to store.
        stored = "- | -" if name.startswith("everything") else f"{row['cached']:.2f} | {row['cached'] / row['step']:.2f}"
        print(f"| {name} | {row['trained']:,} | {row['share']:.2%} | {row['saved']:.0f} | {row['step']:.1f} | {stored} |", flush=True)
        largest = max(largest, row["difference"])
    print(f"\nlargest difference of the logits to the literal equations, relative: {largest:.1e}")


if __name__ == "__main__":
    main()
