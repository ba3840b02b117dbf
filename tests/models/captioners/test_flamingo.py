"""Flamingo: nothing changes at the start, nothing leaks, nothing is read twice; parity with Idefics."""

import copy

import pytest
import torch
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from patchword.checkpoints.folder import weights_digest
from patchword.errors import ConfigError, ModelError
from patchword.models.captioners.flamingo import (
    MARK,
    Flamingo,
    FlamingoConfig,
    GatedBlock,
    Resampler,
    continue_greedily,
    next_token_loss,
)
from patchword.towers.language import CausalLanguage
from patchword.towers.settings import LanguageConfig

WIDTH, SEEN = 16, 12
LLAMA = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 20, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": WIDTH, "n_layer": 4, "n_head": 2, "vocab_size": 20, "n_positions": 64,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
SIZES = {"latents": 3, "layers": 2, "heads": 2, "head_width": 8, "every": 2}


def build(architecture=LLAMA, gates=0.0, **more) -> Flamingo:
    torch.manual_seed(0)
    language = CausalLanguage(LanguageConfig(architecture=architecture))
    return Flamingo(FlamingoConfig(**(SIZES | more), initial_gate=gates), language, SEEN).eval()


@pytest.fixture
def document():
    """Two documents of two pictures each, at different places; the first begins with text."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (2, 9), generator=generator)
    ids[0, [2, 5]] = MARK
    ids[1, [0, 4]] = MARK
    return ids, torch.randn(4, 5, SEEN, generator=generator)


def logits(model, ids, grids):
    latents = model.look(grids).unflatten(0, (len(ids), -1))
    return model(ids, model.remember(latents))


@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_it_begins_as_its_language_model(architecture, document):
    """To the last bit, with pictures among the tokens."""
    model = build(architecture, every=1)
    ids, grids = document
    embedded = model.language.model.get_input_embeddings()(ids.clamp_min(0))
    embedded = torch.where((ids == MARK)[..., None], model.mark_C, embedded)
    expected = model.language.model(inputs_embeds=embedded).logits
    assert (logits(model, ids, grids) - expected).abs().max() == 0
    plain = ids.clamp_min(1)
    assert torch.equal(model(plain, None), model.language(plain))
    assert not torch.equal(logits(build(architecture, 0.5, every=1), ids, grids), expected)


def test_training_leaves_the_language_model_as_it_was(document):
    model = build(gates=0.0).train()
    ids, grids = document
    before = weights_digest(model.language)
    learns = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(learns, lr=1e-2)
    counted = torch.ones_like(ids, dtype=torch.bool)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        total, count = next_token_loss(logits(model, ids, grids), ids, counted)
        (total / count).backward()
        optimiser.step()
        losses.append(float((total / count).detach()))
    assert weights_digest(model.language) == before and not model.language.training
    assert losses[-1] < 0.95 * losses[0], losses[::20]
    assert all(float(block.attention_gate.detach().abs()) > 0 for block in model.gated)


def test_every_trained_parameter_gets_a_gradient(document):
    model = build(gates=0.3)
    ids, grids = document
    next_token_loss(logits(model, ids, grids), ids, torch.ones_like(ids, dtype=torch.bool))[0].backward()
    assert not [name for name, w in model.named_parameters() if w.requires_grad and not w.grad.abs().any()]


@pytest.mark.parametrize("picture", [0, 1])
def test_a_picture_never_moves_an_earlier_token(document, picture):
    model, (ids, grids) = build(gates=0.7, every=1), document
    other = grids.clone()
    other[picture] = 0  # of the first document
    difference = (logits(model, ids, grids) - logits(model, ids, other)).abs().amax(-1)
    place = [2, 5][picture]
    assert difference[0, :place].max() == 0 and difference[1].max() == 0
    assert (difference[0, place:] > 0).all()


def test_a_gated_block_shows_each_token_the_last_picture_alone(document):
    """What an earlier picture does to later tokens comes through the language model's own attention."""
    model, (ids, grids) = build(gates=0.7), document
    x = torch.randn(2, 9, WIDTH)
    last = (ids == MARK).long().cumsum(1)

    def through(grids):
        media = model.remember(model.look(grids).unflatten(0, (2, -1)))
        bias, has = model._visible(media, last)
        return model.gated[0](x, media.keys[0], media.values[0], bias, has)

    other = grids.clone()
    other[0] = 0
    moved = (through(grids) - through(other)).abs().amax(-1) > 0
    assert moved[0].tolist() == [False] * 2 + [True] * 3 + [False] * 4 and not moved[1].any()
    feed = x + model.gated[0].feed_gate.tanh() * model.gated[0].feed_forward(x)
    assert torch.equal(through(grids)[0, :2], feed[0, :2]), "before any picture nothing is seen"


@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_reading_in_parts_equals_reading_at_once(architecture, document):
    """Also token by token, and with shots that several questions share."""
    model, (ids, grids) = build(architecture, 0.5, every=1), document
    whole = logits(model, ids, grids)
    latents = model.look(grids).unflatten(0, (2, 2))
    one_each = model.read(ids[:1, :4], latents[:1, :1])
    with pytest.raises(ModelError, match="names picture 2 and 1 were given"):
        model.read(ids[:1, 4:], None, one_each)
    second = model.read(ids[:1, 4:], latents[:1, 1:], one_each)
    torch.testing.assert_close(one_each.logits_BTV, whole[:1, :4], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(second.logits_BTV, whole[:1, 4:], atol=1e-5, rtol=1e-4)
    read, steps = one_each, []
    for t in range(4, 9):
        mark = ids[:1, t : t + 1]
        read = model.read(mark, latents[:1, 1:] if mark.item() == MARK else None, read)
        steps.append(read.logits_BTV)
    torch.testing.assert_close(torch.cat(steps, 1), whole[:1, 4:], atol=1e-5, rtol=1e-4)
    # one prefix, two questions: neither sees the other, and the prefix stays as it was
    asked = torch.stack((ids[0, 4:], ids[0, 4:].flip(0)))
    pair = torch.stack((latents[0, 1:], latents[1, :1]))
    both = model.read(asked, pair, one_each)
    again = model.read(asked[1:], pair[1:], one_each)
    torch.testing.assert_close(both.logits_BTV[1:], again.logits_BTV, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.logits_BTV[:1], second.logits_BTV, atol=1e-5, rtol=1e-4)


def test_batch_of_one_equals_batch_of_many_and_padding_changes_nothing(document):
    model, (ids, grids) = build(gates=0.5), document
    whole = logits(model, ids, grids)
    torch.testing.assert_close(logits(model, ids[:1], grids[:2]), whole[:1], atol=1e-5, rtol=1e-4)
    padded = torch.cat((ids, torch.zeros(2, 3, dtype=torch.long)), 1)
    torch.testing.assert_close(logits(model, padded, grids)[:, :9], whole, atol=1e-5, rtol=1e-4)
    more = torch.cat((model.look(grids).unflatten(0, (2, 2)), torch.full((2, 1, 3, SEEN), 9.0)), 1)
    torch.testing.assert_close(model(ids, model.remember(more)), whole, atol=1e-5, rtol=1e-4)


def test_greedy_words_are_those_of_teacher_forcing(document):
    model, (ids, grids) = build(gates=0.5, every=1), document
    latents = model.look(grids).unflatten(0, (2, 2))
    said = continue_greedily(model, model.read(ids, latents), end=-5, longest=4)
    rows = [one.tokens for one in said]
    assert [len(row) for row in rows] == [4, 4] and not said[0].complete
    whole = torch.cat((ids, torch.tensor(rows)), 1)
    scores = logits(model, whole, grids)[:, 8:-1].log_softmax(-1)
    assert scores.argmax(-1).tolist() == rows
    expected = scores.amax(-1).sum(1).tolist()
    assert [one.log_probability for one in said] == pytest.approx(expected, abs=1e-4)
    end = rows[0][2]
    again = continue_greedily(model, model.read(ids, latents), end=end, longest=4)[0]
    assert again.tokens == rows[0][: rows[0].index(end)] and again.complete


def test_videos_have_as_many_latents_as_pictures():
    torch.manual_seed(0)
    resampler = Resampler(SEEN, FlamingoConfig(**SIZES, frames=4))
    video = torch.randn(2, 4, 5, SEEN)
    assert resampler(video).shape == resampler(video[:, 0]).shape == (2, 3, SEEN)
    assert not torch.allclose(resampler(video), resampler(video.flip(1))), "time matters"
    patches = video[:, 0]
    torch.testing.assert_close(resampler(patches), resampler(patches.flip(1)), atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="a video of 5 frames"):
        resampler(torch.randn(1, 5, 5, SEEN))


def idefics():
    return IdeficsConfig(
        hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2, vocab_size=20, num_hidden_layers=1,
        qk_layer_norms=False, alpha_initializer="zeros", alpha_type="float",
        vision_config={"embed_dim": SEEN},
    )  # fmt: skip


def test_resampler_equals_that_of_idefics():
    """Random weights, by a map of names."""
    torch.manual_seed(0)
    config = idefics()
    config.perceiver_config.qk_layer_norms_perceiver = False
    theirs = IdeficsPerceiverResampler(config, SEEN, 2, 2, 8, 3)
    ours = Resampler(SEEN, FlamingoConfig(**SIZES))
    names = {
        "latents_RW": "latents", "norm.": "layer_norm.", ".patch_norm": ".0.context_layer_norm",
        ".latent_norm": ".0.latents_layer_norm", ".attention.query": ".0.q_proj", ".attention.key": ".0.k_proj",
        ".attention.value": ".0.v_proj", ".attention.output": ".0.output_proj", ".feed_forward.norm": ".1.ln",
        ".feed_forward.expand": ".1.fc", ".feed_forward.contract": ".1.c_proj",
    }  # fmt: skip
    weights = {}
    for name, value in ours.state_dict().items():
        mapped = name.replace("layers.", "blocks.") if name.startswith("layers.") else name
        for old, new in names.items():
            if old in mapped and (name.startswith("layers.") == old.startswith(".")):
                mapped = mapped.replace(old, new)
                break
        weights[name] = theirs.state_dict()[mapped]
        assert weights[name].shape == value.shape
    assert len(weights) == len(theirs.state_dict())
    ours.load_state_dict(weights)
    patches = torch.randn(2, 5, SEEN)
    torch.testing.assert_close(ours(patches), theirs(patches), atol=1e-5, rtol=1e-4)


def test_gates_and_masks_equal_those_of_idefics():
    """Idefics norms by root mean square and has a gated feed-forward: these two are put in from there; what
    is compared is attention, masks, gates and residuals."""
    torch.manual_seed(0)
    theirs = IdeficsGatedCrossAttentionLayer(idefics(), layer_idx=0).eval()
    ours = GatedBlock(WIDTH, SEEN, FlamingoConfig(**SIZES))
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.5)
    for name, other in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")):
        getattr(ours.attention, name).load_state_dict(getattr(theirs.cross_attn, other).state_dict())
    ours.norm = copy.deepcopy(theirs.input_layernorm)
    ours.feed_forward = torch.nn.Sequential(theirs.post_attention_layernorm, theirs.mlp)
    ours.attention_gate.data, ours.feed_gate.data = theirs.alpha_cross_attn.data, theirs.alpha_dense.data
    x, seen = torch.randn(2, 6, WIDTH), torch.randn(2, 6, SEEN)
    last = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2]])
    visible = (torch.arange(6) // 3 + 1) == last[..., None]
    has = (last > 0)[..., None]
    bias = torch.zeros(2, 1, 6, 6).masked_fill_(~(visible | ~has)[:, None], -1e9)
    expected = theirs(
        x, image_hidden_states=seen, image_attention_mask=bias, cross_attention_gate=(last > 0).float()
    )
    found = ours(x, *ours.attention.project(seen), bias, has.float())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused(document):
    with pytest.raises(ConfigError, match="no gated block would stand anywhere"):
        build(every=5)
    with pytest.raises(ModelError, match="take the tower that it was trained with"):
        build().look(torch.zeros(1, 5, SEEN + 1))
    with pytest.raises(ConfigError, match="no model_type"):
        CausalLanguage(LanguageConfig(architecture={"hidden_size": 8}))
