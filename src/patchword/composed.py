"""One composed model per task: a tower and what reads it, each with its own section of the configuration.

The unions below are the whole registry: a new tower or captioner is one more line in a union and one in the function under it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from patchword.errors import ConfigError
from patchword.models.show_attend_tell import ShowAttendTell, ShowAttendTellConfig
from patchword.towers.clip import ClipTower, ClipTowerConfig
from patchword.towers.convolutional import ConvolutionalConfig, ConvolutionalTower
from patchword.towers.resnet import ResNetTower, ResNetTowerConfig
from patchword.towers.vit import SwinTower, SwinTowerConfig, VitTower, VitTowerConfig
from patchword.types import Captioner, VisualFeatures

TowerSettings = Annotated[
    ConvolutionalConfig | ClipTowerConfig | VitTowerConfig | SwinTowerConfig | ResNetTowerConfig, Field(discriminator="kind")
]
CaptionerSettings = ShowAttendTellConfig

_TOWERS = {
    ConvolutionalConfig: ConvolutionalTower,
    ClipTowerConfig: ClipTower,
    VitTowerConfig: VitTower,
    SwinTowerConfig: SwinTower,
    ResNetTowerConfig: ResNetTower,
}
_CAPTIONERS = {ShowAttendTellConfig: ShowAttendTell}


def build_tower(settings: TowerSettings) -> nn.Module:
    return _TOWERS[type(settings)](settings)


def build_captioner(settings: CaptionerSettings, feature_width: int, vocabulary_size: int) -> Captioner:
    return _CAPTIONERS[type(settings)](settings, feature_width, vocabulary_size)


class CaptionModel(nn.Module):
    """A tower and a captioner."""

    def __init__(self, tower: nn.Module, captioner: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.captioner = captioner

    @classmethod
    def build(cls, tower: TowerSettings, captioner: CaptionerSettings, vocabulary_size: int) -> CaptionModel:
        built = build_tower(tower)
        return cls(built, build_captioner(captioner, built.width, vocabulary_size))

    @property
    def tower_is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.tower.parameters())

    def train(self, mode: bool = True) -> CaptionModel:
        """As `nn.Module.train`; a tower in which nothing learns stays in evaluation mode, its batch statistics and all."""
        super().train(mode)
        if self.tower_is_frozen:
            self.tower.eval()
        return self

    def features(self, pixels_B3HW: Tensor | None, stored: VisualFeatures | None) -> VisualFeatures:
        """Stored features of the frozen tower where there are any, else the tower's. Raises ConfigError when given neither, or a wrong width."""
        if stored is not None:
            if stored.grid_BNC.shape[-1] != self.tower.width:
                found = f"stored features are {stored.grid_BNC.shape[-1]} wide and the tower {self.tower.width}"
                raise ConfigError(f"{found}: the feature store was made by another tower")
            return stored
        if pixels_B3HW is None:
            raise ConfigError("a captioner was given neither pixels nor stored features")
        if self.tower_is_frozen:
            with torch.no_grad():
                return self.tower(pixels_B3HW)
        return self.tower(pixels_B3HW)
