"""Show and Tell: a recurrent network that sees the picture once, before the first word.

Vinyals, Toshev, Bengio, Erhan: Show and Tell. CVPR 2015 (the version of TPAMI 2016 has the same equations).

    x_{-1} = W_i CNN(I)          x_t = W_e S_t for t = 0 ... N - 1               (equations 10, 11)
    h_t    = LSTM(x_t, h_{t-1})  p_{t+1} = softmax(W_p h_t)                      (equation 12)

The picture is the first input. A common alternative is here too: the picture as the initial state of the
recurrent layer, h_0 = c_0 = BatchNorm(W_i CNN(I)), with the start token as the first input. CNN(I) is the
mean of the grid, for any tower.

Shape legend: that of `patchword.types`, and S width of the recurrent layer and of the words, R rows (B, or
B*K beams).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from patchword.errors import ModelError
from patchword.layers.features import grid_of, masked_mean
from patchword.layers.linear import Linear
from patchword.layers.packing import at_words, valid
from patchword.layers.recurrent import Gru, HiddenState, Lstm, LstmState, Rnn
from patchword.types import Decoded, Trace, VisualFeatures

State = LstmState | HiddenState


class ShowTellConfig(BaseModel):
    """Sizes of the model, its recurrent cell, and where the picture enters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["show_tell"] = Field("show_tell", description="Name of this captioner.")
    width: int = Field(
        512, gt=0, le=65536, description="Width of the recurrent layer and of the word embeddings."
    )
    cell: Literal["lstm", "gru", "rnn"] = Field(
        "lstm", description="Recurrent cell: lstm (paper), gru or plain rnn."
    )
    picture: Literal["first_input", "initial_state"] = Field(
        "first_input",
        description="The picture is the first input (paper), or the batch-normalised initial state.",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout before the output layer.")
    word_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the word embeddings.")


class FirstInput(nn.Module):
    """The paper's choice: the recurrent layer reads the picture as if it were a word."""

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.project = Linear(feature_width, width)

    def forward(self, mean_BC: Tensor, recurrence: Lstm | Gru | Rnn) -> State:
        """Returns the state after the picture."""
        picture_BS = self.project(mean_BC)
        return recurrence(picture_BS.unsqueeze(1), recurrence.begin(torch.zeros_like(picture_BS)))[1]


class InitialState(nn.Module):
    """The alternative: the picture is the state before the first word."""

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.project = Linear(feature_width, width)
        self.normalise = nn.BatchNorm1d(width)

    def forward(self, mean_BC: Tensor, recurrence: Lstm | Gru | Rnn) -> State:
        """Returns the state that holds the picture.

        Raises ModelError for a training batch of a single picture, which cannot be batch-normalised.
        """
        if self.training and len(mean_BC) < 2:
            raise ModelError(
                "a training batch of one picture cannot be batch-normalised: use two or more, or picture = "
                "'first_input'"
            )
        return recurrence.begin(self.normalise(self.project(mean_BC)))


class ShowTell(nn.Module):
    """A captioner (see `patchword.types.Captioner`) over grids of `feature_width` channels.

    Its memory is the state of the recurrent layer after the picture.
    """

    def __init__(self, config: ShowTellConfig, feature_width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.feature_width = feature_width
        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.word_dropout = nn.Dropout(config.word_dropout)
        self.picture = {"first_input": FirstInput, "initial_state": InitialState}[config.picture](
            feature_width, config.width
        )
        self.recurrence = {"lstm": Lstm, "gru": Gru, "rnn": Rnn}[config.cell](config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.words = Linear(config.width, vocabulary_size)
        nn.init.uniform_(self.words.weight, -0.1, 0.1)
        nn.init.zeros_(self.words.bias)

    def encode(self, features: VisualFeatures) -> State:
        """Returns the state after the picture.

        Raises ModelError where the features are not `feature_width` wide, or where the picture is the initial
        state and a training batch has a single picture.
        """
        grid_BNC = grid_of(features, self.feature_width)
        return self.picture(masked_mean(grid_BNC, features.mask_BN), self.recurrence)

    def decode(self, tokens_BT: Tensor, lengths_B: Tensor, memory: State, trace: bool = False) -> Decoded:
        """Teacher forcing; the trace is empty, because the model has no attention."""
        hiddens_BTS, _ = self.recurrence(self.word_dropout(self.embedding(tokens_BT)), memory)
        logits_BTV = at_words(self._logits, hiddens_BTS, valid(lengths_B, tokens_BT.shape[1]))
        return Decoded(logits_BTV, Trace() if trace else None)

    def start(self, memory: State, beams: int) -> State:
        """Repeats the state of each picture for its beams."""
        return type(memory)(*(part.repeat_interleave(beams, 0) for part in memory))

    def step(
        self, tokens_R: Tensor, memory: NamedTuple, state: State, trace: bool = False
    ) -> tuple[Tensor, State, Trace | None]:
        """Decodes one word for every row."""
        hiddens_R1S, state = self.recurrence(self.word_dropout(self.embedding(tokens_R[:, None])), state)
        return self._logits(hiddens_R1S[:, 0]), state, Trace() if trace else None

    def _logits(self, hidden_PS: Tensor) -> Tensor:
        return self.words(self.dropout(hidden_PS))
