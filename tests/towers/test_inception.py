"""The Inception of FID against the public code (torch-fidelity, commit 5e211a9, preprocessing of pytorch-fid,
commit b9c1811) on random weights, which the test draws as they were drawn there. The kit holds one picture,
its features and its scores of classes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from patchword.errors import ModelError
from patchword.tasks.paint.extractors import find_extractor
from patchword.towers.inception import CLASSES, PUBLIC_DIGEST, WIDTH, Inception, InceptionFile, load_inception

KIT = Path(__file__).parents[1] / "kits" / "painters" / "inception.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A .pth file of random weights under the public names, without the counters of batch norms."""
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, tensor in Inception().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            drawn[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.ndim >= 2:
            scale = math.sqrt(2 / tensor[0].numel())
            drawn[name] = torch.randn(tensor.shape, generator=generator) * scale
        elif name.endswith("bn.weight"):
            drawn[name] = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75
        else:
            drawn[name] = torch.randn(tensor.shape, generator=generator) * 0.1
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(drawn, path)
    return path


def test_it_equals_the_public_network(weights):
    kit = load_file(KIT)
    with torch.inference_mode():
        features_BD, scores_BY = load_inception(weights).network(kit["picture"].float() / 255)
    assert features_BD.shape == (1, WIDTH) and scores_BY.shape == (1, CLASSES)
    assert torch.allclose(features_BD, kit["features"], rtol=1e-5, atol=1e-5)
    assert torch.allclose(scores_BY, kit["classes"], rtol=1e-5, atol=1e-5)


def test_a_distance_is_called_fid_with_the_public_weights_alone(weights):
    other = find_extractor(f"inception:{weights}", "cpu")
    digest = load_inception(weights).digest[:8]
    assert other.distance == f"Frechet distance (Inception of SHA-256 {digest})"
    assert not load_inception(weights).is_public
    assert InceptionFile(Inception(), PUBLIC_DIGEST + "0" * 56).is_public
    picture = load_file(KIT)["picture"][0].permute(1, 2, 0).numpy()
    features_ND, shares_NY = other.see([picture, picture[::-1]])
    assert np.allclose(features_ND[0], load_file(KIT)["features"][0].numpy(), rtol=1e-5, atol=1e-5)
    assert shares_NY is not None and np.allclose(shares_NY.sum(1), 1)


def test_other_files_are_told(weights, tmp_path):
    with pytest.raises(ModelError, match="is no file: expected the weights of Inception"):
        load_inception(tmp_path / "none.pth")
    (tmp_path / "damaged.pth").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read .*: fetch it again"):
        load_inception(tmp_path / "damaged.pth")
    kept = torch.load(weights, weights_only=True)
    save_file(
        {name: tensor for name, tensor in kept.items() if name != "fc.bias"}, tmp_path / "o.safetensors"
    )
    with pytest.raises(ModelError, match=r"1 of its tensors differ, such as fc.bias \(found none, expected"):
        load_inception(tmp_path / "o.safetensors")
