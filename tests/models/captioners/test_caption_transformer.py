"""The caption transformer in all its configurations: conformance, parts switched off, prototypes in decoding,
what the bank sees.
"""

import itertools

import pytest
import torch
from conformance import CHECKS, PATCHES, Case, captions, full, made, pictures

from patchword.decode import beam_search
from patchword.errors import ConfigError, ModelError
from patchword.layers.codebook import Codebook
from patchword.layers.prototypes import PrototypeConfig
from patchword.layers.region_alignment import RegionAlignmentConfig
from patchword.models.captioners.caption_transformer import CaptionTransformer, CaptionTransformerConfig
from patchword.types import SpecialIds, VisualFeatures

C, V = 6, 12
PLACEMENTS = ("self_concat", "cross_add", "sequential")
BASE = CaptionTransformerConfig(
    width=16, heads=2, hidden=24, encoder_layers=1, decoder_layers=2, dropout=0, max_positions=8
)
ALIGNMENT = RegionAlignmentConfig(layers=1, contrast_width=0)


class FromGrid(CaptionTransformer):
    """Takes the grid itself for patches in the text space, so that features without such a field serve."""

    def encode(self, features):
        return super().encode(features._replace(aligned_BNE=features.grid_BNC))


def config(alignment=None, placement=None, **settings):
    memory = (
        None
        if placement is None
        else PrototypeConfig(placement=placement, count=5, cluster_every=4, effect_after=0, neighbours=2)
    )
    return BASE.model_copy(update={"region_alignment": alignment, "memory": memory} | settings)


def model_of(chosen):
    codebook = (
        None
        if chosen.region_alignment is None
        else Codebook(["dog", "sky", "sea"], torch.randn(3, C), "clip")
    )
    return FromGrid(chosen, C, V, codebook)


def fill(model):
    """Prototypes as after a clustering with one dead, and open gates."""
    if model.memory is not None:
        torch.nn.init.normal_(model.memory.keys_LMC)
        torch.nn.init.normal_(model.memory.values_LMC)
        model.memory.live_LM[:, :-1] = True
        for name, parameter in model.named_parameters():
            if name.endswith("gate_C") or "segment" in name:
                torch.nn.init.normal_(parameter)
    return model


def case(alignment=None, placement=None):
    return Case(lambda: fill(model_of(config(alignment, placement))), C, V)


CASES = {
    "baseline": case(),
    "fsgr": case(ALIGNMENT),
    "pma": case(None, "self_concat"),
    "fused": case(ALIGNMENT, "self_concat"),
    "fused-cross_add": case(ALIGNMENT, "cross_add"),
    "fused-sequential": case(ALIGNMENT, "sequential"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_conformance(name, check):
    check(CASES[name])


def decoded(model, trace=False):
    tokens_BT = captions(CASES["baseline"])
    memory = model.encode(pictures(CASES["baseline"]))
    return model.decode(tokens_BT, full(tokens_BT), memory, trace), memory, tokens_BT


def stepped(model, memory, tokens_BT):
    state, logits = model.start(memory, 1), []
    for step in range(tokens_BT.shape[1]):
        logits_BV, state, _ = model.step(tokens_BT[:, step], memory, state)
        logits.append(logits_BV)
    return torch.stack(logits, dim=1), state


@pytest.mark.parametrize(("placement", "alignment"), list(itertools.product(PLACEMENTS, [None, ALIGNMENT])))
def test_memory_off_is_bit_equal_to_the_base(placement, alignment):
    base = made(Case(lambda: model_of(config(alignment)), C, V))
    model = fill(model_of(config(alignment, placement))).eval()
    model.load_state_dict(model.state_dict() | base.state_dict())
    model.memory.set_log_bias(float("-inf"))
    expected, memory, tokens_BT = decoded(base)
    assert torch.equal(decoded(model)[0].logits_BTV, expected.logits_BTV)
    assert torch.equal(stepped(model, memory, tokens_BT)[0], stepped(base, memory, tokens_BT)[0])
    model.memory.set_log_bias(0.0)
    assert not torch.equal(decoded(model)[0].logits_BTV, expected.logits_BTV)
    model.memory.live_LM.zero_()  # as before the first clustering
    assert torch.equal(decoded(model)[0].logits_BTV, expected.logits_BTV)


@pytest.mark.parametrize("placement", ["cross_add", "sequential"])
def test_closed_gates_are_bit_equal_to_the_base(placement):
    base = made(CASES["baseline"])
    model = fill(model_of(config(None, placement))).eval()
    model.load_state_dict(model.state_dict() | base.state_dict())
    for layer in model.decoder:
        torch.nn.init.zeros_((layer.beside or layer.after).gate_C)
    assert torch.equal(decoded(model)[0].logits_BTV, decoded(base)[0].logits_BTV)


def test_a_low_log_bias_starts_the_memory_gradually():
    base = made(CASES["baseline"])
    model = fill(model_of(config(None, "self_concat"))).eval()
    model.load_state_dict(model.state_dict() | base.state_dict())
    expected_BTV, distances = decoded(base)[0].logits_BTV, []
    for log_bias in (-12.0, -4.0, 0.0):
        model.memory.set_log_bias(log_bias)
        distances.append((decoded(model)[0].logits_BTV - expected_BTV).abs().max().item())
    assert 0 < distances[0] < 1e-2 < distances[2]
    assert distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_prototypes_never_enter_the_cache(placement):
    model = made(case(None, placement))
    found, memory, tokens_BT = decoded(model)
    logits_BTV, state = stepped(model, memory, tokens_BT)
    torch.testing.assert_close(logits_BTV, found.logits_BTV, rtol=1e-4, atol=2e-5)
    assert [cache.shape[3] for cache in state] == [tokens_BT.shape[1]] * 2


def test_several_captions_of_a_picture_share_its_keys():
    model = made(CASES["fused"])
    features = pictures(CASES["fused"])
    tokens_RT = captions(CASES["fused"], 6)
    together = model.decode(tokens_RT, full(tokens_RT), model.encode(features)).logits_BTV
    for row in range(6):
        picture = model.encode(VisualFeatures(features.grid_BNC[row // 2 : row // 2 + 1]))
        alone = model.decode(tokens_RT[row : row + 1], full(tokens_RT[row : row + 1]), picture).logits_BTV
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=2e-5)


def test_trace_of_the_fused_model():
    model = made(CASES["fused"])
    found, memory, tokens_BT = decoded(model, trace=True)
    trace = found.trace
    torch.testing.assert_close(found.logits_BTV, decoded(model)[0].logits_BTV)
    assert trace.attention_BTN.shape == (*tokens_BT.shape, PATCHES)
    assert trace.concepts_BN.shape == (len(tokens_BT), PATCHES)
    assert trace.prototype_weights_BTLM.shape == (*tokens_BT.shape, 2, 5)
    assert not trace.prototype_weights_BTLM[..., -1].any()  # the dead one
    assert (trace.prototype_weights_BTLM[..., :-1] > 0).all()
    assert len(trace.observed) == 2


def test_the_bank_of_self_concat_sees_words_and_keeps_their_prefixes():
    model = made(case(None, "self_concat"))
    features, tokens_BT, lengths_B = (
        pictures(CASES["pma"], 30),
        captions(CASES["pma"], 30),
        torch.full((30,), 3),
    )
    for _ in range(4):
        memory = model.encode(features)
        trace = model.decode(tokens_BT, lengths_B, memory, trace=True).trace
        model.observe(trace, tokens_BT, lengths_B, memory)
    bank = model.memory.resume_state()
    assert bank["bank.keys_LNC"].shape == (2, 4 * 30 * 3, 16)
    first = [context[context >= 0].tolist() for context in bank["bank.contexts_NW"][:3]]
    assert first == [tokens_BT[0, : n + 1].tolist() for n in range(3)]
    keys_RHTD = model.decoder[0].attention.project(model.words(tokens_BT) * 4 + model.positions_TC[:5])[1]
    torch.testing.assert_close(bank["bank.keys_LNC"][0, :3], keys_RHTD.transpose(1, 2).flatten(2)[0, :3])
    texts = model.memory.describe(lambda tokens: "-".join(map(str, tokens)))["layers"][0][0]["contexts"]
    assert texts and all(text.startswith("1") for text in texts)  # every prefix begins with the start token


def test_the_bank_of_the_cross_placements_sees_patches_of_the_picture():
    model = made(case(ALIGNMENT, "cross_add"))
    features = pictures(CASES["fused"])
    mask_BN = torch.tensor([[True] * PATCHES, [True] * PATCHES, [True, False, False, False]])
    tokens_BT = captions(CASES["fused"])
    memory = model.encode(features._replace(mask_BN=mask_BN))
    trace = model.decode(tokens_BT, full(tokens_BT), memory, trace=True).trace
    model.observe(trace, tokens_BT, full(tokens_BT), memory, torch.tensor([70, 80, 90]))
    bank = model.memory.resume_state()
    assert bank["bank.contexts_NW"][:, 0].tolist() == [70] * 4 + [80] * 4 + [90]
    assert bank["bank.contexts_NW"][:, 1].tolist() == [0, 1, 2, 3] * 2 + [0]
    assert bank["bank.contexts_NW"][:, 2].tolist() == memory.concepts_BN[mask_BN].tolist()
    torch.testing.assert_close(bank["bank.keys_LNC"][1, 0], memory.keys_BLHND[0, 1, :, 0].flatten())


def test_observing_changes_no_gradient_path():
    model = made(case(None, "self_concat")).train()
    trace = decoded(model, trace=True)[0].trace
    assert not any(part.requires_grad for layer in trace.observed for part in layer)
    assert not trace.prototype_weights_BTLM.requires_grad
    assert not any("memory.keys" in name or "memory.values" in name for name, _ in model.named_parameters())


def test_a_model_without_memory_observes_nothing():
    model = made(CASES["baseline"])
    found, memory, tokens_BT = decoded(model, trace=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.observe(found.trace, tokens_BT, full(tokens_BT), memory)
    assert model.memory is None and before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_global_token_joins_the_patches():
    torch.manual_seed(0)
    model = model_of(config(ALIGNMENT, "cross_add", global_token=True)).eval()
    features = pictures(CASES["fused"])._replace(class_BC=torch.randn(3, C), hw=(2, 2))
    memory = model.encode(features)
    assert memory.keys_BLHND.shape[3] == PATCHES + 1
    tokens_BT = captions(CASES["fused"])
    found = model.decode(tokens_BT, full(tokens_BT), memory, trace=True)
    assert found.trace.attention_BTN.shape[2] == PATCHES
    torch.testing.assert_close(found.trace.attention_BTN.sum(dim=2), torch.ones(tokens_BT.shape))
    other = model.decode(
        tokens_BT, full(tokens_BT), model.encode(features._replace(class_BC=torch.randn(3, C)))
    ).logits_BTV
    assert not torch.allclose(found.logits_BTV, other)
    model.observe(found.trace, tokens_BT, full(tokens_BT), memory)
    with pytest.raises(ModelError, match="the features hold no class token"):
        model.encode(pictures(CASES["fused"]))


def test_the_grid_gives_patches_their_places():
    model = made(CASES["baseline"])
    features = pictures(CASES["baseline"])._replace(hw=(2, 2))
    turned = features._replace(grid_BNC=features.grid_BNC.flip(1))
    tokens_BT = captions(CASES["baseline"])
    logits = [
        model.decode(tokens_BT, full(tokens_BT), model.encode(each)).logits_BTV for each in (features, turned)
    ]
    assert not torch.allclose(*logits)


def test_losses_on_patches():
    torch.manual_seed(0)
    model = model_of(config(RegionAlignmentConfig(layers=1, contrast_width=8, text_regulariser=True)))
    memory = model.encode(pictures(CASES["fsgr"]))
    memory = memory._replace(concepts_BN=torch.tensor([[0, 0, 1, 1]] * 3))
    loss = model.contrast_loss(memory) + model.text_loss(memory, torch.randn(3, C))
    loss.backward()
    for name in ("embed.weight", "contrast.project.weight", "to_text.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0, name
    assert abs(model.text_loss(memory, model.to_text(memory.encoded_BNC.mean(dim=1))).item()) < 1e-5
    assert model.contrast_loss(memory, torch.arange(12).view(3, 4)).item() == 0
    plain = model_of(config(ALIGNMENT))
    with pytest.raises(
        ModelError, match="no patch contrast; set captioner.region_alignment.contrast_width above 0"
    ):
        plain.contrast_loss(memory)
    with pytest.raises(
        ModelError, match="no projection to text; set captioner.region_alignment.text_regulariser"
    ):
        plain.text_loss(memory, torch.randn(3, C))


def test_codebook_and_alignment_come_together():
    with pytest.raises(ConfigError, match="region alignment is on and no codebook is given"):
        CaptionTransformer(config(ALIGNMENT), C, V)
    with pytest.raises(
        ConfigError, match="a codebook is given and neither region alignment nor copying is on"
    ):
        CaptionTransformer(config(), C, V, Codebook(["dog"], torch.ones(1, C), "clip"))


def test_search_with_prototypes_runs_past_no_position():
    model = made(CASES["fused"])
    found = beam_search(
        model, model.encode(pictures(CASES["fused"])), SpecialIds(0, 1, 2, 3), beams=2, max_length=8
    )
    assert found.tokens_BKT.shape[2] <= 8
    with pytest.raises(ModelError, match="positions for 8"):
        model.decode(
            torch.ones(3, 9, dtype=torch.long), torch.full((3,), 9), model.encode(pictures(CASES["fused"]))
        )
