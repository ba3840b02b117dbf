"""The prototype memory on its own: what it banks, when its prototypes take effect, and how it resumes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from patchword.layers.attention import attend
from patchword.layers.prototypes import (
    CONTEXT_WIDTH,
    Columns,
    PrototypeConfig,
    PrototypeMemory,
    PrototypeRecall,
    attend_with_prototypes,
)
from patchword.types import KeysAndValues

WIDTH, HEADS, LAYERS = 8, 2, 2


def memory(**settings_):
    chosen = dict(count=4, neighbours=3, bank=400, cluster_every=4, effect_after=2, iterations=3) | settings_
    return PrototypeMemory(PrototypeConfig(**chosen), LAYERS, WIDTH, HEADS)


def batch(seed, rows=10, length=5):
    generator = torch.Generator().manual_seed(seed)
    observed = tuple(
        KeysAndValues(
            torch.randn(rows, length, WIDTH, generator=generator),
            torch.randn(rows, length, WIDTH, generator=generator),
        )
        for _ in range(LAYERS)
    )
    lengths_B = torch.randint(1, length + 1, (rows,), generator=generator)
    return observed, torch.arange(length) < lengths_B[:, None]


def run(module, start, stop):
    for step in range(start, stop):
        module.observe(*batch(step))
    return module


def columns_of(keys_MC, values_MC, bias_M=None, own_HD=None):
    heads = (HEADS, -1)
    bias_M = torch.zeros(len(keys_MC)) if bias_M is None else bias_M
    keys_HMD, values_HMD = (
        keys_MC.unflatten(-1, heads).transpose(0, 1),
        values_MC.unflatten(-1, heads).transpose(0, 1),
    )
    return Columns(keys_HMD, values_HMD, bias_M, own_HD, torch.ones(()))


def test_prototypes_take_effect_at_their_step_and_not_before():
    module = run(memory(), 0, 5)  # clustered at step 4 of observe, in effect from step 6
    assert module.columns() == (None, None)
    run(module, 5, 6)
    assert all(columns is not None for columns in module.columns())
    assert module.live_LM.any(dim=1).all()


def test_the_bank_holds_real_tokens_only_newest_first_out():
    module = memory(bank=12, cluster_every=100, effect_after=0)
    expected = []
    for step in range(4):
        observed, mask_BT = batch(step, rows=3)
        module.observe(observed, mask_BT)
        expected.append(observed[1].keys_BTD[mask_BT])
    newest_NC = torch.cat(expected)[-12:]
    held_NC = module.resume_state()["bank.keys_LNC"][1]
    assert {tuple(row) for row in held_NC.tolist()} == {tuple(row) for row in newest_NC.tolist()}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 25))
def test_the_bank_never_exceeds_its_cap(sizes, capacity):
    module = PrototypeMemory(PrototypeConfig(bank=capacity, count=1, cluster_every=1000), 1, WIDTH, HEADS)
    for size in sizes:
        keys_BTD = torch.randn(1, size, WIDTH)
        module.observe((KeysAndValues(keys_BTD, keys_BTD),), torch.ones(1, size, dtype=torch.bool))
    filled = module.resume_state()["bank.keys_LNC"].shape[1]
    assert filled == min(capacity, sum(sizes))
    assert module.statistics()["bank_fill"] == pytest.approx(filled / capacity)


def test_large_batches_are_thinned_to_the_stated_number():
    module = memory(bank_at_most=7, cluster_every=100)
    run(module, 0, 2)
    assert module.resume_state()["bank.keys_LNC"].shape[1] == 14


def test_few_vectors_make_few_prototypes():
    module = run(memory(count=50, effect_after=0), 0, 4)
    filled = module.resume_state()["bank.keys_LNC"].shape[1]
    assert module.live_LM.sum(dim=1).tolist() == [filled // 39] * LAYERS
    assert torch.isinf(module.columns()[0].bias_M).sum() == 50 - filled // 39


def test_nothing_is_banked_before_the_start_step():
    module = run(memory(start_step=3), 0, 2)
    assert "bank.keys_LNC" not in module.resume_state()
    run(module, 2, 3)
    assert "bank.keys_LNC" in module.resume_state()


@pytest.mark.parametrize("stop", [3, 5, 7])  # before a clustering, while one waits for its step, after it
def test_a_resumed_memory_goes_on_bit_for_bit(stop):
    whole = run(memory(), 0, 12)
    first = run(memory(), 0, stop)
    resumed = memory(seed=99)
    resumed.load_state_dict(first.state_dict())
    resumed.load_resume_state({name: value.clone() for name, value in first.resume_state().items()})
    run(resumed, stop, 12)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    expected, found = whole.resume_state(), resumed.resume_state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_off_means_no_columns():
    module = run(memory(), 0, 6)
    module.set_log_bias(float("-inf"))
    assert module.columns() == (None, None)
    module.set_log_bias(0.0)
    assert module.columns()[0] is not None


def test_prototypes_that_repeat_keys_equal_attention_with_repeated_keys():
    queries_BHTD, keys_BHTD, values_BHTD = torch.randn(3, 3, HEADS, 4, WIDTH // HEADS).unbind()
    keys_MC, values_MC = torch.randn(2, 3, WIDTH).unbind()
    causal_TT = torch.full((4, 4), float("-inf")).triu(1)
    found_BHTD, weights_BHTM = attend_with_prototypes(
        queries_BHTD, keys_BHTD, values_BHTD, columns_of(keys_MC, values_MC), causal_TT
    )
    shared = [
        x.unflatten(-1, (HEADS, -1)).transpose(0, 1).expand(3, -1, -1, -1) for x in (keys_MC, values_MC)
    ]
    bias_TN = torch.cat((causal_TT, torch.zeros(4, 3)), dim=1)
    expected_BHTD, expected_BHTN = attend(
        queries_BHTD,
        torch.cat((keys_BHTD, shared[0]), 2),
        torch.cat((values_BHTD, shared[1]), 2),
        bias_TN,
        want_weights=True,
    )
    torch.testing.assert_close(found_BHTD, expected_BHTD)
    torch.testing.assert_close(weights_BHTM, expected_BHTN[..., 4:])


@pytest.mark.parametrize("own", [None, 0.7], ids=["no segments", "segments"])
def test_attention_without_weights_is_the_same_attention(own):
    queries_BHTD, keys_BHTD, values_BHTD = torch.randn(3, 3, HEADS, 4, WIDTH // HEADS).unbind()
    bias_M = torch.tensor([0.0, -2.0, float("-inf"), 0.5, 0.0])
    own_HD = None if own is None else torch.full((HEADS, WIDTH // HEADS), own)
    columns = columns_of(torch.randn(5, WIDTH), torch.randn(5, WIDTH), bias_M, own_HD)
    causal_TT = torch.full((4, 4), float("-inf")).triu(1)
    for columns_now, bias in (
        (columns, causal_TT),
        (columns, None),
        (columns._replace(bias_M=None), causal_TT),
    ):
        expected_BHTD, _ = attend_with_prototypes(queries_BHTD, keys_BHTD, values_BHTD, columns_now, bias)
        with torch.no_grad():
            found_BHTD, weights = attend_with_prototypes(
                queries_BHTD, keys_BHTD, values_BHTD, columns_now, bias, want_weights=False
            )
        assert weights is None
        torch.testing.assert_close(found_BHTD, expected_BHTD)


def test_masked_columns_equal_plain_attention():
    queries_BHTD, keys_BHTD, values_BHTD = torch.randn(3, 3, HEADS, 4, WIDTH // HEADS).unbind()
    columns = columns_of(torch.randn(5, WIDTH), torch.randn(5, WIDTH), torch.full((5,), float("-inf")))
    found_BHTD, _ = attend_with_prototypes(queries_BHTD, keys_BHTD, values_BHTD, columns)
    torch.testing.assert_close(found_BHTD, attend(queries_BHTD, keys_BHTD, values_BHTD)[0])


def test_segment_embeddings_move_attention_between_own_keys_and_prototypes():
    module = run(memory(), 0, 6)
    queries_BHTD, keys_BHTD, values_BHTD = torch.ones(3, 1, HEADS, 1, WIDTH // HEADS).unbind()
    shares = []
    for own in (0.0, 3.0):
        torch.nn.init.constant_(module.segment_own_LC, own)
        shares.append(
            attend_with_prototypes(queries_BHTD, keys_BHTD, values_BHTD, module.columns()[0])[1].sum().item()
        )
    assert shares[1] < 0.01 * shares[0]


def test_a_gated_look_adds_nothing_at_first_and_something_once_the_gate_opens():
    recall = PrototypeRecall(WIDTH, HEADS)
    y_RTC, columns = torch.randn(2, 3, WIDTH), columns_of(torch.randn(5, WIDTH), torch.randn(5, WIDTH))
    added_RTC, weights_RHTM = recall(y_RTC, columns, want_weights=True)
    assert torch.equal(y_RTC + added_RTC, y_RTC)
    torch.testing.assert_close(weights_RHTM.sum(dim=-1), torch.ones(2, HEADS, 3))
    torch.nn.init.ones_(recall.gate_C)
    full_RTC, _ = recall(y_RTC, columns)
    half_RTC, _ = recall(y_RTC, columns._replace(share=torch.tensor(0.5)))
    assert full_RTC.abs().min() > 0
    torch.testing.assert_close(half_RTC, full_RTC / 2)


def test_description_lists_contexts_use_and_dead_prototypes():
    module = memory(count=3, effect_after=0, cluster_every=1)
    keys_BTD = torch.cat([torch.zeros(1, 40, WIDTH), torch.full((1, 60, WIDTH), 9.0)], dim=1)
    contexts_BTW = torch.full((1, 100, CONTEXT_WIDTH), -1, dtype=torch.int32)
    contexts_BTW[:, :40, -1], contexts_BTW[:, 40:, -1] = 5, 6
    weights_RTLM = torch.tensor([0.5, 0.25, 0.0]).expand(1, 1, LAYERS, 3)
    module.observe(
        (KeysAndValues(keys_BTD, keys_BTD),) * LAYERS,
        torch.ones(1, 100, dtype=torch.bool),
        contexts_BTW,
        weights_RTLM,
    )
    described = module.describe(lambda tokens: " ".join(map(str, tokens)))
    first_layer = described["layers"][0]
    assert described["placement"] == "self_concat"
    assert sorted(prototype["bank_share"] for prototype in first_layer) == [0, 0.4, 0.6]
    assert {context for prototype in first_layer for context in prototype["contexts"]} == {"5", "6"}
    assert [prototype["alive"] for prototype in first_layer].count(False) == 1
    assert first_layer[0]["attention"] == pytest.approx(0.005)
    assert module.statistics()["memory_attention_0"] == pytest.approx(0.0075)


def test_prototypes_that_would_come_too_late_are_refused():
    with pytest.raises(ValidationError, match="effect_after = 5 is not below cluster_every = 5"):
        PrototypeConfig(cluster_every=5, effect_after=5)


def test_all_processes_hold_what_the_first_one_clustered(monkeypatch):
    """Two ranks one after the other: what the first broadcasts is what the second receives."""
    sent, rank = [], 0

    def broadcast(tensor, src):
        assert src == 0
        sent.append(tensor.clone()) if rank == 0 else tensor.copy_(sent.pop(0))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    first = run(memory(), 0, 6)
    rank = 1
    second = run(memory(), 100, 106)  # other captions
    assert not sent
    assert "bank.keys_LNC" not in second.resume_state()
    for name in ("keys_LMC", "values_LMC", "live_LM", "sizes_LM", "contexts_LMKW"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.live_LM.any()


@pytest.mark.parametrize("want", [True, False], ids=["weights", "merged"])
def test_prototypes_that_weigh_one_word_in_all_count_as_their_mean_key_would(want):
    """512 equal prototypes with the weight of one word are one more key in the softmax."""
    module = memory(count=5, weight_in_words=1.0)
    module.live_LM.fill_(True)
    module.keys_LMC.fill_(0.3)
    module.values_LMC.copy_(torch.linspace(0, 1, WIDTH).expand_as(module.values_LMC))
    queries_BHTD, keys_BHTD, values_BHTD = torch.randn(3, 2, HEADS, 4, WIDTH // HEADS).unbind()
    one_key_HMD, one_value_HMD = (
        columns_HMD[:, :1].expand(2, -1, -1, -1) for columns_HMD in module.columns()[0][:2]
    )
    expected_BHTD, _ = attend(
        queries_BHTD, torch.cat((keys_BHTD, one_key_HMD), 2), torch.cat((values_BHTD, one_value_HMD), 2)
    )
    with torch.no_grad():
        found_BHTD, _ = attend_with_prototypes(
            queries_BHTD, keys_BHTD, values_BHTD, module.columns()[0], want_weights=want
        )
    torch.testing.assert_close(found_BHTD, expected_BHTD)


def test_every_head_learns_the_weight_of_the_prototypes():
    module = run(memory(weight_in_words=1.0), 0, 6)
    rows = torch.randn(3, 1, HEADS, 2, WIDTH // HEADS)
    with torch.no_grad():
        module.bias_LH[0, 1] = -30.0
    context_BHTD, weights_BHTM = attend_with_prototypes(*rows, module.columns()[0])
    assert weights_BHTM[:, 1].sum() < 1e-6 < weights_BHTM[:, 0].sum()
    context_BHTD.square().sum().backward()
    assert module.bias_LH.grad[0, 0] != 0


def test_a_query_attends_to_the_prototypes_of_highest_score_only():
    module = run(memory(top=2, count=4), 0, 6)
    module.live_LM.fill_(True)
    module.keys_LMC.normal_(generator=torch.Generator().manual_seed(3))
    rows = torch.randn(3, 3, HEADS, 2, WIDTH // HEADS)
    columns = module.columns()[0]
    found_BHTD, weights_BHTM = attend_with_prototypes(*rows, columns)
    all_BHTD, all_BHTM = attend_with_prototypes(*rows, columns._replace(top=None))
    assert ((weights_BHTM > 0).sum(dim=-1) == 2).all()
    assert torch.equal(weights_BHTM.topk(2).indices, all_BHTM.topk(2).indices)
    with torch.no_grad():
        without, _ = attend_with_prototypes(*rows, columns, want_weights=False)
    torch.testing.assert_close(without, found_BHTD)
    assert not torch.allclose(found_BHTD, all_BHTD)


def test_values_that_keep_their_length_are_as_long_as_those_they_are_means_of():
    short, long = (
        run(memory(keep_length=keep, neighbours=8, effect_after=0), 0, 5) for keep in (False, True)
    )
    live_LM = short.live_LM
    assert torch.equal(short.keys_LMC, long.keys_LMC)
    lengths = [module.values_LMC[live_LM].norm(dim=-1) for module in (short, long)]
    banked_LN = short.resume_state()["bank.values_LNC"].norm(dim=-1)
    assert (lengths[1] > 1.3 * lengths[0]).all()
    assert (lengths[1] < banked_LN.max()).all() and (lengths[1] > banked_LN.min()).all()
    cosines = torch.cosine_similarity(short.values_LMC[live_LM], long.values_LMC[live_LM], dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_a_memory_without_the_further_options_has_no_further_parameters():
    assert set(memory().state_dict()) | {"bias_LH"} == set(memory(weight_in_words=2.0).state_dict())


@pytest.mark.parametrize("placement", ["cross_add", "sequential"])
@pytest.mark.parametrize("option", [{"weight_in_words": 1.0}, {"top": 3}])
def test_options_of_a_shared_softmax_are_refused_elsewhere(placement, option):
    with pytest.raises(
        ValidationError, match=f"{next(iter(option))} is given and the placement is {placement}"
    ):
        PrototypeConfig(placement=placement, **option)
