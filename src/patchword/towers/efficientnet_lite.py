"""EfficientNet-Lite as a layered tower: a grid of features, and the 1,000 classes of ImageNet per cell.

Tan and Le 2019 (EfficientNet, arXiv 1905.11946). The Lite family is Google's edge version of it (2020): no
squeeze and excitation, ReLU6 in place of swish, and stem and head of one size in all members. Its block is
the inverted residual of Sandler et al. 2018 (arXiv 1801.04381):

    h = ReLU6(BN(W_expand x))           1x1, C -> t C channels (left out for t = 1)
    h = ReLU6(BN(W_depth * h))          k x k, one filter per channel, stride s
    y = BN(W_project h) [+ x]           1x1, no activation; the sum where stride is 1 and the width stays

    stem 3x3, stride 2, 32 channels;  seven stages of such blocks;  head 1x1, 1,280 channels, ReLU6;
    mean of the cells;  linear, 1,000 classes

Padding is TensorFlow's "same": ceil(size / stride) rows come out. Where the padding is odd, its extra row and
column go below and right, so it depends on the size of the input. In evaluation mode, a batch normalisation
is a fixed scale and shift; it is folded into its convolution, which is faster. Memory is channels last. The
classes of a cell come from applying the classifier to the cell before the mean (class activation maps, Zhou
et al. 2016, arXiv 1512.04150). The classifier was trained on means, so it is far too confident on single
cells.

With `aligned = "class_names"` each cell also gets a place in the text space of a sentence encoder, without
any caption (ConSE, Norouzi et al. 2014, arXiv 1312.5650): the mean of the names of its ten likeliest classes,
weighted by their probabilities. Its logits are first mixed with those of the whole picture. Where blocks are
trained, classes keep their own frozen copy of them: what the eyes learn for captions must not cost the names
of a thousand things.

Shape legend: that of `patchword.types`; K classes, h x w the size of a feature map, t C the widened channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.errors import ConfigError, ModelError
from patchword.towers import packages
from patchword.towers.efficientnet_names import our_name
from patchword.towers.efficientnet_plan import SCALES, STEM_WIDTH, StagePlan, scaled_stages
from patchword.towers.layered import PartlyFrozenModule, Parts, Preprocessing, run_layers
from patchword.towers.settings import EfficientNetLiteConfig
from patchword.types import VisualFeatures

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""(x - 127) / 128 on 0 to 255, the normalisation of TensorFlow's edge models, here on the scale 0 to 1."""
HEAD_WIDTH, CLASSES = 1280, 1000
TOP_CLASSES = 10
"""How many of a cell's likeliest classes take part in its place in the text space."""
CROP_BORDER = 32
"""Number of pixels by which a picture is scaled larger than the central square that is cut out (`fit =
"crop"`)."""


class ClassLogits(NamedTuple):
    """Logits of ImageNet's classes, before the softmax."""

    picture_BK: Tensor
    cells_BNK: Tensor
    """Their mean over the cells is `picture_BK`, because the classifier is linear."""


class NormedConvolution(nn.Module):
    """Convolution with "same" padding, batch normalisation and, optionally, ReLU6.

    In evaluation mode it is computed as one convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu6: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.relu6 = relu6
        nn.init.normal_(self.convolution.weight, std=math.sqrt(2 * groups / (kernel * kernel * outputs)))
        self._kept: _FoldedConvolution | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Returns the normalised map (B, O, h, w)."""
        if self.norm.training:
            x_BCHW = self.norm(self._convolve(x_BCHW, self.convolution.weight, None))
        else:
            folded = self.folded(x_BCHW.dtype)
            x_BCHW = self._convolve(x_BCHW, folded.filters_OIkk, folded.bias_O)
        return F.relu6(x_BCHW, inplace=True) if self.relu6 else x_BCHW

    def folded(self, dtype: torch.dtype) -> _FoldedConvolution:
        """Returns filters and bias of one convolution that also normalises, by the stored statistics.

        The result is kept until a weight or a statistic changes. Where a weight may receive a gradient, it is
        computed again, as part of the graph.
        """
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None  # it keeps its statistics
        sources = (self.convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        learns = torch.is_grad_enabled() and any(source.requires_grad for source in sources)
        # An inference tensor does not count its changes.
        if learns or any(source.is_inference() for source in sources):
            return _fold(sources, (), norm.eps, dtype)
        versions = tuple(source._version for source in sources)
        if self._kept is None or not self._kept.is_of(sources, versions, dtype):
            with torch.inference_mode(False), torch.no_grad():  # the result may be used with gradients later
                self._kept = _fold(sources, versions, norm.eps, dtype)
        return self._kept

    def _convolve(self, x_BCHW: Tensor, filters_OIkk: Tensor, bias_O: Tensor | None) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        (above, below), (left, right) = (same_padding(size, kernel, stride) for size in x_BCHW.shape[2:])
        if above != below or left != right:
            x_BCHW, above, left = F.pad(x_BCHW, (left, right, above, below)), 0, 0
        return F.conv2d(x_BCHW, filters_OIkk, bias_O, stride, (above, left), groups=self.convolution.groups)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NormedConvolution:
        """Discards the folded filters, which are on the old device or of the old type."""
        self._kept = None
        return super()._apply(fn, recurse)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding of one axis: the pixels before and after it."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


class _FoldedConvolution(NamedTuple):
    """A convolution folded with its normalisation, and the tensors and versions it was computed from."""

    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]
    filters_OIkk: Tensor
    bias_O: Tensor

    def is_of(self, sources: tuple[Tensor, ...], versions: tuple[int, ...], dtype: torch.dtype) -> bool:
        same = all(kept is given for kept, given in zip(self.sources, sources, strict=True))
        return same and self.versions == versions and self.filters_OIkk.dtype == dtype


def _fold(
    sources: tuple[Tensor, ...], versions: tuple[int, ...], eps: float, dtype: torch.dtype
) -> _FoldedConvolution:
    weight_OIkk, gain_O, bias_O, mean_O, variance_O = sources
    scale_O = gain_O * torch.rsqrt(variance_O + eps)
    filters_OIkk = (weight_OIkk * scale_O[:, None, None, None]).to(dtype, memory_format=torch.channels_last)
    return _FoldedConvolution(sources, versions, filters_OIkk, (bias_O - mean_O * scale_O).to(dtype))


class InvertedResidual(nn.Module):
    """One block, with the interface of a tower's layer."""

    def __init__(self, inputs: int, outputs: int, plan: StagePlan, stride: int, drop_path: float) -> None:
        super().__init__()
        hidden = inputs * plan.expansion
        self.expand = None if plan.expansion == 1 else NormedConvolution(inputs, hidden)
        self.depthwise = NormedConvolution(hidden, hidden, plan.kernel, stride, groups=hidden)
        self.project = NormedConvolution(hidden, outputs, relu6=False)
        self.is_residual = stride == 1 and inputs == outputs
        self.drop_path = drop_path

    def forward(self, x_BCHW: Tensor, mask: None = None) -> Tensor:
        """Maps features (B, C, h, w) through the block; there is no mask."""
        hidden_BCHW = x_BCHW if self.expand is None else self.expand(x_BCHW)
        y_BCHW = self.project(self.depthwise(hidden_BCHW))
        if not self.is_residual:
            return y_BCHW
        if self.training and self.drop_path > 0:
            keep_B111 = torch.rand(x_BCHW.shape[0], 1, 1, 1, device=x_BCHW.device) >= self.drop_path
            y_BCHW = y_BCHW * keep_B111 / (1 - self.drop_path)
        return x_BCHW + y_BCHW


class EfficientNetLiteTower(PartlyFrozenModule):
    """An EfficientNet-Lite tower for any picture size; `hw` of the features is the side / 32, rounded up.

    Attributes:
        width: C of the grid: 1,280, or that of the last block.
        depth: number of blocks.
        stage_starts: first block of each stage.
        last_width: channels of the last block.
        has_class_token: False.
        appendable: False.
        text_space: the sentence encoder in whose space cells have a place, or None.
    """

    has_class_token = False
    appendable = False

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        """Raises MissingExtra where the weights' package is not installed.

        Raises ModelError for one with other weights, ConfigError for a `trainable_from` beyond the last
        block.
        """
        super().__init__()
        self.config = config
        scale = SCALES[config.kind]
        stages = scaled_stages(scale)
        self.stem = NormedConvolution(3, STEM_WIDTH, 3, 2)
        self.layers = nn.ModuleList()
        self.stage_starts: list[int] = []
        count, inputs = sum(stage.blocks for stage in stages), STEM_WIDTH
        for stage in stages:
            self.stage_starts.append(len(self.layers))
            for number in range(stage.blocks):
                # Deeper blocks are skipped more often (Huang et al. 2016), as in the paper's training.
                skipped = config.drop_path * len(self.layers) / count
                self.layers.append(
                    InvertedResidual(inputs, stage.width, stage, 1 if number else stage.stride, skipped)
                )
                inputs = stage.width
        self.depth, self.last_width = len(self.layers), inputs
        self.head = NormedConvolution(inputs, HEAD_WIDTH)
        self.classifier = nn.Linear(HEAD_WIDTH, CLASSES) if config.classifier else None
        self.width = HEAD_WIDTH if config.grid == "head" else self.last_width
        self.shared_width: int | None = None
        self.text_space: str | None = None
        if config.aligned is not None:
            if self.classifier is None:
                raise ConfigError(
                    'aligned = "class_names" names cells by their classes: set classifier = true'
                )
            self.text_space = "all-minilm-l6-v2"
            self.register_buffer("names_KE", torch.zeros(CLASSES, config.names_width))
        if config.weights == "package":
            self._load(packages.read_weights(config.kind))
        self.class_layers: nn.ModuleList | None = None
        self.class_head: NormedConvolution | None = None
        self.make_class_branch()
        size = config.size or scale.size
        resize = size + CROP_BORDER if config.fit == "crop" else size
        self.preprocessing = Preprocessing(size, MEAN, STD, fit=config.fit, resample="bicubic", resize=resize)
        ending: tuple[nn.Module, ...] = (self.head,) if config.grid == "head" else ()
        self.freeze_below(
            Parts((self.stem,), tuple((block,) for block in self.layers), ending), config.trainable_from
        )
        # Parts that only read the grid for its classes are not trained with the tower, because no loss
        # reaches them.
        for reader in (self.head, self.classifier, self.class_layers, self.class_head):
            if reader is not None and reader not in ending:
                reader.requires_grad_(False)

    def make_class_branch(self) -> None:
        """Copies the trained blocks, and a trained head, as they are now, to read the classes from; they stay
        frozen.
        """
        first = self.config.trainable_from
        if self.text_space is None or first is None:
            return
        self.class_layers = copy.deepcopy(self.layers[first:]).requires_grad_(False)
        if self.config.grid == "head":
            self.class_head = copy.deepcopy(self.head).requires_grad_(False)

    def drop_class_branch(self) -> None:
        """Forgets the copies, so that the weights of a tower that was never trained fit."""
        self.class_layers, self.class_head = None, None

    def train(self, mode: bool = True) -> EfficientNetLiteTower:
        """Sets the mode, as for every tower.

        With stored statistics, batch normalisations stay in evaluation mode, and only their affine maps are
        trained.
        """
        super().train(mode)
        if self.config.grid != "head":
            self.head.eval()
        for copied in (self.class_layers, self.class_head):
            if copied is not None:
                copied.eval()
        if self.config.statistics == "stored":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def embed(self, pixels_B3HW: Tensor) -> tuple[Tensor, None]:
        """Returns the map (B, 32, h, w) before block 0; there is no mask.

        Raises ModelError where the input is no batch of pictures with three channels.
        """
        if pixels_B3HW.dim() != 4 or pixels_B3HW.shape[1] != 3:
            raise ModelError(
                f"the {self.config.kind} tower was given pixels of shape {tuple(pixels_B3HW.shape)} and "
                "expects (B, 3, H, W): prepare the pictures with the tower's own preprocessing values"
            )
        pixels_B3HW = pixels_B3HW.contiguous(memory_format=torch.channels_last)
        if self.config.inference == "bfloat16" and not self.training and not torch.is_grad_enabled():
            pixels_B3HW = pixels_B3HW.bfloat16()
        return self.stem(pixels_B3HW), None

    def finish(self, map_BCHW: Tensor) -> VisualFeatures:
        """Returns the grid, cells row by row, with the head's channels or those of the last block."""
        if self.config.grid == "head":
            map_BCHW = self.head(map_BCHW)
        grid_BNC = map_BCHW.flatten(2).transpose(1, 2)
        if grid_BNC.dtype == torch.bfloat16 and not torch.is_autocast_enabled(grid_BNC.device.type):
            grid_BNC = grid_BNC.float()
        return VisualFeatures(grid_BNC=grid_BNC, hw=(map_BCHW.shape[2], map_BCHW.shape[3]))

    def align(self, logits: ClassLogits) -> Tensor:
        """The place of every cell in the space of the sentence encoder, (B, N, E) of length one (Norouzi
        2014, eq. 2).

        The classes' names must have been set (`set_names`, or the weights of a model folder).
        """
        mixed_BNK = torch.lerp(logits.cells_BNK, logits.picture_BK[:, None], self.config.gate)
        top = mixed_BNK.softmax(-1).topk(TOP_CLASSES, dim=-1)
        shares_BNT1 = (top.values / top.values.sum(-1, keepdim=True))[..., None]
        return F.normalize((shares_BNT1 * self.names_KE[top.indices]).sum(-2), dim=-1)

    def set_names(self, names_KE: Tensor) -> None:
        """Where the names of the 1,000 classes lie in the text space. Raises ModelError for another shape."""
        if names_KE.shape != self.names_KE.shape:
            raise ModelError(
                f"the names of the classes are {tuple(names_KE.shape)} and {tuple(self.names_KE.shape)} is "
                "expected"
            )
        self.names_KE.copy_(F.normalize(names_KE, dim=-1))

    def forward(self, pixels_B3HW: Tensor) -> VisualFeatures:
        """Returns the features of pictures of any size, normalised by the tower's preprocessing values."""
        return self.resume(*self.embed(pixels_B3HW), start=0)

    def resume(self, map_BCHW: Tensor, mask: None, start: int) -> VisualFeatures:
        """Features from the map that goes into block `start`.

        Raises ModelError where cells are named by their classes and `start` lies beyond the first trained
        block.
        """
        map_BCHW = map_BCHW.contiguous(memory_format=torch.channels_last)
        if self.text_space is None:
            return self.finish(run_layers(self.layers, map_BCHW, mask, start))
        features, logits = self._with_classes(map_BCHW, start)
        return features._replace(aligned_BNE=self.align(logits))

    def look(self, pixels_B3HW: Tensor) -> tuple[VisualFeatures, ClassLogits]:
        """Features of pictures, and ImageNet's classes of the whole and of every cell, in one pass.

        Raises ModelError where the tower was built without its classifier.
        """
        map_BCHW, _ = self.embed(pixels_B3HW)
        features, logits = self._with_classes(map_BCHW, 0)
        if self.text_space is not None:
            features = features._replace(aligned_BNE=self.align(logits))
        return features, logits

    def _with_classes(self, map_BCHW: Tensor, start: int) -> tuple[VisualFeatures, ClassLogits]:
        if self.class_layers is None:
            features = self.finish(run_layers(self.layers, map_BCHW, None, start))
            return features, self.classify(features)
        split = self.depth - len(self.class_layers)
        if start > split:
            raise ModelError(
                f"classes are read from block {split} on, and the stored tokens go into block {start}"
            )
        shared_BCHW = run_layers(self.layers, map_BCHW, None, start, split)
        features = self.finish(run_layers(self.layers, shared_BCHW, None, split))
        with torch.no_grad():
            last_BCHW = run_layers(self.class_layers, shared_BCHW, None)
            head = self.head if self.class_head is None else self.class_head
            cells_BNC = head(last_BCHW).flatten(2).transpose(1, 2).float()
            return features, self._classes_of(cells_BNC)

    def head_cells(self, grid_BNC: Tensor) -> Tensor:
        """Returns the head's channels (B, N, 1280) of a grid of this tower, stored or new, of either kind.

        Raises:
            ModelError: the grid has another number of channels.
        """
        if grid_BNC.shape[-1] == HEAD_WIDTH:
            return grid_BNC
        if grid_BNC.shape[-1] != self.last_width:
            expected = f"{HEAD_WIDTH} (the head's) or {self.last_width} (the last block's)"
            found = grid_BNC.shape[-1]
            raise ModelError(f"the grid has {found} channels, and one of {self.config.kind} has {expected}")
        return self.head(grid_BNC.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

    def classify(self, features: VisualFeatures) -> ClassLogits:
        """Returns the logits of ImageNet's classes for the whole picture and for every cell.

        `text/imagenet.py` names the classes.

        Raises:
            ModelError: the tower was built without its classifier, or the grid is not from this tower.
        """
        if self.class_layers is not None:
            raise ModelError(
                f"the last blocks of this {self.config.kind} tower were trained, and its grid names no "
                "classes: use look()"
            )
        return self._classes_of(self.head_cells(features.grid_BNC))

    def _classes_of(self, cells_BNC: Tensor) -> ClassLogits:
        if self.classifier is None:
            raise ModelError(
                f"this {self.config.kind} tower has no classifier: build it with classifier = true"
            )
        cells_BNK = self.classifier(cells_BNC)
        return ClassLogits(cells_BNK.mean(1), cells_BNK)

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Loads the published state dict, strict both ways. Raises ModelError where the two differ."""
        named = {our_name(name): tensor for name, tensor in tensors.items()}
        if self.classifier is None:
            named = {name: tensor for name, tensor in named.items() if not name.startswith("classifier.")}
        wanted = {name: tensor for name, tensor in self.state_dict().items() if name != "names_KE"}
        differing = sorted(
            name for name in set(named) | set(wanted) if _shape(named, name) != _shape(wanted, name)
        )
        if differing:
            name = differing[0]
            raise ModelError(
                f"the weights of {self.config.kind} do not fit: {len(differing)} tensors differ, the first "
                f"is {name} (found {_shape(named, name)}, expected {_shape(wanted, name)})"
            )
        own = {name: tensor for name, tensor in self.state_dict().items() if name == "names_KE"}
        self.load_state_dict(named | own)


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
