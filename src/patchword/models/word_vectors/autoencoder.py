"""A stacked bimodal autoencoder of words: one code from which text and picture vectors are both restored.

Silberer and Lapata 2014 (Learning Grounded Meaning Representations with Autoencoders, ACL), section 3:

    unimodal: h = s(W x~ + b), x^ = W' h + b'      x~: x with a share of it set to 0; two layers per side
    bimodal:  y = s(W3 [h_text || h_pictures] + b3), both sides are restored from y
    L = rec(text) + rec(pictures) + d_c cross-entropy(softmax(V y), label) + weight decay
    one side is set to 0 as a whole at random, so that y follows from either side

The paper reads attributes between 0 and 1 and restores through a sigmoid; here both sides are real vectors
(counts reduced by SVD, what a tower sees), so the outermost restoring layer is linear and the error squared.
Labels are the words themselves.

Shape legend: B words of a batch, T width of text vectors, P width of picture vectors, H width of a code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn


class AutoencoderConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the bimodal autoencoder."""

    kind: Literal["autoencoder"] = "autoencoder"
    text: tuple[int, int] = Field((200, 100), description="widths of the two codes of the text side")
    pictures: tuple[int, int] = Field((200, 100), description="widths of the two codes of the picture side")
    width: int = Field(150, gt=0, description="width of the bimodal code")
    noise: float = Field(0.2, ge=0, lt=1, description="share of the numbers of a side that are set to 0")
    one_sided: float = Field(
        0.5, ge=0, le=1, description="probability that one side of a word is set to 0 as a whole"
    )
    label_weight: float = Field(0.0, ge=0, description="weight of naming the word from its code, d_c")


class WordBatch(NamedTuple):
    """Words by their two vectors."""

    ids_B: Tensor
    text_BT: Tensor
    pictures_BP: Tensor

    @property
    def target_count(self) -> int:
        """Words."""
        return len(self.ids_B)

    @property
    def picture_count(self) -> int:
        """Words."""
        return len(self.ids_B)

    def to(self, device: torch.device) -> WordBatch:
        """The same batch on a device."""
        return WordBatch(*(tensor.to(device) for tensor in self))


def masked(x_BX: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The numbers, a share of which is set to 0 at random."""
    kept_BX = torch.rand(x_BX.shape, generator=generator) >= share
    return x_BX * kept_BX.to(x_BX.device)


class Layer(nn.Module):
    """One denoising autoencoder: a sigmoid code, and the way back."""

    def __init__(self, inputs: int, code: int) -> None:
        super().__init__()
        self.encode = nn.Linear(inputs, code)
        self.restore = nn.Linear(code, inputs)

    def forward(self, x_BX: Tensor) -> Tensor:
        """Codes (B, H)."""
        return self.encode(x_BX).sigmoid()


class Side(nn.Module):
    """The two layers of one side."""

    def __init__(self, inputs: int, codes: tuple[int, int]) -> None:
        super().__init__()
        self.first, self.second = Layer(inputs, codes[0]), Layer(codes[0], codes[1])

    def forward(self, x_BX: Tensor) -> Tensor:
        """The upper codes (B, H)."""
        return self.second(self.first(x_BX))

    def restored(self, code_BH: Tensor) -> Tensor:
        """The side from its upper codes."""
        return self.first.restore(self.second.restore(code_BH).sigmoid())

    def layerwise_loss(self, x_BX: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        """Both layers restore what they read, each on its own: the second reads the first as it is."""
        first_BX = self.first.restore(self.first(masked(x_BX, noise, generator)))
        code_BH = self.first(x_BX).detach()
        second_BH = self.second.restore(self.second(masked(code_BH, noise, generator))).sigmoid()
        return F.mse_loss(first_BX, x_BX) + F.mse_loss(second_BH, code_BH)


class BimodalAutoencoder(nn.Module):
    """Two sides and the code above both."""

    def __init__(self, config: AutoencoderConfig, text_width: int, picture_width: int, words: int) -> None:
        super().__init__()
        self.config = config
        self.text, self.pictures = Side(text_width, config.text), Side(picture_width, config.pictures)
        self.joint = nn.Linear(config.text[1] + config.pictures[1], config.width)
        self.restore = nn.Linear(config.width, config.text[1] + config.pictures[1])
        self.label = nn.Linear(config.width, words) if config.label_weight else None

    def forward(self, text_BT: Tensor, pictures_BP: Tensor) -> Tensor:
        """Bimodal codes (B, H). A side that is not known is given as zeros."""
        return self.joint(torch.cat([self.text(text_BT), self.pictures(pictures_BP)], dim=1)).sigmoid()

    def restored(self, code_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Text and picture vectors from bimodal codes."""
        text_BH, pictures_BH = (
            self.restore(code_BH).sigmoid().split([self.config.text[1], self.config.pictures[1]], dim=1)
        )
        return self.text.restored(text_BH), self.pictures.restored(pictures_BH)

    def layerwise_loss(self, batch: WordBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The first stage: every layer of each side restores what it reads."""
        noise = self.config.noise
        return {
            "text": self.text.layerwise_loss(batch.text_BT, noise, generator),
            "pictures": self.pictures.layerwise_loss(batch.pictures_BP, noise, generator),
        }

    def loss(self, batch: WordBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The second stage: both sides from one code, one side of some words hidden."""
        text_BT, pictures_BP = (
            masked(side_BX, self.config.noise, generator) for side_BX in (batch.text_BT, batch.pictures_BP)
        )
        draw_B1 = torch.rand(len(text_BT), 1, generator=generator).to(text_BT.device)
        code_BH = self(
            text_BT * (draw_B1 >= self.config.one_sided / 2),
            pictures_BP * (draw_B1 < 1 - self.config.one_sided / 2),
        )
        restored_BT, restored_BP = self.restored(code_BH)
        losses = {
            "text": F.mse_loss(restored_BT, batch.text_BT),
            "pictures": F.mse_loss(restored_BP, batch.pictures_BP),
        }
        if self.label is not None:
            losses["label"] = self.config.label_weight * F.cross_entropy(self.label(code_BH), batch.ids_B)
        return losses
