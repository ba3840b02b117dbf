"""Converts weights of the course's PyTorch decoder to `ShowAttendTell`.

Source: sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning. Its checkpoints hold whole pickled modules; pass
their `state_dict()`, not the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from patchword.errors import ModelError
from patchword.models.captioners.show_attend_tell import ShowAttendTell, ShowAttendTellConfig

_NAMES = {
    "embedding": "embedding",
    "attention.encoder_att": "attention.key",
    "attention.decoder_att": "attention.query",
    "attention.full_att": "attention.score",
    "f_beta": "gate",
    "decode_step": "recurrence",
    "init_h": "initial_hidden",
    "init_c": "initial_cell",
    "fc": "output.words",
}
"""Maps the reference's modules to ours; the rest of a name (weight, bias, weight_ih, ...) is the same."""


def from_reference(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> ShowAttendTell:
    """Builds a captioner in evaluation mode with the reference decoder's weights.

    `state` has the reference's parameter names, bare or after `state.` (names without the prefix are then
    ignored). `options` has the reference's constructor arguments: encoder_dim, decoder_dim, attention_dim,
    embed_dim, vocab_size and, unless it is 0.5, dropout. Raises ModelError where an option is missing, or the
    names or shapes of the weights do not match the options.
    """
    config = ShowAttendTellConfig(
        word_width=_option(options, "embed_dim"),
        width=_option(options, "decoder_dim"),
        attention_width=_option(options, "attention_dim"),
        scoring="relu",
        gate="vector",
        output="linear",
        initial="linear",
        dropout=options.get("dropout", 0.5),
    )
    captioner = ShowAttendTell(
        config, feature_width=_option(options, "encoder_dim"), vocabulary_size=_option(options, "vocab_size")
    )
    try:
        captioner.load_state_dict(_renamed(state))
    except RuntimeError as error:
        raise ModelError(
            f"the reference weights do not fit the options (names or sizes differ, see below): {error}"
        ) from error
    return captioner.eval()


def _option(options: Mapping[str, Any], name: str) -> int:
    if name not in options:
        raise ModelError(
            f"the options of the reference decoder lack {name!r}; found: "
            f"{', '.join(sorted(options)) or 'nothing'}"
        )
    return options[name]


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixed = {
        name.removeprefix("state."): tensor for name, tensor in state.items() if name.startswith("state.")
    }
    renamed = {}
    for name, tensor in (prefixed or state).items():
        module, _, parameter = name.rpartition(".")
        if module not in _NAMES:
            raise ModelError(
                f"the reference weights hold {name!r}, which its decoder does not have: pass the decoder's "
                "state_dict()"
            )
        renamed[f"{_NAMES[module]}.{parameter}"] = tensor
    return renamed
