import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertModel, RobertaConfig

from patchword.errors import ConfigError, ModelError
from patchword.towers.bert import BertTower
from patchword.towers.layered import run_layers
from patchword.towers.settings import BertSizes, BertTowerConfig

SIZES = dict(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    vocab_size=30,
    max_position_embeddings=14,
)


@pytest.mark.parametrize("config_class", [BertConfig, RobertaConfig])
def test_bert_is_the_composition_of_its_parts_and_equals_transformers(config_class):
    torch.manual_seed(0)
    tower = BertTower.from_architecture(config_class(**SIZES, type_vocab_size=2))
    ids_BL = torch.randint(3, 30, (3, 7))
    types_BL = torch.randint(0, 2, (3, 7))
    mask_BL = torch.arange(7) < torch.tensor([[7], [4], [1]])
    ids_BL[~mask_BL] = tower.model.config.pad_token_id
    features = tower(ids_BL, mask_BL, types_BL)
    theirs_BLC = tower.model(ids_BL, attention_mask=mask_BL.long(), token_type_ids=types_BL).last_hidden_state
    torch.testing.assert_close(features.tokens_BLC[mask_BL], theirs_BLC[mask_BL], rtol=0, atol=2e-6)
    assert torch.equal(features.mask_BL, mask_BL)

    tokens_BLC, mask = tower.embed(ids_BL, mask_BL, types_BL)
    stored_BLC = run_layers(tower.layers, tokens_BLC, mask, stop=1)
    assert torch.equal(
        tower.finish(run_layers(tower.layers, stored_BLC, mask, start=1)).tokens_BLC, features.tokens_BLC
    )


def test_a_bert_layer_comes_apart():
    tower = BertTower.from_architecture(BertConfig(**SIZES))
    tokens_BLC, mask_BL = tower.embed(torch.randint(3, 30, (2, 6)))
    queries, keys, values = tower.layers[0].project(tokens_BLC)
    row_B1C = tower.layers[0].attend(tokens_BLC[:, 2:3], queries[:, :, 2:3], keys, values, mask_BL)
    torch.testing.assert_close(row_B1C, tower.layers[0](tokens_BLC, mask_BL)[:, 2:3])


def test_padding_changes_nothing():
    tower = BertTower.from_architecture(BertConfig(**SIZES))
    ids_BL = torch.randint(3, 30, (1, 5))
    padded_BL = torch.cat([ids_BL, torch.zeros(1, 4, dtype=torch.long)], 1)
    torch.testing.assert_close(tower(padded_BL, padded_BL != 0).tokens_BLC[:, :5], tower(ids_BL).tokens_BLC)


def test_texts_longer_than_the_table_are_refused():
    roberta = BertTower.from_architecture(RobertaConfig(**SIZES))
    assert roberta.max_length == 12  # RoBERTa's positions start behind the padding id 1
    roberta(torch.full((1, 12), 5))
    with pytest.raises(ModelError, match="a text has 13 tokens and the text tower takes at most 12: cut it"):
        roberta(torch.full((1, 13), 5))


def test_published_weights_from_a_folder(tmp_path):
    theirs = BertModel(BertConfig(**SIZES)).eval()
    theirs.save_pretrained(tmp_path)
    ids_BL = torch.randint(3, 30, (2, 6))
    tower = BertTower.from_pretrained(tmp_path)
    torch.testing.assert_close(tower(ids_BL).tokens_BLC, theirs(ids_BL).last_hidden_state, rtol=0, atol=2e-6)


@pytest.mark.parametrize("heads", [0, -1])
def test_attention_without_heads_is_refused_before_anything_is_built(heads):
    """-1 divides every width."""
    with pytest.raises(ValidationError, match="attention has at least one head"):
        BertTowerConfig(architecture={**SIZES, "num_attention_heads": heads})
    with pytest.raises(ConfigError, match=f"num_attention_heads is {heads}"):
        BertSizes.read({**SIZES, "num_attention_heads": heads})
