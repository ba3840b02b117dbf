"""Model folders of earlier versions, brought up to date step by step as they are read: one function per step
of the format.

1 -> 2    task "classify" is "label"; section "question_answering" is "answerer"; the region alignment of a
captioner or answerer stands
          under "region_alignment", in config.json and in the names of its weights.
2 -> 3    the facts about a model, which stood among its settings, are a section of their own.
"""

from __future__ import annotations

import re
from typing import Any


def upgraded_config(config: dict[str, Any], found: int) -> dict[str, Any]:
    """config.json of format `found` as the newest format has it."""
    for step in _STEPS[found - 1 :]:
        config = step(config)
    return config


def upgraded_name(name: str) -> str:
    """The name of a weight as the newest format has it; names of the newest format stay."""
    return re.sub(r"^(captioner|answerer|answerer\.encoder)\.alignment\.", r"\1.region_alignment.", name)


def _from_1_to_2(config: dict[str, Any]) -> dict[str, Any]:
    config = {**config, "format": 2}
    if config.get("task") == "classify":
        config["task"] = "label"
    if "question_answering" in config:
        config["answerer"] = config.pop("question_answering")
    for section in ("captioner", "answerer"):
        values = config.get(section)
        if isinstance(values, dict) and "alignment" in values:
            values = dict(values)
            values["region_alignment"] = values.pop("alignment")
            config[section] = values
    return config


def _from_2_to_3(config: dict[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in config.items() if name in _SETTINGS_OF_2}
    found = {name: value for name, value in config.items() if name not in _SETTINGS_OF_2}
    facts = {name: value for name, value in found.items() if name in _FACTS_OF_2}
    notes = {name: value for name, value in found.items() if name not in _FACTS_OF_2}
    return {**settings, "format": 3, "facts": {**facts, **({"notes": notes} if notes else {})}}


_FACTS_OF_2 = frozenset(
    "name description dataset licence command limits example scores scores_on trained_parameters "
    "towers vision_from text_from".split()
)
_SETTINGS_OF_2 = frozenset(
    "format patchword task tower captioner preprocessing decoding vocabulary_size tower_sha256 codebook "
    "vision text "
    "two_towers concepts patch_slimming region_alignment answerer generator targets answers max_words model labels columns".split()  # noqa: E501
)
_STEPS = (_from_1_to_2, _from_2_to_3)
