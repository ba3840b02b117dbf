"""Pipelines of diffusers with tiny random parts, under the flags of `patchword paint`."""

import json

import numpy as np
import pytest
import torch

from patchword.cli import app
from patchword.errors import ConfigError, DataError, ModelError
from patchword.tasks.paint.marks import read_facts
from patchword.tasks.paint.model import load_painter


def type_in(*words: object) -> int:
    return app([str(word) for word in words], standalone_mode=False) or 0


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, tiny_clip):
    """A latent diffusion of a few thousand weights, as diffusers saves it."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip, model_max_length=12)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=18,
            eos_token_id=19,
            pad_token_id=19,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
    )
    made = StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        DDIMScheduler(clip_sample=False, steps_offset=1),
        None,
        None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    made.save_pretrained(folder)
    return folder


def test_a_pipeline_paints_under_the_same_flags(pipeline, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("paint", "cat dog", "--model", f"hub:{pipeline}", "-n", 2, "--steps", 3, "--out", out)
    assert type_in(*words, "--explain", "--html", "--grid", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["seed"] for row in rows] == [1, 2]
    assert read_facts(out / "cat-dog-1.png")["model"] == f"hub:{pipeline}"
    page = (out / "index.html").read_text()
    assert all(f"<figcaption>{word}, " in page for word in ("cat", "dog"))
    assert (out / "words-2.png").exists()


def test_it_paints_what_diffusers_paints(pipeline):
    from diffusers import StableDiffusionPipeline

    painter = load_painter(f"hub:{pipeline}", "cpu")
    ours = painter.paint("cat", [5], guidance=3.0, steps=4)
    theirs = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    options = {"guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "np"}
    expected = theirs("cat", generator=generator, **options).images
    assert np.array_equal(ours, np.rint(expected * 255).astype(np.uint8))


def test_maps_are_the_softmax_over_the_words(pipeline):
    """Shares of words and marks sum to one in every cell, and explaining changes no picture."""
    painter = load_painter(f"hub:{pipeline}", "cpu")
    pixels, words, maps = painter.explain("cat dogs", [5, 6], steps=2)
    assert words == ["<|startoftext|>", "cat", "dogs", "<|endoftext|>"]
    assert maps.shape == (2, 4, 8, 8) and (maps >= 0).all() and maps.sum(1).max() <= 1 + 1e-5
    assert np.array_equal(pixels, painter.paint("cat dogs", [5, 6], steps=2))


def test_what_a_pipeline_cannot_do_is_told(pipeline, tmp_path):
    painter = load_painter(f"hub:{pipeline}", "cpu")
    with pytest.raises(ConfigError, match="guidance is 0.5: pipelines of diffusers are guided from 1 on"):
        painter.paint("cat", [1], guidance=0.5)
    with pytest.raises(DataError, match="the prompt is empty"):
        painter.paint(" ", [1])
    assert "the model reads 12: the last " in painter.remarks("cat dog " * 9)[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="diffusers gives no pipeline for"):
        load_painter(f"hub:{tmp_path / 'empty'}", "cpu")
