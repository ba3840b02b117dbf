"""Inception v3 as the Frechet Inception distance uses it.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), with what
sets the network of the first FID (Heusel et al. 2017) apart, as pytorch-fid (commit b9c1811) has it: 1,008
classes; averages over neighbours that do not count what lies beyond the edge; and in the last block the
largest neighbour in place of their average.

    pictures in [0, 1] -> 299 x 299, bilinear -> [-1, 1] -> 8 x 8 x 2048 -> mean over the map    features
    features W^T, without the bias                                           scores of classes (Salimans 2016)

The weights are no part of the package: a file with the names of the public one is read, and called Inception
where its digest is that of the public file. Modules carry the names that its tensors have.

Shape legend: B pictures, C channels of a map, H W its sides, D = 2048 features, Y = 1008 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.errors import ModelError
from patchword.towers.packages import read_tensors, sha256

SIDE = 299
WIDTH, CLASSES = 2048, 1008
PUBLIC_DIGEST = "6726825d"
"""The first eight digits of the SHA-256 of the public weights, which their file name says:
pt_inception-2015-12-05-6726825d.pth."""

Size = int | tuple[int, int]


class Convolution(nn.Module):
    """Convolution without a bias, batch norm, rectifier; `same` keeps the sides of the map."""

    def __init__(self, before: int, after: int, kernel: Size, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2) if same else (0, 0)
        self.conv = nn.Conv2d(before, after, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The next map."""
        return F.relu(self.bn(self.conv(map_BCHW)))


class Step(NamedTuple):
    """One convolution of a path."""

    name: str
    after: int
    kernel: Size = 1
    stride: int = 1


class Pair(NamedTuple):
    """Two convolutions that see the same map, side by side: the end of a path."""

    first: Step
    second: Step


Steps = Sequence[Step | Pair]
"""Convolutions one after another."""


class Block(nn.Module):
    """Paths over one map whose results are joined; the last path begins with a pool."""

    def __init__(self, before: int, paths: Sequence[Steps], pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.paths: list[list[tuple[str, ...]]] = []
        for path in paths:
            width = before
            names: list[tuple[str, ...]] = []
            for step in path:
                sides: tuple[Step, ...] = step if isinstance(step, Pair) else (step,)
                for one in sides:
                    same = one.stride == 1
                    self.add_module(one.name, Convolution(width, one.after, one.kernel, one.stride, same))
                names.append(tuple(one.name for one in sides))
                width = sides[0].after
            self.paths.append(names)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """The results of all paths, joined."""
        found = []
        for number, names in enumerate(self.paths):
            inner_BCHW = self.pool(map_BCHW) if number == len(self.paths) - 1 else map_BCHW
            if not names:
                found.append(inner_BCHW)
                continue
            for (name,) in names[:-1]:
                inner_BCHW = self.get_submodule(name)(inner_BCHW)
            found += [self.get_submodule(name)(inner_BCHW) for name in names[-1]]
        return torch.cat(found, 1)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _block_a(before: int, pooled: int) -> Block:
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, 3), Step("branch3x3dbl_3", 96, 3))
    paths: Sequence[Steps] = (
        (Step("branch1x1", 64),),
        (Step("branch5x5_1", 48), Step("branch5x5_2", 64, 5)),
        double,
        (Step("branch_pool", pooled),),
    )
    return Block(before, paths, _average())


def _block_b(before: int) -> Block:
    double = (Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, 3), Step("branch3x3dbl_3", 96, 3, 2))
    return Block(before, ((Step("branch3x3", 384, 3, 2),), double, ()), nn.MaxPool2d(3, 2))


def _block_c(before: int, width: int) -> Block:
    wide, tall = (1, 7), (7, 1)
    single = (Step("branch7x7_1", width), Step("branch7x7_2", width, wide), Step("branch7x7_3", 192, tall))
    double = (
        Step("branch7x7dbl_1", width),
        Step("branch7x7dbl_2", width, tall),
        Step("branch7x7dbl_3", width, wide),
        Step("branch7x7dbl_4", width, tall),
        Step("branch7x7dbl_5", 192, wide),
    )
    paths: Sequence[Steps] = ((Step("branch1x1", 192),), single, double, (Step("branch_pool", 192),))
    return Block(before, paths, _average())


def _block_d(before: int) -> Block:
    long = (
        Step("branch7x7x3_1", 192),
        Step("branch7x7x3_2", 192, (1, 7)),
        Step("branch7x7x3_3", 192, (7, 1)),
        Step("branch7x7x3_4", 192, 3, 2),
    )
    return Block(
        before, ((Step("branch3x3_1", 192), Step("branch3x3_2", 320, 3, 2)), long, ()), nn.MaxPool2d(3, 2)
    )


def _block_e(before: int, pool: nn.Module) -> Block:
    def pair(name: str) -> Pair:
        return Pair(Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1)))

    paths: Sequence[Steps] = (
        (Step("branch1x1", 320),),
        (Step("branch3x3_1", 384), pair("branch3x3_2")),
        (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, 3), pair("branch3x3dbl_3")),
        (Step("branch_pool", 192),),
    )
    return Block(before, paths, pool)


class Inception(nn.Module):
    """Features of pictures, and their scores of classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, _average())
        self.Mixed_7c = _block_e(WIDTH, nn.MaxPool2d(3, 1, 1))
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and scores of classes without their bias (B, Y), of pictures in [0, 1]."""
        side = (SIDE, SIDE)
        map_BCHW = F.interpolate(pictures_B3HW, side, mode="bilinear", align_corners=False)
        map_BCHW = 2 * map_BCHW - 1
        map_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(map_BCHW)))
        map_BCHW = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(map_BCHW, 3, 2)))
        map_BCHW = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(map_BCHW, 3, 2))))
        map_BCHW = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(map_BCHW)))
        map_BCHW = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(map_BCHW)))
        features_BD = self.Mixed_7c(self.Mixed_7b(map_BCHW)).mean((2, 3))
        return features_BD, features_BD @ self.fc.weight.T


class InceptionFile(NamedTuple):
    """The network of a file, and whether it is the public one."""

    network: Inception
    digest: str
    """SHA-256 of the file."""

    @property
    def is_public(self) -> bool:
        """Whether these are the weights with which the field measures."""
        return self.digest.startswith(PUBLIC_DIGEST)


def load_inception(path: Path) -> InceptionFile:
    """The network of a .pth or .safetensors file with the names of the public one.

    Raises ModelError for a file that cannot be read, or that holds other tensors.
    """
    if not path.is_file():
        raise ModelError(
            f"{path} is no file: expected the weights of Inception that FID is measured with, "
            f"pt_inception-2015-12-05-{PUBLIC_DIGEST}.pth (see pytorch-fid)"
        )
    given = _counted_out(read_tensors(path, "fetch it again"))
    network = Inception()
    own = network.state_dict()
    wanted = _counted_out(own)
    wrong = {name for name in wanted.keys() | given.keys() if _shape(wanted, name) != _shape(given, name)}
    if wrong:
        first = min(wrong)
        raise ModelError(
            f"{path} is not the Inception of FID: {len(wrong)} of its tensors differ, such as {first} "
            f"(found {_shape(given, first) or 'none'}, expected {_shape(wanted, first) or 'none'})"
        )
    network.load_state_dict({**own, **given})
    return InceptionFile(network.eval(), sha256(path))


def _counted_out(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the counters of the batch norms, which only a training reads and some files lack."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
