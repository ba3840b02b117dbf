"""What tests of several folders share."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PIECES = ["a", "c", "d", "g", "o", "t", "!", "!</w>", "a</w>", "t</w>", "g</w>", "o</w>", "ca", "do", "cat</w>", "dog</w>", "s</w>", "s"]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A tiny CLIP with random weights and a tokenizer of twenty pieces, as transformers saves them."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    pieces = {piece: number for number, piece in enumerate([*PIECES, "<|startoftext|>", "<|endoftext|>"])}
    (path / "vocab.json").write_text(json.dumps(pieces))
    (path / "merges.txt").write_text("#version: 0.2\nc a\nd o\nca t</w>\ndo g</w>\n")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "projection_dim": 12}
    text = {**sizes, "hidden_size": 8, "vocab_size": 20, "max_position_embeddings": 12, "bos_token_id": 18, "eos_token_id": 19}
    vision = {**sizes, "hidden_size": 16, "image_size": 16, "patch_size": 4}
    torch.manual_seed(2)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, "pad_token_id": 19}, projection_dim=12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def write_panoptic():
    """Writes drawn scenes' masks as COCO writes panoptic ones, each shape a class (1: circle, ...); returns the path of the JSON."""

    def write(folder: Path, scenes, image_ids, size: int) -> Path:
        from patchword.data.scenes import masks
        from patchword.data.scenes.world import SHAPES

        (folder / "panoptic").mkdir(parents=True, exist_ok=True)
        annotations = []
        for scene, owners_KSS, image_id in zip(scenes, masks(scenes, size), image_ids, strict=True):
            ids = [3 * 65536 + 7 * 256 + k for k in range(len(scene.things))]
            colours_SS3 = np.zeros((size, size, 3), dtype=np.uint8)
            for k, number in enumerate(ids):
                colours_SS3[owners_KSS[k]] = (number % 256, number // 256 % 256, number // 65536)
            Image.fromarray(colours_SS3).save(folder / "panoptic" / f"{image_id}.png")
            parts = [{"id": one, "category_id": 1 + SHAPES.index(thing.shape)} for one, thing in zip(ids, scene.things, strict=True)]
            annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": parts})
        path = folder / "panoptic.json"
        path.write_text(json.dumps({"annotations": annotations}))
        return path

    return write
