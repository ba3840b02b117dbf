"""Show and Tell, Show Attend and Tell, Adaptive Attention: all variants through one list of checks, and what
is particular to each.
"""

import itertools

import pytest
import torch
from conformance import CHECKS, Case, captions, full, made, pictures
from pydantic import ValidationError
from torch.testing import assert_close

from patchword.errors import ModelError
from patchword.models.captioners.adaptive import Adaptive, AdaptiveConfig
from patchword.models.captioners.show_attend_tell import ShowAttendTell, ShowAttendTellConfig
from patchword.models.captioners.show_tell import ShowTell, ShowTellConfig
from patchword.types import VisualFeatures

C, V = 6, 12


def _show_tell(cell, picture):
    config = ShowTellConfig(width=16, cell=cell, picture=picture, dropout=0)
    # batch normalisation takes the mean away, and with it whatever a bias before it adds
    zero = frozenset({"picture.project.bias"}) if picture == "initial_state" else frozenset()
    return Case(lambda: ShowTell(config, C, V), C, V, zero, learning_rate=0.02)


def _show_attend_tell(scoring, gate, output, initial):
    config = ShowAttendTellConfig(
        word_width=10,
        width=14,
        attention_width=8,
        scoring=scoring,
        gate=gate,
        output=output,
        initial=initial,
        dropout=0,
    )
    return Case(
        lambda: ShowAttendTell(config, C, V), C, V, frozenset({"attention.score.bias"}), learning_rate=0.02
    )


ADAPTIVE = AdaptiveConfig(word_width=10, width=14, attention_width=8, dropout=0)
CASES = {
    **{f"show_tell-{cell}-{picture}": _show_tell(cell, picture)
       for cell, picture in itertools.product(["lstm", "gru", "rnn"], ["first_input", "initial_state"])},
    "show_attend_tell-paper": _show_attend_tell("tanh", "scalar", "deep", "mlp"),
    "show_attend_tell-tutorial": _show_attend_tell("relu", "vector", "linear", "linear"),
    "show_attend_tell-mixed": _show_attend_tell("relu", "scalar", "linear", "mlp"),
    "adaptive": Case(lambda: Adaptive(ADAPTIVE, C, V), C, V, learning_rate=0.02),
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_conformance(name, check):
    check(CASES[name])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("show_attend_tell")])
def test_attention_rows_sum_to_one(name):
    model, tokens_BT = made(CASES[name]), captions(CASES[name])
    attention_BTN = model.decode(
        tokens_BT, full(tokens_BT), model.encode(pictures(CASES[name])), trace=True
    ).trace.attention_BTN
    assert_close(attention_BTN.sum(dim=2), torch.ones(tokens_BT.shape))


def test_patches_and_sentinel_share_one_softmax():
    model, tokens_BT = made(CASES["adaptive"]), captions(CASES["adaptive"])
    trace = model.decode(
        tokens_BT, full(tokens_BT), model.encode(pictures(CASES["adaptive"])), trace=True
    ).trace
    assert_close(trace.attention_BTN.sum(dim=2) + trace.sentinel_BT, torch.ones(tokens_BT.shape))
    assert (trace.sentinel_BT > 0).all() and trace.sentinel_BT.std() > 0


def test_adaptive_attention_follows_its_equations_word_by_word():
    model, tokens_BT, features = (
        made(CASES["adaptive"]),
        captions(CASES["adaptive"], count=1),
        pictures(CASES["adaptive"], count=1),
    )
    weights = dict(model.named_parameters())
    a = features.grid_BNC[0]
    v = torch.relu(a @ weights["patch.weight"].T + weights["patch.bias"])
    v_g = torch.relu(a.mean(0) @ weights["picture.weight"].T + weights["picture.bias"])
    h = m = torch.zeros(1, 14)
    decoded = model.decode(tokens_BT, full(tokens_BT), model.encode(features), trace=True)
    for step, token in enumerate(tokens_BT[0]):
        x = torch.cat([weights["embedding.weight"][token], v_g])[None]
        g = torch.sigmoid(
            x @ weights["sentinel.input.weight"].T
            + weights["sentinel.input.bias"]
            + h @ weights["sentinel.hidden.weight"].T
        )
        h, m = model.recurrence(x, (h, m))
        s = g * torch.tanh(m)
        query = h @ weights["query.weight"].T
        z = torch.tanh(v @ weights["key.weight"].T + query) @ weights["score.weight"][0]
        z_s = torch.tanh(s @ weights["sentinel_key.weight"].T + query) @ weights["score.weight"][0]
        beta = torch.cat([z, z_s]).softmax(0)[-1]
        c_hat = beta * s + (1 - beta) * (z.softmax(0) @ v)
        assert_close(
            decoded.logits_BTV[0, step], ((c_hat + h) @ weights["words.weight"].T + weights["words.bias"])[0]
        )
        assert_close(decoded.trace.sentinel_BT[0, step], beta)


def test_the_papers_variant_follows_its_equations_word_by_word():
    case = CASES["show_attend_tell-paper"]
    model, tokens_BT, features = made(case), captions(case, count=1), pictures(case, count=1)
    a = features.grid_BNC[0]
    h, c = model.initial_hidden(a.mean(0))[None], model.initial_cell(a.mean(0))[None]
    decoded = model.decode(tokens_BT, full(tokens_BT), model.encode(features), trace=True)
    for step, token in enumerate(tokens_BT[0]):
        word = model.embedding.weight[token]
        alpha = (
            model.attention.score(torch.tanh(model.attention.key(a) + model.attention.query(h)))
            .squeeze(1)
            .softmax(0)
        )
        z = torch.sigmoid(model.gate(h)[0]) * (alpha @ a)
        h, c = model.recurrence(torch.cat([word, z])[None], (h, c))
        logits = model.output.words(word + model.output.state(h[0]) + model.output.context(z))
        assert_close(decoded.logits_BTV[0, step], logits)
        assert_close(decoded.trace.attention_BTN[0, step], alpha)


def test_parameters_of_the_tutorials_decoder():
    config = ShowAttendTellConfig(scoring="relu", gate="vector", output="linear", initial="linear")
    with torch.device("meta"):
        model = ShowAttendTell(config, feature_width=2048, vocabulary_size=9490)
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_756_609 + 1_025 * 9490


def test_captions_that_have_ended_do_not_run_on():
    case = CASES["show_attend_tell-tutorial"]
    model, seen = made(case), []
    model.attention.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    tokens_BT = captions(case, count=3, words=4)
    model.decode(tokens_BT, torch.tensor([1, 4, 2]), model.encode(pictures(case)))
    assert seen == [3, 2, 1, 1]


def test_features_of_another_width_are_refused():
    model = made(CASES["adaptive"])
    with pytest.raises(
        ModelError, match="picture features are 9 wide and this captioner was built for 6: use the tower"
    ):
        model.encode(VisualFeatures(torch.zeros(1, 4, 9)))


def test_one_picture_cannot_be_batch_normalised():
    case = CASES["show_tell-gru-initial_state"]
    model = made(case).train()
    with pytest.raises(ModelError, match="a training batch of one picture cannot be batch-normalised"):
        model.encode(pictures(case, count=1))


def test_settings_that_do_not_exist_are_refused():
    with pytest.raises(ValidationError, match="hidden_size"):
        ShowTellConfig(hidden_size=3)


@pytest.mark.parametrize("config", [ShowTellConfig, ShowAttendTellConfig, AdaptiveConfig])
def test_every_setting_is_described(config):
    assert all(field.description for field in config.model_fields.values())
