"""Converts weights of the public PMF code to `models/fusion/prompt_fusion.py`.

Source: yaoweilee/PMF, commit 0858587.

    vit_encoder.*, bert_encoder.*              image_tower.model.*, text_tower.model.*
                                               under the names of newer transformers
    vit_encoder.heads, bert_encoder.heads      image_head, text_head
    v2t_qp.i, v2t_qcp.i, vision_fcp.i          fused.i.image.query_QC, .query_context_MC, .fusion_context_MC
                                               without the batch axis
    t2v_qp.i, t2v_qcp.i, text_fcp.i            fused.i.text.…
    v2t_trans.i.linear{1,2}, t2v_trans.i.…     fused.i.image_to_text.{inner,outer}, fused.i.text_to_image.…

The public code stores the poolers of both towers and the table of position numbers without using them; they
are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from patchword.errors import ModelError
from patchword.models.fusion.prompt_fusion import PromptFusion, PromptFusionConfig
from patchword.towers.bert import BertTower, BertTowerConfig
from patchword.towers.vit import VitTower, VitTowerConfig

_UNUSED = re.compile(
    r"^(vit|bert)_encoder\.pooler\.|^bert_encoder\.embeddings\.(position|token_type)_ids$"
    r"|embeddings\.mask_token$"
)

_VIT_NAMES = (
    (
        r"^vit_encoder\.encoder\.layer\.(\d+)\.attention\.attention\.query\.",
        r"image_tower.model.layers.\1.attention.q_proj.",
    ),
    (
        r"^vit_encoder\.encoder\.layer\.(\d+)\.attention\.attention\.key\.",
        r"image_tower.model.layers.\1.attention.k_proj.",
    ),
    (
        r"^vit_encoder\.encoder\.layer\.(\d+)\.attention\.attention\.value\.",
        r"image_tower.model.layers.\1.attention.v_proj.",
    ),
    (
        r"^vit_encoder\.encoder\.layer\.(\d+)\.attention\.output\.dense\.",
        r"image_tower.model.layers.\1.attention.o_proj.",
    ),
    (r"^vit_encoder\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"image_tower.model.layers.\1.mlp.fc1."),
    (r"^vit_encoder\.encoder\.layer\.(\d+)\.output\.dense\.", r"image_tower.model.layers.\1.mlp.fc2."),
    (r"^vit_encoder\.encoder\.layer\.(\d+)\.", r"image_tower.model.layers.\1."),
)
_NAMES = (
    (r"^(vit|bert)_encoder\.heads\.", lambda found: {"vit": "image_head.", "bert": "text_head."}[found[1]]),
    *_VIT_NAMES,
    (r"^vit_encoder\.", "image_tower.model."),
    (r"^bert_encoder\.", "text_tower.model."),
    (r"^v2t_qp\.(\d+)$", r"fused.\1.image.query_QC"),
    (r"^v2t_qcp\.(\d+)$", r"fused.\1.image.query_context_MC"),
    (r"^vision_fcp\.(\d+)$", r"fused.\1.image.fusion_context_MC"),
    (r"^t2v_qp\.(\d+)$", r"fused.\1.text.query_QC"),
    (r"^t2v_qcp\.(\d+)$", r"fused.\1.text.query_context_MC"),
    (r"^text_fcp\.(\d+)$", r"fused.\1.text.fusion_context_MC"),
    (r"^v2t_trans\.(\d+)\.linear1\.", r"fused.\1.image_to_text.inner."),
    (r"^v2t_trans\.(\d+)\.linear2\.", r"fused.\1.image_to_text.outer."),
    (r"^t2v_trans\.(\d+)\.linear1\.", r"fused.\1.text_to_image.inner."),
    (r"^t2v_trans\.(\d+)\.linear2\.", r"fused.\1.text_to_image.outer."),
)


def our_name(theirs: str) -> str:
    """Returns the name in our model of a parameter of the public code.

    Raises ModelError for a name that the public code does not have.
    """
    for pattern, ours in _NAMES:
        name, found = re.subn(pattern, ours, theirs)
        if found:
            return name
    raise ModelError(
        f"PMF weights have an entry {theirs!r} that the public code does not have: pass its state dict and "
        "nothing else"
    )


def from_reference(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> PromptFusion:
    """Builds a model in evaluation mode that computes what the public code computes with these weights.

    Args:
        state: the public code's parameters by their names. Where some names start with `state.`, only
            these are used.
        options: `vit` and `bert`, the fields of transformers' ViTConfig and BertConfig;
            `n_fusion_layers`, `n_qp`, `n_qcp`, `n_fcp`, `mlp_hidden_sz` (-1: half the wider tower) and
            `n_classes`.
    Raises:
        ModelError: options or weights are missing, left over, or of another shape.
    """
    needed = ("vit", "bert", "n_fusion_layers", "n_qp", "n_qcp", "n_fcp", "n_classes")
    absent = [name for name in needed if name not in options]
    if absent:
        raise ModelError(
            f"options of a PMF model lack {', '.join(absent)}: pass those that the reference was built with"
        )
    if any(name.startswith("state.") for name in state):
        state = {
            name.removeprefix("state."): value for name, value in state.items() if name.startswith("state.")
        }
    hidden = int(options.get("mlp_hidden_sz", -1))
    config = PromptFusionConfig(
        classes=options["n_classes"],
        fused_layers=options["n_fusion_layers"],
        query=options["n_qp"],
        query_context=options["n_qcp"],
        fusion_context=options["n_fcp"],
        map_width=None if hidden < 0 else hidden,
    )
    image_tower = VitTower(VitTowerConfig(architecture=dict(options["vit"])))
    text_tower = BertTower(BertTowerConfig(architecture=dict(options["bert"])))
    model = PromptFusion(config, image_tower, text_tower)
    _fill(model, {name: value for name, value in state.items() if not _UNUSED.search(name)})
    return model.eval()


def _fill(model: PromptFusion, state: Mapping[str, Tensor]) -> None:
    ours = model.state_dict()
    weights: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name = our_name(theirs)
        # The public code's prompts have a batch axis of 1, and it also stores those of length 0.
        value = value[0] if name.endswith(("_QC", "_MC")) and value.dim() == 3 else value
        if name not in ours and value.numel() == 0:
            continue
        if name not in ours or value.shape != ours[name].shape:
            wanted = tuple(ours[name].shape) if name in ours else "no such parameter"
            raise ModelError(f"{theirs} has shape {tuple(value.shape)}, and these options make it {wanted}")
        weights[name] = value
    missing = sorted(set(ours) - set(weights))
    if missing:
        raise ModelError(
            f"PMF weights lack {len(missing)} parameters, the first in our names is {missing[0]}: pass the "
            "whole state dict"
        )
    model.load_state_dict(weights)
