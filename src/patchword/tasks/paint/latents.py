"""Latent diffusion: the denoiser works on what an autoencoder makes of pictures (Rombach et al. 2022).

    z = s E(x)      x = D(z / s)      s = 1 / std of E(x) over a batch of training pictures       (appendix G)

The autoencoder is diffusers' `AutoencoderKL`, frozen, from a folder or the hub. A model folder holds it by
value, and needs diffusers (`patchword[paint]`) to be opened.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchword.errors import ConfigError, MissingExtra, ModelError
from patchword.hub import find_published, hub_name


class LatentCodec(nn.Module):
    """Pictures in [-1, 1] into latents of variance one, and back.

    Attributes:
        settings: what diffusers builds the autoencoder from.
        factor: pixels of a picture per cell of its latent, along one side.
        channels: those of a latent.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """With random weights. Raises MissingExtra without diffusers, ModelError for settings of no
        autoencoder."""
        super().__init__()
        self.settings = settings
        try:
            self.autoencoder = _autoencoder().from_config(settings)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"the codec's settings describe no autoencoder ({error})") from error
        self.factor = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        self.channels = int(self.autoencoder.config.latent_channels)
        self.register_buffer("scale", torch.ones(()))
        self.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, name: str) -> LatentCodec:
        """The autoencoder of a folder or a hub id (`hub:` may stand before it), from safetensors.

        Raises MissingExtra, ModelError.
        """
        source, revision = hub_name(name)
        kind, found = _autoencoder(), find_published(source, revision)
        where = {"revision": found.commit, "local_files_only": found.local}
        try:
            trained = kind.from_pretrained(source, use_safetensors=True, **where)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"diffusers gives no AutoencoderKL for {name!r} ({said})") from error
        kept = {key: value for key, value in dict(trained.config).items() if not key.startswith("_")}
        made = cls(kept)
        made.autoencoder.load_state_dict(trained.state_dict())
        return made

    def train(self, mode: bool = True) -> LatentCodec:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def measure(self, pictures_B3HW: Tensor) -> None:
        """Sets the scale from a batch of training pictures, so that latents have variance one."""
        latents = self.autoencoder.encode(pictures_B3HW).latent_dist.mean
        self.scale.copy_(1 / latents.std().clamp(min=1e-6))

    @torch.no_grad()
    def encode(self, pictures_B3HW: Tensor) -> Tensor:
        """Latents (B, C, H / factor, W / factor): the means, without the posterior's noise."""
        return self.autoencoder.encode(pictures_B3HW).latent_dist.mean * self.scale

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in about [-1, 1]."""
        return self.autoencoder.decode(latents_BCHW / self.scale).sample

    def check(self, channels: int) -> None:
        """Raises ConfigError for a denoiser of other latents."""
        if channels != self.channels:
            raise ConfigError(
                f"painter.channels is {channels}, and the codec's latents have {self.channels}: set it to "
                "that"
            )


def _autoencoder() -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingExtra("latent diffusion needs diffusers: pip install 'patchword[paint]'") from error
    return AutoencoderKL
