"""Captioners of transformers behind our interface, with tiny random models saved as real ones are."""

import pytest
import skimage.data
import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
)

import patchword
from patchword.errors import ModelError
from patchword.tasks.caption.options import DecodingOptions

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "dog",
    "cat",
    "runs",
    "on",
    "grass",
    "[DEC]",
    "[ENC]",
]


def tokenizer(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizerFast(str(path))


def blip(tmp_path):
    text = dict(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    special = dict(bos_token_id=11, eos_token_id=3, pad_token_id=0, sep_token_id=3, encoder_hidden_size=16)
    vision = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
    )
    model = BlipForConditionalGeneration(BlipConfig(text_config=text | special, vision_config=vision))
    return model, BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer(tmp_path))


def git(tmp_path):
    vision = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
    )
    sizes = dict(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    model = GitForCausalLM(
        GitConfig(vision_config=vision, bos_token_id=2, eos_token_id=3, pad_token_id=0, **sizes)
    )
    return model, GitProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer(tmp_path))


@pytest.fixture(params=[blip, git], ids=["blip", "git"])
def folder(request, tmp_path):
    torch.manual_seed(0)
    model, processor = request.param(tmp_path)
    target = tmp_path / "model"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return target


def test_captions_come_in_order_with_alternatives(folder):
    captioner = patchword.load(f"hub:{folder}", device="cpu")
    pictures = [skimage.data.astronaut(), skimage.data.coffee()]
    both = captioner.caption(pictures, beams=2, n_best=2, options=DecodingOptions(max_length=6))
    assert [
        captioner.caption(picture, beams=2, n_best=2, options=DecodingOptions(max_length=6)).text
        for picture in pictures
    ] == [caption.text for caption in both]
    for caption in both:
        assert len(caption.alternatives) == 1
        assert caption.log_probability < 0
        assert caption.attention_Thw is None


def test_folder_that_is_no_captioner(tmp_path):
    with pytest.raises(ModelError, match="transformers gives no captioner for"):
        patchword.load(f"hub:{tmp_path}", device="cpu")
