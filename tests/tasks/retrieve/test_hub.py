import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from patchword.checkpoints.folder import weights_digest
from patchword.errors import DataError, ModelError
from patchword.tasks.retrieve.codebook import make_codebook
from patchword.tasks.retrieve.load import load_two_towers
from patchword.towers.clip import ClipTower, ClipTowerConfig

TEXTS = ["a cat", "a dog ! cats", "dog"]


def test_vectors_and_labels_equal_transformers(tiny_clip):
    towers = load_two_towers(f"hub:{tiny_clip}", "cpu")
    theirs, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPTokenizer.from_pretrained(tiny_clip)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mean, std = torch.tensor(_MEAN)[:, None, None], torch.tensor(_STD)[:, None, None]
    pixels = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - mean) / std
    with torch.inference_mode():
        out = theirs(**tokenizer(TEXTS, padding=True, return_tensors="pt"), pixel_values=pixels)
    ours = towers.embed_texts(TEXTS)
    np.testing.assert_allclose(ours, out.text_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(towers.embed_images([picture]), out.image_embeds.numpy(), atol=2e-6)
    np.testing.assert_allclose(
        towers.label([picture], TEXTS, ("{}",)), out.logits_per_image.softmax(1).numpy(), atol=1e-5
    )


_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def test_a_codebook_fits_the_tower_of_a_training(tiny_clip):
    """What `fused-coco-clip-b16` relies on: the id of the codebook is that of the same CLIP as a tower."""
    made = make_codebook(load_two_towers(f"hub:{tiny_clip}", "cpu"), ["cat", "dog"])
    tower = ClipTower(ClipTowerConfig(source=str(tiny_clip), aligned="value_only", trainable_from=1))
    made.codebook.check_tower(weights_digest(tower)[:16])
    aligned_BNE = tower(torch.zeros(1, 3, 16, 16)).aligned_BNE
    assert made.codebook.embeddings_WE.shape == (2, aligned_BNE.shape[-1]) and made.unknown == ()


def test_what_cannot_be_done_is_said(tiny_clip, tmp_path):
    towers = load_two_towers(f"hub:{tiny_clip}", "cpu")
    with pytest.raises(DataError, match="has no word that the model knows"):
        towers.embed_texts([" "])
    with pytest.raises(ModelError, match="not saved as a model folder"):
        towers.write(tmp_path / "copy")
    with pytest.raises(ModelError, match="transformers gives no CLIP for"):
        load_two_towers(f"hub:{tmp_path}", "cpu")


def test_pictures_of_any_size_are_taken(tiny_clip):
    vectors_NE = load_two_towers(f"hub:{tiny_clip}", "cpu").embed_images(
        [Image.new("RGB", (40, 20), "red"), Image.new("L", (9, 30))]
    )
    np.testing.assert_allclose(np.linalg.norm(vectors_NE, axis=1), 1, atol=1e-5)
