"""What every captioner must do, whatever its architecture: one list of checks.

CASES = {"mine": Case(build=lambda: Mine(config, 12, 17), feature_width=12, vocabulary_size=17)}

@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_conformance(name, check):
    check(CASES[name])
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from patchword.decode import BeamOptions, beam_search, explain_tokens, greedy, repeat_images
from patchword.losses import caption_cross_entropy
from patchword.types import SpecialIds, Trace, VisualFeatures

SPECIAL = SpecialIds(pad=0, start=1, end=2, unknown=3)
PICTURES, PATCHES, WORDS = 3, 4, 5


class Case(NamedTuple):
    """A captioner to check."""

    build: Callable[[], nn.Module]
    """Makes it from the current seed, without dropout; gates that begin at zero randomised, memories
    filled."""
    feature_width: int
    vocabulary_size: int
    """At least 10: the first four ids are special."""
    zero_gradients: frozenset[str] = frozenset()
    """Parameters whose gradient is zero by the equations."""
    learning_rate: float = 0.01
    """With it Adam learns four captions within 150 steps."""


def made(case: Case, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return case.build().eval()


def pictures(case: Case, count: int = PICTURES, patches: int = PATCHES) -> VisualFeatures:
    generator = torch.Generator().manual_seed(count)
    return VisualFeatures(torch.randn(count, patches, case.feature_width, generator=generator))


def captions(case: Case, count: int = PICTURES, words: int = WORDS) -> Tensor:
    """Inputs of teacher forcing: start, then words."""
    tokens_BT = torch.randint(
        4, case.vocabulary_size, (count, words), generator=torch.Generator().manual_seed(words)
    )
    tokens_BT[:, 0] = SPECIAL.start
    return tokens_BT


def full(tokens_BT: Tensor) -> Tensor:
    return torch.full((len(tokens_BT),), tokens_BT.shape[1])


def close(found: Tensor, expected: Tensor) -> None:
    assert_close(found, expected, rtol=1e-4, atol=2e-5)


def traces_close(found: Trace, expected: Trace) -> None:
    for field in ("attention_BTN", "sentinel_BT"):
        assert (getattr(found, field) is None) == (getattr(expected, field) is None), field
        if getattr(found, field) is not None:
            close(getattr(found, field), getattr(expected, field))


@torch.no_grad()
def stepping_equals_teacher_forcing(case: Case) -> None:
    model, tokens_BT = made(case), captions(case)
    memory = model.encode(pictures(case))
    decoded = model.decode(tokens_BT, full(tokens_BT), memory, trace=True)
    state = model.start(memory, 2)
    for step in range(WORDS):
        logits_RV, state, trace = model.step(
            tokens_BT[:, step].repeat_interleave(2), memory, state, trace=True
        )
        close(logits_RV, decoded.logits_BTV[:, step].repeat_interleave(2, 0))
        expected = Trace(
            *(
                None if part is None else part[:, step : step + 1].repeat_interleave(2, 0)
                for part in decoded.trace[:2]
            )
        )
        traces_close(trace, expected)


@torch.no_grad()
def beams_of_a_picture_may_differ(case: Case) -> None:
    model, tokens_BT = made(case), captions(case, 2 * PICTURES)
    memory = model.encode(pictures(case))
    state = model.start(memory, 2)
    for step in range(WORDS):
        logits_RV, state, _ = model.step(tokens_BT[:, step], memory, state)
    expected = model.decode(tokens_BT, full(tokens_BT), repeat_images(memory, 2)).logits_BTV[:, -1]
    close(logits_RV, expected)


@torch.no_grad()
def one_picture_equals_many(case: Case) -> None:
    model, tokens_BT, features = made(case), captions(case), pictures(case)
    lengths_B = torch.tensor([WORDS, 2, WORDS - 1])
    together = model.decode(tokens_BT, lengths_B, model.encode(features), trace=True)
    for row in range(PICTURES):
        one = slice(row, row + 1)
        alone = model.decode(
            tokens_BT[one], lengths_B[one], model.encode(VisualFeatures(features.grid_BNC[one])), trace=True
        )
        close(alone.logits_BTV, together.logits_BTV[one])
        traces_close(
            alone.trace, Trace(*(None if part is None else part[one] for part in together.trace[:2]))
        )


@torch.no_grad()
def padding_changes_nothing(case: Case) -> None:
    model, tokens_BT = made(case), captions(case)
    memory, lengths_B = model.encode(pictures(case)), torch.tensor([2, WORDS, 3])
    whole = model.decode(tokens_BT, full(tokens_BT), memory, trace=True)
    padding_BT = torch.arange(WORDS) >= lengths_B[:, None]
    longer_BT = torch.cat(
        [tokens_BT.masked_fill(padding_BT, SPECIAL.pad), torch.full((PICTURES, 2), SPECIAL.pad)], dim=1
    )
    padded = model.decode(longer_BT, lengths_B, memory, trace=True)
    close(padded.logits_BTV[:, :WORDS], whole.logits_BTV.masked_fill(padding_BT[..., None], 0))
    assert not padded.logits_BTV[:, WORDS:].any(), "logits beyond the longest caption are not zero"
    for field in ("attention_BTN", "sentinel_BT"):
        found, expected = getattr(padded.trace, field), getattr(whole.trace, field)
        if expected is not None:
            close(
                found[:, :WORDS],
                expected.masked_fill(padding_BT.view(PICTURES, WORDS, *[1] * (expected.dim() - 2)), 0),
            )


@torch.no_grad()
def hidden_patches_change_nothing(case: Case) -> None:
    model, tokens_BT, features = made(case), captions(case), pictures(case)
    mask_BN = torch.ones(PICTURES, PATCHES + 2, dtype=torch.bool)
    mask_BN[:, PATCHES:] = False
    grid_BNC = torch.cat([features.grid_BNC, torch.full((PICTURES, 2, case.feature_width), 7.0)], dim=1)
    plain = model.decode(tokens_BT, full(tokens_BT), model.encode(features)).logits_BTV
    masked = model.decode(
        tokens_BT, full(tokens_BT), model.encode(VisualFeatures(grid_BNC, mask_BN=mask_BN))
    ).logits_BTV
    close(masked, plain)


@torch.no_grad()
def saved_and_loaded_is_the_same(case: Case) -> None:
    model, other, tokens_BT = made(case), made(case, seed=1), captions(case)
    with tempfile.TemporaryDirectory() as folder:
        save_file(model.state_dict(), Path(folder) / "model.safetensors")
        other.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=True)
    found = other.decode(tokens_BT, full(tokens_BT), other.encode(pictures(case))).logits_BTV
    assert torch.equal(
        found, model.decode(tokens_BT, full(tokens_BT), model.encode(pictures(case))).logits_BTV
    )


def the_seed_decides(case: Case) -> None:
    first, again, other = (made(case, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def every_parameter_gets_a_gradient(case: Case) -> None:
    model, tokens_BT = made(case).train(), captions(case)
    logits_BTV = model.decode(tokens_BT, torch.tensor([WORDS, 3, 4]), model.encode(pictures(case))).logits_BTV
    (logits_BTV * torch.randn(logits_BTV.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            largest = parameter.grad.abs().max()
            assert largest.isfinite(), f"the gradient of {name} is not finite"
            assert largest < 1e-4 if name in case.zero_gradients else largest > 1e-6, (
                f"the gradient of {name} is at most {largest:.1e}"
            )


def overfits_four_pictures(case: Case) -> None:
    model, inputs_BT, features = made(case).train(), captions(case, 4), pictures(case, 4)
    lengths_B = torch.tensor([WORDS, 3, WORDS, 4])
    targets_BT = torch.cat([inputs_BT[:, 1:], torch.full((4, 1), SPECIAL.pad)], dim=1)
    targets_BT[torch.arange(4), lengths_B - 1] = SPECIAL.end
    targets_BT[torch.arange(WORDS) >= lengths_B[:, None]] = SPECIAL.pad
    optimizer = torch.optim.Adam(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=case.learning_rate
    )
    for _ in range(150):
        total, count = caption_cross_entropy(
            model.decode(inputs_BT, lengths_B, model.encode(features)).logits_BTV, targets_BT, SPECIAL.pad
        )
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        if total / count < 0.02:
            break
    model.eval()
    with torch.no_grad():
        found = greedy(model, model.encode(features), SPECIAL, max_length=WORDS)
    assert torch.equal(found.tokens_BKT[:, 0], targets_BT), (
        f"loss {total / count:.3f}; {found.tokens_BKT[:, 0].tolist()}"
    )


@torch.no_grad()
def a_beam_of_one_is_greedy(case: Case) -> None:
    model = made(case)
    memory = model.encode(pictures(case))
    for found, expected in zip(
        beam_search(model, memory, SPECIAL, beams=1, max_length=6),
        greedy(model, memory, SPECIAL, max_length=6),
        strict=True,
    ):
        assert_close(found, expected)


@torch.no_grad()
def beams_score_what_teacher_forcing_scores(case: Case) -> None:
    """Wrong where a search reorders less than the whole state."""
    model = made(case)
    memory = model.encode(pictures(case))
    found = beam_search(model, memory, SPECIAL, beams=3, max_length=5, options=BeamOptions(n_best=3))
    tokens_RT, lengths_R = found.tokens_BKT.flatten(0, 1), found.lengths_BK.flatten()
    inputs_RT = torch.cat([torch.full((len(tokens_RT), 1), SPECIAL.start), tokens_RT[:, :-1]], dim=1)
    logits_RTV = model.decode(inputs_RT, lengths_R, repeat_images(memory, 3)).logits_BTV
    scores_RT = logits_RTV.log_softmax(dim=2).gather(2, tokens_RT[..., None]).squeeze(2)
    scores_RT = scores_RT.masked_fill(torch.arange(scores_RT.shape[1]) >= lengths_R[:, None], 0)
    close(found.token_log_probabilities_BKT.flatten(0, 1), scores_RT)
    trace = explain_tokens(model, repeat_images(memory, 3), SPECIAL, tokens_RT, lengths_R)
    if trace.attention_BTN is not None:
        assert trace.attention_BTN.shape == (*tokens_RT.shape, PATCHES)


CHECKS = (
    stepping_equals_teacher_forcing,
    beams_of_a_picture_may_differ,
    one_picture_equals_many,
    padding_changes_nothing,
    hidden_patches_change_nothing,
    saved_and_loaded_is_the_same,
    the_seed_decides,
    every_parameter_gets_a_gradient,
    overfits_four_pictures,
    a_beam_of_one_is_greedy,
    beams_score_what_teacher_forcing_scores,
)
