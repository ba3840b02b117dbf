"""Scenes: a drawn test world in which everything is known exactly.

No scene is ever presented as a photograph.

    world      the scenes themselves, made from (split, index, seed); held-out parts
    draw       pixels, instance masks, boxes, visible shares
    sayings    the grammar, its facts, and the oracle `entails`
    describe   true captions with links from words to things
    questions  balanced questions with answers and programs
    corrupt    five kinds of corruption in five severities
    export     scenes as a data set on disk
"""

from __future__ import annotations

from patchword.data.scenes.corrupt import corrupt
from patchword.data.scenes.describe import Caption, describe, distinct
from patchword.data.scenes.draw import boxes, draw, masks, visible_share
from patchword.data.scenes.export import write_labels, write_phrases, write_questions, write_scenes
from patchword.data.scenes.questions import Question, answer, ask, question_only_baseline
from patchword.data.scenes.sayings import entails, is_true, parse
from patchword.data.scenes.world import Scene, Thing, make_scenes, related, relations

__all__ = [
    "Caption",
    "Question",
    "Scene",
    "Thing",
    "answer",
    "ask",
    "boxes",
    "corrupt",
    "describe",
    "distinct",
    "draw",
    "entails",
    "is_true",
    "make_scenes",
    "masks",
    "parse",
    "question_only_baseline",
    "related",
    "relations",
    "visible_share",
    "write_labels",
    "write_phrases",
    "write_questions",
    "write_scenes",
]
