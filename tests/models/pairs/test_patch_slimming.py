import math

import pytest
import torch
from torch.nn import functional

from patchword.errors import DataError, ModelError
from patchword.layers.patch_word import Tile
from patchword.losses import ratio_loss
from patchword.models.pairs.patch_slimming import PatchSlimming, PatchSlimmingConfig, aggregated_tokens


def head_of(**settings):
    torch.manual_seed(3)
    head = PatchSlimming(PatchSlimmingConfig(**{"width": 16, "aggregated": 3, **settings}))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


def material(images=4, captions=5, patches=10, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, 1 + patches, width, generator=generator)
    words = torch.randn(captions, 6, width, generator=generator)
    return tokens, words, torch.tensor([6, 2, 4, 1, 5][:captions])


def all_literal(head, tokens, words, lengths, class_token):
    rows = [
        [literal(head, i, w, n, class_token) for w, n in zip(words, lengths.tolist(), strict=True)]
        for i in tokens
    ]
    return torch.stack([torch.stack(row) for row in rows])


def literal(head, tokens, words, length, class_token):
    """One pair straight from the equations: sort, gather, softmax, sum, normalise, align."""
    patches = tokens[1:] if class_token else tokens
    saliency = functional.cosine_similarity(patches, patches.mean(0, keepdim=True), dim=-1)
    relevance = functional.cosine_similarity(patches, words[:length].mean(0, keepdim=True), dim=-1)
    scores = saliency + relevance if head.config.text_score else saliency
    scores, order = scores.sort(descending=True)
    kept = math.ceil(len(patches) * head.config.keep)
    stay, gone = patches[order[:kept]], patches[order[kept:]]
    made = [tokens[:1]] if class_token else []
    if head.aggregation is None:
        made.append(stay)
    else:
        made.append(head.aggregation(stay[None])[0].softmax(dim=-1) @ stay)
    if head.config.fused_token:
        made.append(scores[kept:].softmax(dim=0)[None] @ gone)
    cosines = functional.normalize(words[:length], dim=-1) @ functional.normalize(torch.cat(made), dim=-1).T
    cosines = functional.leaky_relu(cosines, 0.1)
    return cosines.amax(dim=1).mean() + cosines.amax(dim=0).mean()


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"text_score": False}, {"fused_token": False}, {"aggregated": 0}, {"keep": 0.3}, {"keep": 1.0}],
)
def test_every_ablation_computes_its_equations(settings, class_token):
    head, (tokens, words, lengths) = head_of(**settings), material()
    expected = all_literal(head, tokens, words, lengths, class_token)
    assert torch.allclose(head(tokens, words, lengths, class_token), expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_tiles_padding_and_other_captions_change_nothing(variant):
    head, (tokens, words, lengths) = head_of(variant=variant), material()
    whole = head.align(head.images(tokens, True), head.captions(words, lengths), Tile(99, 99))
    tiled = head.align(head.images(tokens, True), head.captions(words, lengths), Tile(3, 2))
    assert torch.allclose(whole.similarities_IJ, tiled.similarities_IJ, atol=1e-6) and torch.equal(
        whole.keep_IJN, tiled.keep_IJN
    )
    garbage = words.clone()
    for row, length in zip(garbage, lengths.tolist(), strict=True):
        row[length:] = float("nan")
    assert torch.allclose(head(tokens, garbage, lengths, True), whole.similarities_IJ, atol=1e-6)
    assert torch.allclose(
        head(tokens[1:2], words[2:3], lengths[2:3], True), whole.similarities_IJ[1:2, 2:3], atol=1e-6
    )


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_autocast_does_not_touch_the_head(variant):
    head, (tokens, words, lengths) = head_of(variant=variant), material()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(tokens, words, lengths.tolist(), class_token=True)
    assert found.dtype == torch.float32 and torch.equal(found, head(tokens, words, lengths, class_token=True))


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("aggregated", [0, 3])
def test_padded_patches_are_as_if_they_were_not_there(variant, aggregated):
    head, (tokens, words, lengths) = head_of(variant=variant, aggregated=aggregated, keep=0.6), material()
    mask = torch.ones(4, 10, dtype=torch.bool)
    mask[1, 7:] = mask[3, 2:] = False
    padded = head.align(head.images(tokens, True, mask), head.captions(words, lengths))
    for i, count in enumerate(mask.sum(1).tolist()):
        alone = head.align(head.images(tokens[i : i + 1, : 1 + count], True), head.captions(words, lengths))
        assert torch.allclose(padded.similarities_IJ[i : i + 1], alone.similarities_IJ, atol=1e-5)
        assert not padded.keep_IJN[i, :, count:].any()


def test_the_share_is_rounded_up_as_published_and_of_equal_patches_the_first_stay():
    head = head_of(keep=0.7)
    tokens, words, lengths = material()
    keep = head.align(head.images(tokens, True), head.captions(words, lengths)).keep_IJN
    assert (keep.sum(dim=2) == 7).all()
    equal = torch.ones(1, 10, 16)
    keep = head.align(head.images(equal, False), head.captions(words, lengths)).keep_IJN
    assert torch.equal(keep[0, 0], torch.tensor([1.0] * 7 + [0.0] * 3))
    assert (aggregated_tokens(196, 0.5, 0.4), aggregated_tokens(49, 0.8, 0.6)) == (39, 23)


def test_sharp_logits_lose_no_patch():
    head, (tokens, words, lengths) = head_of(), material()
    with torch.no_grad():
        head.aggregation.scale.fill_(60.0)
    expected = all_literal(head, tokens, words, lengths, True)
    assert torch.allclose(head(tokens, words, lengths, True), expected, atol=1e-4)


def test_a_square_number_of_tokens_is_never_mistaken_for_a_missing_class_token():
    head, (tokens, words, lengths) = head_of(), material(patches=8)
    assert tokens.shape[1] == 9
    with_class = head(tokens, words, lengths, True)
    assert torch.allclose(with_class[0, 0], literal(head, tokens[0], words[0], 6, True), atol=1e-5)
    assert not torch.allclose(with_class, head(tokens, words, lengths, False), atol=1e-3)


@pytest.mark.parametrize("variant", ["code", "paper"])
def test_gradients_reach_every_parameter_and_agree_with_differences(variant):
    head, (tokens, words, lengths) = head_of(variant=variant), material()
    head.train()
    aligned = head.align(
        head.images(tokens.requires_grad_(), True), head.captions(words.requires_grad_(), lengths)
    )
    (aligned.similarities_IJ.square().sum() + ratio_loss(aligned.keep_IJN, 0.5)).backward()
    for name, parameter in head.named_parameters():
        # A bias added to all patches cancels in the softmax over the patches: an analytic zero.
        assert (parameter.grad.abs().max() > 1e-5) == (name != "aggregation.outer.bias"), name
    if variant == "code":
        head.zero_grad()
        step, direction = 1e-3, torch.randn(tokens.shape, generator=torch.Generator().manual_seed(9))
        head(tokens, words, lengths, True).sum().backward(inputs=[tokens])
        with torch.no_grad():
            twice = [
                head(tokens + sign * step * direction, words, lengths, True).double().sum()
                for sign in (1, -1)
            ]
        tokens.grad = None
        head(tokens, words, lengths, True).sum().backward(inputs=[tokens])
        slope = float((tokens.grad * direction).sum())
        assert slope == pytest.approx(float(twice[0] - twice[1]) / (2 * step), rel=0.05)


def test_the_paper_variant_decides_by_chance_in_training_only_and_its_ratio_loss_moves_the_share():
    head, (tokens, words, lengths) = head_of(variant="paper", attention_share=0.2), material()
    assert torch.equal(head(tokens, words, lengths, True), head(tokens, words, lengths, True))
    head.train()
    assert not torch.equal(head(tokens, words, lengths, True), head(tokens, words, lengths, True))
    shares, weights = [], list(head.score_network.parameters())
    for _ in range(25):
        keep = head.align(head.images(tokens, True), head.captions(words, lengths), Tile(4, 5)).keep_IJN
        assert set(keep.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0}
        shares.append(float(keep.detach().mean()))
        for parameter, slope in zip(
            weights, torch.autograd.grad(ratio_loss(keep, 0.2), weights), strict=True
        ):
            parameter.data -= 0.05 * slope.sign()
    assert sum(shares[-5:]) / 5 < sum(shares[:3]) / 3 - 0.15


def test_in_the_code_variant_the_ratio_is_a_constant():
    head, (tokens, words, lengths) = head_of(), material()
    aligned = head.align(head.images(tokens.requires_grad_(), True), head.captions(words, lengths))
    assert not aligned.keep_IJN.requires_grad and head.score_network is None


@pytest.mark.parametrize("settings", [{}, {"aggregated": 0}, {"variant": "paper"}, {"fused_token": False}])
def test_explanation_tells_where_each_word_points(settings):
    head, (tokens, words, _) = head_of(**settings), material()
    trace = head.explain(tokens[0], words[0, :4], class_token=True)
    assert trace.similarity == pytest.approx(
        head(tokens[:1], words[:1], torch.tensor([4]), True).item(), abs=1e-6
    )
    assert trace.cosines_LP.shape == (4, len(trace.tokens_PN))
    sums = trace.tokens_PN.sum(dim=1)
    assert sums[0] == 0 and ((sums[1:] - 1).abs() < 1e-5).sum() >= (
        trace.kept_N.sum() if settings == {"aggregated": 0} else 3
    )
    if head.config.fused_token and head.config.aggregated:
        assert (
            not trace.tokens_PN[1:-1][:, ~trace.kept_N].any() and not trace.tokens_PN[-1][trace.kept_N].any()
        )
    for token, patch in zip(trace.word_token_L.tolist(), trace.word_patch_L.tolist(), strict=True):
        assert trace.tokens_PN[token, patch] > 0 if token else trace.kept_N[patch]


def test_what_does_not_fit_is_refused():
    head, (tokens, words, lengths) = head_of(), material()
    with pytest.raises(
        ModelError, match=r"image tokens of shape \(4, 11, 12\): this head expects \(batch, tokens, 16\)"
    ):
        head(tokens[..., :12], words, lengths, True)
    with pytest.raises(DataError, match=r"caption lengths \[7, 2, 4, 1, 5\].*from 1 to 6"):
        head(tokens, words, torch.tensor([7, 2, 4, 1, 5]), True)
    with pytest.raises(DataError, match="class token alone"):
        head(tokens[:, :1], words, lengths, True)
