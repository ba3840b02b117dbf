import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from patchword.checkpoint import weights_digest
from patchword.errors import DataError, ModelError
from patchword.tasks.codebook import make_codebook
from patchword.tasks.retrieve import load_two_towers
from patchword.towers.clip import ClipTower, ClipTowerConfig

PIECES = ["a", "c", "d", "g", "o", "t", "!", "!</w>", "a</w>", "t</w>", "g</w>", "o</w>", "ca", "do", "cat</w>", "dog</w>", "s</w>", "s"]
TEXTS = ["a cat", "a dog ! cats", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP with random weights and a tokenizer of twenty pieces, as transformers saves them."""
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


def test_vectors_and_labels_equal_transformers(folder):
    towers = load_two_towers(f"hub:{folder}", "cpu")
    theirs, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
    pixels = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - mean) / std
    with torch.inference_mode():
        out = theirs(**tokenizer(TEXTS, padding=True, return_tensors="pt"), pixel_values=pixels)
    ours = towers.embed_texts(TEXTS)
    np.testing.assert_allclose(ours, out.text_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(towers.embed_images([picture]), out.image_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(towers.label([picture], TEXTS, ("{}",)), out.logits_per_image.softmax(1).numpy(), atol=1e-5)


_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def test_a_codebook_fits_the_tower_of_a_training(folder):
    """What `configs/fused-coco-clip-b16.toml` relies on: the id of the codebook is that of the same CLIP as a tower."""
    made = make_codebook(load_two_towers(f"hub:{folder}", "cpu"), ["cat", "dog"])
    tower = ClipTower(ClipTowerConfig(source=str(folder), aligned="value_only", trainable_from=1))
    made.codebook.check_tower(weights_digest(tower)[:16])
    aligned_BNE = tower(torch.zeros(1, 3, 16, 16)).aligned_BNE
    assert made.codebook.embeddings_WE.shape == (2, aligned_BNE.shape[-1]) and made.unknown == ()


def test_what_cannot_be_done_is_said(folder, tmp_path):
    towers = load_two_towers(f"hub:{folder}", "cpu")
    with pytest.raises(DataError, match="has no word that the model knows"):
        towers.embed_texts([" "])
    with pytest.raises(ModelError, match="not saved as a model folder"):
        towers.write(tmp_path / "copy")
    with pytest.raises(ModelError, match="transformers gives no CLIP for"):
        load_two_towers(f"hub:{tmp_path}", "cpu")


def test_pictures_of_any_size_are_taken(folder):
    vectors_NE = load_two_towers(f"hub:{folder}", "cpu").embed_images([Image.new("RGB", (40, 20), "red"), Image.new("L", (9, 30))])
    np.testing.assert_allclose(np.linalg.norm(vectors_NE, axis=1), 1, atol=1e-5)
