import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from patchword.errors import ModelError
from patchword.towers.clip import ClipTextTower, ClipTower, ClipTowerConfig
from patchword.towers.layered import run_layers

VISION = dict(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=16,
    patch_size=4,
    projection_dim=12,
)
TEXT = dict(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=40, max_position_embeddings=10,
    projection_dim=12, eos_token_id=39, bos_token_id=38, pad_token_id=39,
)  # fmt: skip


@pytest.fixture(scope="module")
def clip():
    """A tiny CLIP of transformers whose weights are far enough from their small initial values for every path
    to show.
    """
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=12)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(path)
    return path


@pytest.fixture
def pixels_B3HW():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_the_vision_tower_equals_transformers(clip, folder, pixels_B3HW):
    tower = ClipTower.from_pretrained(folder)
    features = tower(pixels_B3HW)
    theirs = clip.get_image_features(pixels_B3HW)
    torch.testing.assert_close(features.pooled_BE, theirs.pooler_output, rtol=0, atol=2e-6)
    torch.testing.assert_close(features.class_BC, theirs.last_hidden_state[:, 0], rtol=0, atol=2e-6)
    torch.testing.assert_close(features.grid_BNC, theirs.last_hidden_state[:, 1:], rtol=0, atol=2e-6)
    assert (
        features.hw == (4, 4)
        and features.aligned_BNE is None
        and tower.width == 16
        and tower.shared_width == 12
    )


def test_the_vision_tower_is_the_composition_of_its_parts(folder, pixels_B3HW):
    tower = ClipTower.from_pretrained(folder, aligned="value_only")
    features = tower(pixels_B3HW)
    stored_BNC = run_layers(tower.layers, *tower.embed(pixels_B3HW), stop=2)
    resumed = tower.resume(stored_BNC, None, 2)
    assert torch.equal(resumed.grid_BNC, features.grid_BNC) and torch.equal(
        resumed.aligned_BNE, features.aligned_BNE
    )
    alone = tower.finish(tower.layers[2](stored_BNC))
    assert torch.equal(alone.pooled_BE, features.pooled_BE) and alone.aligned_BNE is None


def with_identity_attention(clip):
    """The same CLIP with the attention matrix of its last layer replaced by the identity: every token attends
    to itself.
    """
    model = copy.deepcopy(clip)
    attention = model.vision_model.encoder.layers[-1].self_attn

    def forward(hidden_states, attention_mask=None, **_):
        return attention.out_proj(attention.v_proj(hidden_states)), None

    attention.forward = forward
    return model


def test_value_with_residual_is_clip_with_identity_attention(clip, folder, pixels_B3HW):
    tower = ClipTower.from_pretrained(folder, aligned="value_with_residual")
    model = with_identity_attention(clip)
    last_BNC = model.vision_model(pixels_B3HW).last_hidden_state
    expected_BNE = model.visual_projection(model.vision_model.post_layernorm(last_BNC))[:, 1:]
    torch.testing.assert_close(tower(pixels_B3HW).aligned_BNE, expected_BNE, rtol=0, atol=5e-6)


def test_value_only_is_identity_attention_without_the_residual_sums(clip, folder, pixels_B3HW):
    tower = ClipTower.from_pretrained(folder, aligned="value_only")
    before_last_BNC = clip.vision_model(pixels_B3HW, output_hidden_states=True).hidden_states[-2]
    last = with_identity_attention(clip).vision_model.encoder.layers[-1]
    attended_BNC, _ = last.self_attn(last.layer_norm1(before_last_BNC))
    expected_BNE = clip.visual_projection(clip.vision_model.post_layernorm(attended_BNC))[:, 1:]
    torch.testing.assert_close(tower(pixels_B3HW).aligned_BNE, expected_BNE, rtol=0, atol=5e-6)


def test_correlative_attention_is_the_sum_of_two_softmaxes(clip, folder, pixels_B3HW):
    tower = ClipTower.from_pretrained(folder, aligned="correlative")
    last = clip.vision_model.encoder.layers[-1]
    x_BNC = clip.vision_model(pixels_B3HW, output_hidden_states=True).hidden_states[-2]
    normed_BNC = last.layer_norm1(x_BNC)
    heads = [
        to_heads(normed_BNC).view(2, 17, 2, 8)
        for to_heads in (last.self_attn.q_proj, last.self_attn.k_proj, last.self_attn.v_proj)
    ]
    weights_BHNM = sum(
        torch.einsum("bnhd,bmhd->bhnm", part, part).div(8**0.5).softmax(-1) for part in heads[:2]
    )
    y_BNC = x_BNC + last.self_attn.out_proj(
        torch.einsum("bhnm,bmhd->bnhd", weights_BHNM, heads[2]).flatten(2)
    )
    y_BNC = y_BNC + last.mlp(last.layer_norm2(y_BNC))
    expected_BNE = clip.visual_projection(clip.vision_model.post_layernorm(y_BNC))[:, 1:]
    torch.testing.assert_close(tower(pixels_B3HW).aligned_BNE, expected_BNE, rtol=0, atol=5e-6)


def test_a_penultimate_grid_is_the_input_of_the_last_layer(clip, folder, pixels_B3HW):
    tower = ClipTower(ClipTowerConfig(source=str(folder), grid="penultimate"))
    hidden = clip.vision_model(pixels_B3HW, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels_B3HW).grid_BNC, hidden[-2][:, 1:], rtol=0, atol=2e-6)
    with pytest.raises(ModelError, match="pass it to finish as before_last_BNC"):
        tower.finish(hidden[-1])


def test_the_text_tower_equals_transformers(clip, folder):
    tower = ClipTextTower.from_pretrained(folder)
    ids_BL = torch.randint(0, 38, (3, 8))
    ids_BL[:, 0] = 38
    for row, end in enumerate((7, 3, 1)):
        ids_BL[row, end:] = 39  # transformers pads CLIP's texts with the end-of-text token
    features = tower(ids_BL)
    torch.testing.assert_close(
        features.pooled_BE, clip.get_text_features(ids_BL).pooler_output, rtol=0, atol=2e-6
    )
    assert features.mask_BL.sum(1).tolist() == [8, 4, 2]
    theirs_BLC = clip.text_model(ids_BL).last_hidden_state
    torch.testing.assert_close(
        features.tokens_BLC[features.mask_BL], theirs_BLC[features.mask_BL], rtol=0, atol=2e-6
    )


def test_texts_without_an_end_are_refused(folder):
    tower = ClipTextTower.from_pretrained(folder)
    with pytest.raises(ModelError, match=r"text 1 of the batch has no end-of-text token \(id 39\)"):
        tower(torch.tensor([[38, 5, 39], [38, 5, 6]]))
    with pytest.raises(ModelError, match="a text has 11 tokens and CLIP's text tower takes at most 10"):
        tower(torch.full((1, 11), 39))


def test_every_aligned_path_has_a_gradient_to_a_trained_last_layer(folder, pixels_B3HW):
    for how in ("value_only", "value_with_residual", "correlative"):
        tower = ClipTower.from_pretrained(folder, aligned=how, trainable_from=2)
        tower(pixels_B3HW).aligned_BNE.square().sum().backward()
        assert tower.layers[2].block.self_attn.v_proj.weight.grad.abs().sum() > 0
        assert tower.layers[1].block.self_attn.v_proj.weight.grad is None
