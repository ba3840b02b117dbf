"""Converts weights of the public Meshed-Memory code to `models/captioners/meshed_memory.py`.

Source: aimagelab/meshed-memory-transformer.

    encoder.fc, encoder.layer_norm                       embed, embed_norm
    encoder.layers.i.mhatt.attention.fc_{q,k,v}, fc_o    encoder.i.attention.qkv, .output
    encoder.layers.i.mhatt.attention.m_k, m_v            encoder.i.slot_keys_MC, .slot_values_MC
    encoder.layers.i.mhatt.layer_norm                    encoder.i.attention_norm
    ....pwff.fc1, fc2, layer_norm                        ....feed_forward.expand, .contract, .norm
    decoder.word_emb, decoder.fc                         words, output
    decoder.layers.i.self_att.attention, .layer_norm     decoder.i.attention, .attention_norm
    decoder.layers.i.enc_att.attention, .layer_norm      decoder.i.cross, .cross_norm
    decoder.layers.i.fc_alpha{1,2,3}                     decoder.i.gates.{0,1,2}
    decoder.pos_emb                                      positions_TC, without row 0, the padding

The public code initialises all its matrices again after building them, including the frozen table of sine
positions. Its positions are therefore random constants and must be read from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchword.errors import ModelError
from patchword.models.captioners.meshed_memory import MeshedMemoryConfig, MeshedMemoryTransformer


def from_reference(state: Mapping[str, Tensor], options: Mapping[str, object]) -> MeshedMemoryTransformer:
    """Builds a captioner in evaluation mode that computes what the public code computes with these weights.

    `state` holds the reference's parameters by their names; a leading `state.` is removed, and keys that do
    not belong to encoder or decoder are ignored. `options` needs `heads`; all other sizes are read from the
    weights. Raises ModelError where a weight is missing or left over, or where `options` lacks the heads.
    """
    weights = {key.removeprefix("state."): value for key, value in state.items()}
    weights = {key: value for key, value in weights.items() if key.startswith(("encoder.", "decoder."))}
    source = _Source(weights)
    config = MeshedMemoryConfig(
        width=source.look("encoder.fc.weight").shape[0],
        heads=_heads(options),
        hidden=source.look("encoder.layers.0.pwff.fc1.weight").shape[0],
        encoder_layers=source.count("encoder.layers."),
        decoder_layers=source.count("decoder.layers."),
        slots=source.look("encoder.layers.0.mhatt.attention.m_k").shape[1],
        dropout=0.1,
        max_positions=len(source.look("decoder.pos_emb.weight")) - 1,
    )
    model = MeshedMemoryTransformer(
        config, source.look("encoder.fc.weight").shape[1], len(source.look("decoder.word_emb.weight"))
    )
    model.load_state_dict(_converted(source, config))
    source.check_empty()
    return model.eval()


def _converted(source: _Source, config: MeshedMemoryConfig) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    source.move(ours, "encoder.fc", "embed")
    source.move(ours, "encoder.layer_norm", "embed_norm")
    for number in range(config.encoder_layers):
        theirs, mine = f"encoder.layers.{number}", f"encoder.{number}"
        source.fuse(ours, f"{theirs}.mhatt.attention", ("fc_q", "fc_k", "fc_v"), f"{mine}.attention.qkv")
        source.move(ours, f"{theirs}.mhatt.attention.fc_o", f"{mine}.attention.output")
        ours[f"{mine}.slot_keys_MC"] = source.take(f"{theirs}.mhatt.attention.m_k")[0]
        ours[f"{mine}.slot_values_MC"] = source.take(f"{theirs}.mhatt.attention.m_v")[0]
        source.move(ours, f"{theirs}.mhatt.layer_norm", f"{mine}.attention_norm")
        _feed_forward(source, ours, theirs, mine)
    ours["words.weight"] = source.take("decoder.word_emb.weight")
    ours["positions_TC"] = source.take("decoder.pos_emb.weight")[1:]
    ours["output.weight"] = source.take("decoder.fc.weight")
    for number in range(config.decoder_layers):
        theirs, mine = f"decoder.layers.{number}", f"decoder.{number}"
        source.fuse(ours, f"{theirs}.self_att.attention", ("fc_q", "fc_k", "fc_v"), f"{mine}.attention.qkv")
        source.move(ours, f"{theirs}.self_att.attention.fc_o", f"{mine}.attention.output")
        source.move(ours, f"{theirs}.self_att.layer_norm", f"{mine}.attention_norm")
        source.move(ours, f"{theirs}.enc_att.attention.fc_q", f"{mine}.cross.query")
        source.fuse(ours, f"{theirs}.enc_att.attention", ("fc_k", "fc_v"), f"{mine}.cross.keys_values")
        source.move(ours, f"{theirs}.enc_att.attention.fc_o", f"{mine}.cross.output")
        source.move(ours, f"{theirs}.enc_att.layer_norm", f"{mine}.cross_norm")
        for level in range(config.encoder_layers):
            source.move(ours, f"{theirs}.fc_alpha{level + 1}", f"{mine}.gates.{level}")
        _feed_forward(source, ours, theirs, mine)
    return ours


def _feed_forward(source: _Source, ours: dict[str, Tensor], theirs: str, mine: str) -> None:
    source.move(ours, f"{theirs}.pwff.fc1", f"{mine}.feed_forward.expand")
    source.move(ours, f"{theirs}.pwff.fc2", f"{mine}.feed_forward.contract")
    source.move(ours, f"{theirs}.pwff.layer_norm", f"{mine}.feed_forward.norm")


class _Source:
    """The reference's weights, taken one by one, so that none can be left over unnoticed."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = dict(weights)

    def look(self, name: str) -> Tensor:
        if name not in self._weights:
            raise ModelError(
                f"the weights hold no {name!r}, which every Meshed-Memory checkpoint of the public code "
                "has; give its 'state_dict' entry"
            )
        return self._weights[name]

    def take(self, name: str) -> Tensor:
        tensor = self.look(name)
        del self._weights[name]
        return tensor

    def count(self, prefix: str) -> int:
        return len(
            {name.removeprefix(prefix).split(".")[0] for name in self._weights if name.startswith(prefix)}
        )

    def move(self, ours: dict[str, Tensor], theirs: str, mine: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = self.take(f"{theirs}.{kind}")

    def fuse(self, ours: dict[str, Tensor], theirs: str, names: tuple[str, ...], mine: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = torch.cat([self.take(f"{theirs}.{name}.{kind}") for name in names])

    def check_empty(self) -> None:
        if self._weights:
            raise ModelError(
                f"the weights hold {len(self._weights)} that the model has no place for, among them "
                f"{min(self._weights)!r}; "
                "this is not a checkpoint of the public Meshed-Memory code"
            )


def _heads(options: Mapping[str, object]) -> int:
    heads = options.get("heads")
    if not isinstance(heads, int):
        raise ModelError(
            "the number of heads cannot be read from the weights; give it in the options, as in {'heads': 8}"
        )
    return heads
