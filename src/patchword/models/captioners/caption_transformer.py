"""An encoder-decoder transformer over the patches of a picture, with two optional parts.

    patches    F = LN(dropout(CELU(W grid))); the grid's sine positions are added
    encoder    self-attention layers over the patches
    alignment  each patch gets a word of the codebook, and cross-attention layers fuse patches and words
               (FSGR, Gao 2025)
    decoder    masked self-attention, cross-attention to the encoder's output, feed-forward; post-LN residuals
    memory     self-attention also attends to prototypes of the keys and values of other training samples
               (PMA-Net, Barraco 2023); or gated attention to prototypes of the cross-attention, beside it or
               after it (the fusion design)
    words      softmax(W_o y), no bias
    copying    words of the picture's concepts are said by pointing at them (Li 2019), `layers/copying.py`

Without its parts this is the baseline; with the alignment it is FSGR, with the memory PMA-Net, with both the
fused model. The parts are in `layers/codebook.py`, `layers/region_alignment.py`, `layers/prototypes.py` and
`layers/copying.py`; docs/models/caption-transformer.md says where the sources disagree.

Shape legend: B images, R = B*K rows, T tokens, N patches (a global token, where there is one, is the last of
them), C width, H heads, D width of one head, L decoder layers, V vocabulary, W width of a context.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from patchword.errors import ModelError
from patchword.layers.attention import attend
from patchword.layers.codebook import Codebook
from patchword.layers.features import masked_mean
from patchword.layers.linear import Linear
from patchword.layers.positions import grid_positions, sine_positions
from patchword.layers.prototypes import (
    CONTEXT_WIDTH,
    Columns,
    PrototypeConfig,
    PrototypeMemory,
    PrototypeRecall,
    attend_with_prototypes,
)
from patchword.layers.region_alignment import (
    PatchContrast,
    RegionAlignment,
    RegionAlignmentConfig,
    check_codebook,
)
from patchword.layers.transformer import (
    AttentionSource,
    CrossAttention,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    add_dropped,
    cache_type,
    causal_bias,
    check_heads,
    check_length,
    each_layer,
    grown,
    initialise,
    merge_heads,
    padding_bias,
)
from patchword.types import Decoded, KeysAndValues, Trace, VisualFeatures

_CELU_ALPHA = 1.3


class CopyingConfig(BaseModel):
    """Words of the picture's concepts said by pointing at them (`layers/copying.py`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: int = Field(8, gt=0, le=1000, description="concepts of a picture that can be copied")
    width: int = Field(32, gt=0, le=65536, description="width in which decoder and concepts are compared")
    hidden: float = Field(
        0.0, ge=0, lt=1, description="share of concepts known by their evidence alone while the gate learns"
    )


class CaptionTransformerConfig(BaseModel):
    """Sizes of the model and its optional parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["caption_transformer"] = "caption_transformer"
    width: int = Field(512, gt=0, le=65536, description="width of the tokens in encoder and decoder")
    heads: int = Field(8, gt=0, le=1024, description="attention heads; they divide the width")
    hidden: int = Field(2048, gt=0, le=65536, description="hidden width of the feed-forward parts")
    encoder_layers: int = Field(3, ge=0, le=512, description="self-attention layers over the patches")
    decoder_layers: int = Field(3, gt=0, le=512, description="decoder layers")
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="dropout after each sub-layer, in the feed-forward parts and on the inputs",
    )
    max_positions: int = Field(
        54, gt=0, le=8192, description="longest caption in tokens, start token included"
    )
    region_alignment: RegionAlignmentConfig | None = Field(
        None, description="region alignment with a codebook; absent: none"
    )
    memory: PrototypeConfig | None = Field(None, description="prototype memory in the decoder; absent: none")
    copying: CopyingConfig | None = Field(
        None, description="copy gate over the picture's concepts, with a codebook; absent: none"
    )
    global_token: bool = Field(
        False, description="the class token of the tower as one more patch, through its own projection"
    )


class CaptionMemory(NamedTuple):
    """What the decoder reads of B pictures, and what the losses on patches need."""

    keys_BLHND: Tensor
    values_BLHND: Tensor
    bias_B11N: Tensor | None
    """-inf on padded patches; None where there is no padding."""
    embedded_BNC: Tensor
    """F: the patches before the encoder."""
    encoded_BNC: Tensor
    """The encoder's output, without the global token."""
    mask_BN: Tensor | None
    concepts_BN: Tensor | None
    """Codebook row of each patch; None without region alignment."""
    copied: Any = None
    """The concepts that can be copied (`CopyTokens`); None without copying."""

    def by_layer(self) -> list[AttentionSource]:
        """Returns the keys and values for the cross-attention of each decoder layer."""
        return each_layer(self.keys_BLHND, self.values_BLHND, self.bias_B11N)


class LayerOutput(NamedTuple):
    """A decoder layer's output and, where a trace is requested, its attention weights."""

    y_RTC: Tensor
    cross_RHTN: Tensor | None = None
    prototypes_RHTM: Tensor | None = None


class CaptionDecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, and prototypes at the configured placement."""

    def __init__(self, config: CaptionTransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads)
        self.attention_norm = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.hidden, config.dropout)
        placement = None if config.memory is None else config.memory.placement
        self.beside = PrototypeRecall(config.width, config.heads) if placement == "cross_add" else None
        self.after = PrototypeRecall(config.width, config.heads) if placement == "sequential" else None
        self.dropout = config.dropout

    def attend_to_words(
        self,
        queries_RHTD: Tensor,
        keys_RHTD: Tensor,
        values_RHTD: Tensor,
        columns: Columns | None,
        bias: Tensor | None,
        want_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends to the words so far, and to prototypes where they join the self-attention.

        Returns the contexts of all heads and, where requested, the weights on the prototypes.
        """
        if columns is None or self.beside is not None or self.after is not None:
            return attend(queries_RHTD, keys_RHTD, values_RHTD, bias)
        return attend_with_prototypes(queries_RHTD, keys_RHTD, values_RHTD, columns, bias, want_weights)

    def forward(
        self, y_RTC: Tensor, context_RHTD: Tensor, seen: AttentionSource, columns: Columns | None, trace: bool
    ) -> LayerOutput:
        """Applies the layer after its self-attention, whose contexts are given.

        Teacher forcing and stepping differ only before this point.
        """
        prototypes_RHTM = None
        y_RTC = self.attention_norm(
            add_dropped(y_RTC, self.attention.merge(context_RHTD), self.dropout, self.training)
        )
        # Of the attentions over patches, the trace shows the last layer's.
        looked_RTC, cross_RHTN = self.cross(y_RTC, *seen[:3], trace and seen.last)
        looked_RTC = add_dropped(y_RTC, looked_RTC, self.dropout, self.training)
        if columns is not None and self.beside is not None:
            recalled_RTC, prototypes_RHTM = self.beside(y_RTC, columns, trace)
            looked_RTC = looked_RTC + recalled_RTC
        y_RTC = self.cross_norm(looked_RTC)
        if columns is not None and self.after is not None:
            recalled_RTC, prototypes_RHTM = self.after(y_RTC, columns, trace)
            y_RTC = y_RTC + recalled_RTC
        return LayerOutput(self.feed_forward(y_RTC), cross_RHTN, prototypes_RHTM)


class CaptionTransformer(nn.Module):
    """A captioner (see `patchword.types.Captioner`) over patch features of width `feature_width`.

    Region alignment and copying (`layers.copying.Copying` for these sizes) need a codebook, and without both
    none may be given. Raises ConfigError where sizes do not fit one another, or the codebook not the config.
    """

    def __init__(
        self,
        config: CaptionTransformerConfig,
        feature_width: int,
        vocabulary_size: int,
        codebook: Codebook | None = None,
        copying: Any = None,
    ) -> None:
        super().__init__()
        check_heads(config.width, config.heads)
        check_codebook(config.region_alignment, copying, codebook)
        self.config = config
        self.vocabulary_size = vocabulary_size
        self.state_type = cache_type(config.decoder_layers)
        self.embed = Linear(feature_width, config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.encoder = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.hidden, config.dropout)
            for _ in range(config.encoder_layers)
        )
        self.words = nn.Embedding(vocabulary_size, config.width)
        self.decoder = nn.ModuleList(CaptionDecoderLayer(config) for _ in range(config.decoder_layers))
        self.output = Linear(config.width, vocabulary_size, bias=False)
        positions_TC = sine_positions(torch.arange(config.max_positions), config.width)
        self.register_buffer("positions_TC", positions_TC, persistent=False)
        self.copying = copying
        self.embed_global = Linear(feature_width, config.width) if config.global_token else None
        self._add_parts(codebook)
        initialise(self)
        nn.init.normal_(self.words.weight, std=config.width**-0.5)
        if self.copying is not None:
            nn.init.zeros_(self.words.weight)  # a word that no caption taught is what its vector says

    def _add_parts(self, codebook: Codebook | None) -> None:
        """Adds region alignment with the heads of its two losses, and the prototype memory.

        Each is None where the config leaves it out.
        """
        config = self.config
        self.region_alignment: RegionAlignment | None = None
        self.contrast: PatchContrast | None = None
        self.to_text: Linear | None = None
        self.memory: PrototypeMemory | None = None
        if config.region_alignment is not None and codebook is not None:  # check_codebook: both or none
            self.region_alignment = RegionAlignment(
                config.region_alignment, codebook, config.width, config.heads, config.hidden, config.dropout
            )
            if config.region_alignment.contrast_width:
                self.contrast = PatchContrast(config.width, config.region_alignment.contrast_width)
            if config.region_alignment.text_regulariser:
                self.to_text = Linear(config.width, codebook.embeddings_WE.shape[1])
        if config.memory is not None:
            self.memory = PrototypeMemory(config.memory, config.decoder_layers, config.width, config.heads)

    def encode(self, features: VisualFeatures) -> CaptionMemory:
        """Encodes the patches and projects keys and values of every decoder layer, once.

        Raises ModelError where the features lack something that the config requires.
        """
        embedded_BNC = self._normalised(self.embed(features.grid_BNC))
        patches = embedded_BNC.shape[1]
        x_BNC, mask_BN = embedded_BNC, features.mask_BN
        if features.hw is not None:
            x_BNC = x_BNC + grid_positions(*features.hw, self.config.width, x_BNC.device).to(x_BNC.dtype)
        if self.embed_global is not None:
            x_BNC = torch.cat((x_BNC, self._global_token(features)), dim=1)
            mask_BN = None if mask_BN is None else F.pad(mask_BN, (0, 1), value=True)
        bias_B11N = padding_bias(mask_BN, x_BNC)
        for layer in self.encoder:
            x_BNC = layer(x_BNC, bias_B11N)
        concepts_BN = None
        if self.region_alignment is not None:
            assigned = self.region_alignment.assign(features)
            x_BNC = self.region_alignment(x_BNC, assigned, features.hw, features.mask_BN)
            concepts_BN = assigned.concepts_BN
        projected = [layer.cross.project(x_BNC) for layer in self.decoder]
        keys_BLHND = torch.stack([keys_BHND for keys_BHND, _ in projected], dim=1)
        values_BLHND = torch.stack([values_BHND for _, values_BHND in projected], dim=1)
        return CaptionMemory(
            keys_BLHND,
            values_BLHND,
            bias_B11N,
            embedded_BNC,
            x_BNC[:, :patches],
            features.mask_BN,
            concepts_BN,
            None if self.copying is None else self.copying.concepts(features),
        )

    def decode(
        self, tokens_BT: Tensor, lengths_B: Tensor, memory: CaptionMemory, trace: bool = False
    ) -> Decoded:
        """Returns the logits (R, T, V) for the token after each given one; zeros from the length on.

        R may be K captions per image, image by image. Raises ModelError where a caption is longer than the
        positions.
        """
        length = tokens_BT.shape[1]
        check_length(length, self.config.max_positions)
        y_RTC = self._words(tokens_BT, self.positions_TC[:length])
        hidden_TT = causal_bias(length, y_RTC)
        columns, pictures, observed, seen = self._columns(), memory.by_layer(), [], []
        for number, layer in enumerate(self.decoder):
            queries_RHTD, keys_RHTD, values_RHTD = layer.attention.project(y_RTC)
            context_RHTD, concatenated_RHTM = layer.attend_to_words(
                queries_RHTD, keys_RHTD, values_RHTD, columns[number], hidden_TT, trace
            )
            y_RTC, cross_RHTN, recalled_RHTM = layer(
                y_RTC, context_RHTD, pictures[number], columns[number], trace
            )
            if trace:
                observed.append(self._observed(keys_RHTD, values_RHTD, memory, number))
                seen.append((cross_RHTN, concatenated_RHTM if recalled_RHTM is None else recalled_RHTM))
        real_RT1 = (torch.arange(length, device=y_RTC.device) < lengths_B[:, None])[..., None]
        logits_RTV, pointed_RTK = self._scored(y_RTC, memory)
        found = _trace(seen, memory, real_RT1, tuple(observed), pointed_RTK) if trace else None
        return Decoded(logits_RTV * real_RT1, found)

    def start(self, memory: CaptionMemory, beams: int) -> NamedTuple:
        """Returns empty caches for `beams` rows of each image."""
        images, layers, heads, _, head_width = memory.keys_BLHND.shape
        return self.state_type(
            *(memory.keys_BLHND.new_empty(images * beams, 2, heads, 0, head_width) for _ in range(layers))
        )

    def step(
        self, tokens_R: Tensor, memory: CaptionMemory, state: NamedTuple, trace: bool = False
    ) -> tuple[Tensor, NamedTuple, Trace | None]:
        """Consumes one token per row and returns the logits (R, V) of the next.

        Raises ModelError where all positions are used.
        """
        length = state[0].shape[3] + 1
        check_length(length, self.config.max_positions)
        y_R1C = self._words(tokens_R[:, None], self.positions_TC[length - 1])
        columns, pictures, caches, seen = self._columns(), memory.by_layer(), [], []
        for number, layer in enumerate(self.decoder):
            queries_RH1D, keys_RH1D, values_RH1D = layer.attention.project(y_R1C)
            caches.append(grown(state[number], keys_RH1D, values_RH1D))
            keys_RHTD, values_RHTD = caches[-1].unbind(dim=1)
            context_RH1D, concatenated_RH1M = layer.attend_to_words(
                queries_RH1D, keys_RHTD, values_RHTD, columns[number], None, trace
            )
            y_R1C, cross_RH1N, recalled_RH1M = layer(
                y_R1C, context_RH1D, pictures[number], columns[number], trace
            )
            if trace:
                seen.append((cross_RH1N, concatenated_RH1M if recalled_RH1M is None else recalled_RH1M))
        real_R11 = torch.ones(tokens_R.shape[0], 1, 1, dtype=torch.bool, device=tokens_R.device)
        logits_R1V, pointed_R1K = self._scored(y_R1C, memory)
        found = _trace(seen, memory, real_R11, (), pointed_R1K) if trace else None
        return logits_R1V[:, 0], self.state_type(*caches), found

    def observe(
        self,
        trace: Trace,
        tokens_BT: Tensor,
        lengths_B: Tensor,
        memory: CaptionMemory,
        pictures_B: Tensor | None = None,
    ) -> None:
        """Updates the prototype memory, if there is one, from the trace of `decode` in one training step.

        Call it after the optimiser step. With each key the bank keeps a context to show to people. For
        self-attention, it is the last tokens up to the key; for cross-attention, it is the number of the
        picture (`pictures_B`, in any numbering), the patch and its word.
        """
        if self.memory is None:
            return
        real_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device) < lengths_B[:, None]
        if self.memory.placement == "self_concat":
            self.memory.observe(trace.observed, real_BT, _prefixes(tokens_BT), trace.prototype_weights_BTLM)
        else:
            real_BN, contexts_BNW = self._patches_observed(trace, memory, pictures_B)
            self.memory.observe(trace.observed, real_BN, contexts_BNW, trace.prototype_weights_BTLM)

    def contrast_loss(
        self, memory: CaptionMemory, labels_BN: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Patch contrast over F; the labels are the assigned words, or `labels_BN` of a segmentation.

        A negative label means none. Raises ModelError where the model has no contrast head.
        """
        if self.contrast is None:
            raise ModelError(
                "this model has no patch contrast; set captioner.region_alignment.contrast_width above 0, "
                "or give its loss no weight"
            )
        labels_BN = memory.concepts_BN if labels_BN is None else labels_BN
        return self.contrast(memory.embedded_BNC, labels_BN, memory.mask_BN, generator)

    def text_loss(self, memory: CaptionMemory, text_BE: Tensor) -> Tensor:
        """Mean over rows of 1 - cosine between the projected mean patch and the caption's text embedding.

        The patches are those after the encoder. A text embedding of zeros marks an unknown text and gives no
        gradient. Raises ModelError where the model has no such projection.
        """
        if self.to_text is None:
            raise ModelError(
                "this model has no projection to text; set captioner.region_alignment.text_regulariser, or "
                "give its loss no weight"
            )
        mean_BC = masked_mean(memory.encoded_BNC, memory.mask_BN)
        return (1 - F.cosine_similarity(self.to_text(mean_BC), text_BE.to(mean_BC.dtype), dim=-1)).mean()

    def _normalised(self, x_BNC: Tensor) -> Tensor:
        return self.embed_norm(F.dropout(F.celu(x_BNC, _CELU_ALPHA), self.config.dropout, self.training))

    def _global_token(self, features: VisualFeatures) -> Tensor:
        if self.embed_global is None or features.class_BC is None:
            raise ModelError(
                "the model was built with global_token = true and the features hold no class token; "
                "use a tower that has one (CLIP, ViT) or set global_token = false"
            )
        return self._normalised(self.embed_global(features.class_BC))[:, None]

    def _words(self, tokens_RT: Tensor, positions_TC: Tensor) -> Tensor:
        own_RTC = self.words(tokens_RT)
        y_RTC = own_RTC if self.copying is None else own_RTC + self.copying.embed(tokens_RT)
        y_RTC = y_RTC * self.config.width**0.5 + positions_TC
        return F.dropout(y_RTC, self.config.dropout, self.training)

    def _scored(self, y_RTC: Tensor, memory: CaptionMemory) -> tuple[Tensor, Tensor | None]:
        """Logits of all words, and with copying how likely each concept of the picture is pointed at."""
        logits_RTV = self.output(y_RTC)
        return (logits_RTV, None) if self.copying is None else self.copying(y_RTC, logits_RTV, memory.copied)

    def _columns(self) -> tuple[Columns | None, ...]:
        return (None,) * len(self.decoder) if self.memory is None else self.memory.columns()

    def _observed(
        self, keys_RHTD: Tensor, values_RHTD: Tensor, memory: CaptionMemory, layer: int
    ) -> KeysAndValues:
        """Returns the keys and values that the bank stores: projected, without segment embeddings.

        They are those of self-attention where prototypes join it, and of cross-attention otherwise.
        """
        if self.config.memory is not None and self.config.memory.placement != "self_concat":
            keys_RHTD, values_RHTD = memory.keys_BLHND[:, layer], memory.values_BLHND[:, layer]
        return KeysAndValues(merge_heads(keys_RHTD.detach()), merge_heads(values_RHTD.detach()))

    def _patches_observed(
        self, trace: Trace, memory: CaptionMemory, pictures_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        (images, length), patches = trace.observed[0].keys_BTD.shape[:2], memory.encoded_BNC.shape[1]
        device = memory.encoded_BNC.device
        real_BN = (
            torch.ones(images, patches, dtype=torch.bool, device=device)
            if memory.mask_BN is None
            else memory.mask_BN
        )
        contexts_BNW = torch.full((images, length, CONTEXT_WIDTH), -1, dtype=torch.int32, device=device)
        if pictures_B is not None:
            contexts_BNW[..., 0] = pictures_B.to(torch.int32)[:, None]
        contexts_BNW[..., 1] = torch.arange(length, device=device)
        if memory.concepts_BN is not None:
            contexts_BNW[:, :patches, 2] = memory.concepts_BN.to(torch.int32)
        return F.pad(real_BN, (0, length - patches), value=True), contexts_BNW


def _trace(
    seen: list[tuple[Tensor, Tensor | None]],
    memory: CaptionMemory,
    real_RT1: Tensor,
    observed: tuple[KeysAndValues, ...],
    pointed_RTK: Tensor | None,
) -> Trace:
    """Builds a trace: the last layer's attention over patches, and every layer's prototype weights.

    The attention leaves out the global token and is renormalised. Both are zero where there is no word.
    """
    attention_RTN = seen[-1][0].mean(dim=1)[..., : memory.encoded_BNC.shape[1]]
    attention_RTN = attention_RTN / attention_RTN.sum(dim=-1, keepdim=True) * real_RT1
    prototypes = [
        weights_RHTM.detach().mean(dim=1) * real_RT1 for _, weights_RHTM in seen if weights_RHTM is not None
    ]
    weights_RTLM = torch.stack(prototypes, dim=2) if prototypes else None
    copies = None if pointed_RTK is None else memory.copied.copies(pointed_RTK)
    return Trace(
        attention_RTN,
        concepts_BN=memory.concepts_BN,
        prototype_weights_BTLM=weights_RTLM,
        observed=observed,
        copies=copies,
    )


def _prefixes(tokens_BT: Tensor) -> Tensor:
    """Returns the last tokens up to each position, oldest first, (B, T, W); -1 before the first."""
    return F.pad(tokens_BT.to(torch.int32), (CONTEXT_WIDTH - 1, 0), value=-1).unfold(1, CONTEXT_WIDTH, 1)
