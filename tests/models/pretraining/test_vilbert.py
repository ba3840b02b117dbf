"""ViLBERT: two BERTs without co-attention, padding that is never seen, parity with LXMERT, false texts."""

import numpy as np
import pytest
import torch
from transformers import LxmertConfig
from transformers.models.lxmert.modeling_lxmert import LxmertCrossAttentionLayer

from patchword.errors import ConfigError
from patchword.layers.co_attention import CoAttention, StreamAttention
from patchword.models.pretraining.vilbert import Vilbert, VilbertConfig, region_loss, word_loss
from patchword.tasks.pretrain.hard_negatives import kinds_of, replaced
from patchword.tasks.pretrain.regions import cell_boxes, five, window_boxes
from patchword.towers.bert import BertTower
from patchword.towers.settings import BertTowerConfig

CONFIG = VilbertConfig(pairs=2, width=12, heads=2, hidden=20, inner=8)


def bert(width, layers, vocabulary=20):
    sizes = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 20,
        "vocab_size": vocabulary, "max_position_embeddings": 12, "pad_token_id": 0,
    }  # fmt: skip
    return BertTower(BertTowerConfig(architecture=sizes, trainable_from=0))


def build(classes=6) -> Vilbert:
    torch.manual_seed(0)
    model = Vilbert(CONFIG, bert(16, 3), bert(12, 2), 10, classes).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) * 0.2)
    return model


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (2, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    return ids, mask, torch.randn(2, 5, 10, generator=generator), torch.rand(2, 5, 5, generator=generator)


def test_without_co_attention_the_streams_are_two_berts(pair):
    """Output layers at zero: what is left of a joint is a norm of what was normed."""
    model = build()
    with torch.no_grad():
        for joint in model.joined:
            for layer in (joint.text_asks.output, joint.picture_asks.output):
                layer.weight.zero_(), layer.bias.zero_()
            for layer in (joint.text_thinks.contract, joint.picture_thinks.contract):
                layer.weight.zero_(), layer.bias.zero_()
    ids, mask, features, places = pair
    found = model(ids, mask, features, places)
    expected = model.text(ids, mask).tokens_BLC
    torch.testing.assert_close(found.text_BLC[mask], expected[mask], atol=1e-5, rtol=1e-4)
    picture = model.regions(features, places)
    for layer in model.picture.layers:
        picture = layer(picture, None)
    torch.testing.assert_close(found.picture_BNW, picture, atol=1e-5, rtol=1e-4)
    other = model(ids, mask, torch.randn_like(features), places)
    assert torch.equal(other.text_BLC, found.text_BLC)


def test_padding_has_weight_zero_in_both_directions(pair):
    model = build()
    ids, mask, features, places = pair
    regions = torch.arange(5) < torch.tensor([[5], [3]])
    before = model(ids, mask, features, places, regions)
    ids, features, places = ids.clone(), features.clone(), places.clone()
    ids[1, 4:], features[1, 3:], places[1, 3:] = 9, 100.0, -7.0
    after = model(ids, mask, features, places, regions)
    assert torch.equal(after.text_BLC[mask], before.text_BLC[mask])
    assert torch.equal(after.picture_BNW[regions], before.picture_BNW[regions])
    asked = StreamAttention(16, 12, 8, 2)
    _, weights = asked(before.text_BLC, before.picture_BNW, regions, want_weights=True)
    assert weights[1, :, :, 3:].abs().max() == 0 and torch.allclose(weights.sum(-1), torch.ones(()))


def test_batch_of_one_equals_batch_of_two(pair):
    model = build()
    both = model(*pair)
    ids, mask, features, places = pair
    one = model(ids[1:, :4], mask[1:, :4], features[1:], places[1:])
    torch.testing.assert_close(one.text_BLC, both.text_BLC[1:, :4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.pair_logits(one), model.pair_logits(both)[1:], atol=1e-5, rtol=1e-4)


def test_every_parameter_learns(pair):
    model = build()
    ids, mask, features, places = pair
    hidden = torch.zeros_like(mask)
    hidden[:, 2] = True
    streams = model(ids, mask, features, places, None, hidden)
    target = torch.rand(2, 5, 6).softmax(-1)
    loss = word_loss(model.word_head(streams.text_BLC[hidden]), ids[hidden])
    loss = loss + region_loss(
        model.class_head(streams.picture_BNW[:, 1:].flatten(0, 1)), target[:, 1:].flatten(0, 1)
    )
    (loss + model.pair_logits(streams).sum()).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert all(name.startswith("picture.model.embeddings") for name in silent), silent


def test_a_hidden_word_is_not_seen(pair):
    model = build()
    ids, mask, features, places = pair
    hidden = torch.zeros_like(mask)
    hidden[0, 3] = True
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % 20
    first, second = (model(one, mask, features, places, None, hidden) for one in (ids, other))
    assert torch.equal(first.text_BLC, second.text_BLC)


def test_cross_attention_equals_that_of_lxmert():
    """Random weights, by a map of names; LXMERT shares one for both directions, ours has two."""
    torch.manual_seed(0)
    config = LxmertConfig(
        hidden_size=16, num_attention_heads=2, hidden_dropout_prob=0, attention_probs_dropout_prob=0
    )
    theirs, ours = LxmertCrossAttentionLayer(config).eval(), StreamAttention(16, 16, 16, 2)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    names = {
        "query": "att.query", "key": "att.key", "value": "att.value", "output": "output.dense",
        "norm": "output.LayerNorm",
    }  # fmt: skip
    weights = {
        name: theirs.state_dict()[f"{names[name.split('.')[0]]}.{name.split('.')[1]}"]
        for name in ours.state_dict()
    }
    ours.load_state_dict(weights)
    x, other = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    bias = torch.zeros(2, 1, 1, 4).masked_fill_(~mask[:, None, None], -1e9)
    torch.testing.assert_close(ours(x, other, mask)[0], theirs(x, other, bias)[0], atol=1e-5, rtol=1e-4)


def test_both_directions_read_the_streams_as_they_were():
    torch.manual_seed(0)
    joint = CoAttention(16, 12, 8, 2)
    text, picture = torch.randn(1, 3, 16), torch.randn(1, 4, 12)
    found = joint(text, picture, None, None)
    alone = joint.picture_thinks(joint.picture_asks(picture, text, None)[0])
    assert torch.equal(found[1], alone)


def test_region_loss_by_hand():
    """KL((1, 0) || (1/2, 1/2)) = log 2; 0 where both agree."""
    target = torch.tensor([[1.0, 0.0]])
    assert region_loss(torch.zeros(1, 2), target).item() == pytest.approx(np.log(2))
    logits = torch.randn(3, 5)
    assert region_loss(logits, logits.softmax(-1)).item() == pytest.approx(0, abs=1e-6)


def test_geometry_by_hand():
    boxes = cell_boxes((2, 4))
    assert boxes.shape == (9, 4) and boxes[0].tolist() == [0, 0, 1, 1]
    assert five(boxes)[2].tolist() == pytest.approx([0.25, 0, 0.5, 0.5, 0.125])
    windows = window_boxes()
    assert len(windows) == 1 + 9 + 25 and windows.min() == 0 and windows.max() == pytest.approx(1)


def test_words_of_one_kind_replace_each_other():
    red, blue, ring, star, a, the = range(10, 16)
    texts = [[a, colour, shape] for colour in (red, blue) for shape in (ring, star)]
    texts += [[the, colour, shape] for colour in (red, blue) for shape in (ring, star)]
    kinds = kinds_of(texts, least=2)
    assert kinds[red] == (blue,) and kinds[ring] == (star,) and kinds[a] == (the,)
    generator = np.random.default_rng(0)
    false = replaced([a, red, ring], kinds, generator)
    assert sum(x != y for x, y in zip(false, [a, red, ring], strict=True)) == 1
    assert replaced([99], kinds, generator) is None


def test_more_joints_than_blocks_are_refused():
    with pytest.raises(ConfigError, match="2 text blocks and 3 picture blocks"):
        Vilbert(CONFIG.model_copy(update={"pairs": 3}), bert(16, 2), bert(12, 3), 10, 0)
