"""Causal language models of transformers, published or small ones with random weights, for `flamingo`.

The embedding and the output layer are kept apart even where the published model shares them: a model folder
then holds each once, and the function is the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from patchword.errors import ConfigError
from patchword.towers import layered
from patchword.towers.settings import LanguageConfig


class CausalLanguage(nn.Module):
    """A causal language model.

    Attributes:
        model: the model of transformers.
        blocks: its transformer blocks, in order.
        width: C.
        max_length: longest text in tokens.
        vocabulary_size: rows of the embedding.
    """

    def __init__(self, config: LanguageConfig) -> None:
        """Raises ModelError for published weights that cannot be read, ConfigError for an architecture
        without blocks of one size."""
        super().__init__()
        self.config = config
        if config.source is not None:
            self.model: Any = layered.load_published(AutoModelForCausalLM, config.source, config.revision, {})
        else:
            fields = dict(config.architecture or {})
            kind = fields.pop("model_type", None)
            if not isinstance(kind, str):
                raise ConfigError(
                    "language.architecture has no model_type: name an architecture of transformers, such as "
                    "gpt2 or llama"
                )
            self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields))
        _untie(self.model)
        architecture = self.model.config
        self.width: int = architecture.hidden_size
        self.vocabulary_size: int = architecture.vocab_size
        self.max_length: int = architecture.max_position_embeddings
        self.blocks = _blocks(self.model, architecture.num_hidden_layers)
        if config.trainable_from is None:
            self.requires_grad_(False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each."""
        return self.model(input_ids=ids_BT).logits


def _untie(model: Any) -> None:
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is embedding.weight:
        output.weight = nn.Parameter(embedding.weight.detach().clone())
    model.config.tie_word_embeddings = False


def _blocks(model: nn.Module, count: int) -> tuple[nn.Module, ...]:
    """The blocks of a decoder: the list of modules that is as long as its configuration says."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return tuple(module)
    raise ConfigError(
        f"{type(model).__name__} has no list of {count} blocks: choose a decoder of equal blocks, such as "
        "gpt2 or llama"
    )
