"""Scenes: the same from the same numbers, true captions, exact masks, balanced questions."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from patchword.data.formats.readers import read_captions
from patchword.data.scenes import (
    Scene,
    Thing,
    answer,
    ask,
    boxes,
    corrupt,
    describe,
    distinct,
    draw,
    entails,
    make_scenes,
    masks,
    parse,
    question_only_baseline,
    related,
    relations,
    visible_share,
    write_scenes,
)
from patchword.data.scenes.draw import cover
from patchword.data.scenes.questions import ANSWERS, Program
from patchword.data.scenes.sayings import BackgroundStatement, ExistenceStatement, Phrase, RelationStatement
from patchword.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COMBOS,
    HELD_OUT_ORDERS,
    RELATIONS,
    SHAPES,
    SIZES,
)
from patchword.errors import DataError


def thing(shape="circle", colour="red", size="small", x=0.5, y=0.5, radius=0.1):
    return Thing(shape, colour, size, x, y, radius, 0.0)


def scene(*things, background="white"):
    return Scene(tuple(things), background, 3, "train", 0, 0)


# a red circle left of a blue square, in which lies a small green star; a second red circle at the bottom
TABLE = scene(
    thing(x=0.15, y=0.4),
    thing("square", "blue", "large", x=0.65, y=0.4, radius=0.3),
    thing("star", "green", "small", x=0.65, y=0.4, radius=0.08),
    thing("circle", "red", "medium", x=0.2, y=0.85, radius=0.12),
    background="grey",
)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_scenes_depend_on_nothing_but_their_numbers(level):
    first = make_scenes(6, level)
    assert make_scenes(2, level, start=4) == first[4:]
    assert np.array_equal(draw(first, 32)[4:], draw(first[4:], 32))
    assert [describe(one) for one in first] == [describe(one) for one in make_scenes(6, level)]
    assert [ask(one) for one in first] == [ask(one) for one in make_scenes(6, level)]
    for other in (make_scenes(6, level, seed=1), make_scenes(6, level, "val")):
        assert not any(a.things == b.things for a, b in zip(first, other, strict=True))
    moved = dataclasses.replace(first[0], index=99)
    assert not np.array_equal(draw([moved], 32), draw(first[:1], 32))  # the noise is the scene's own as well


def test_number_of_things_and_every_attribute():
    for level, numbers in ((1, {1}), (2, {2}), (3, {3, 4, 5, 6})):
        made = make_scenes(250, level)
        assert {len(one.things) for one in made} == numbers
        things = [one for each in made for one in each.things]
        assert {one.shape for one in things} == set(SHAPES) and {one.colour for one in things} == set(COLOURS)
        assert {one.size for one in things} == set(SIZES) and {one.background for one in made} == set(
            BACKGROUNDS
        )
    assert not set(COLOURS.values()) & set(BACKGROUNDS.values())


def test_every_relation_is_met_at_level_two():
    facts = [fact for one in make_scenes(150, 2) for caption in describe(one, 2) for fact in caption.facts]
    told = Counter(fact.relation for fact in facts if isinstance(fact, RelationStatement))
    assert all(
        told[name] >= 5
        for name in ("left of", "right of", "above", "below", "inside", "overlapping", "the same colour as")
    )


@pytest.mark.parametrize(("level", "size"), [(1, 16), (2, 24), (3, 32), (3, 50)])
def test_masks_cover_what_is_drawn_and_nothing_else(level, size):
    made = make_scenes(40, level)
    pixels_BSSC, owners_BKSS, cover_BKSS = draw(made, size).astype(int), masks(made, size), cover(made, size)
    assert owners_BKSS.sum(axis=1).max() == 1  # no pixel has two owners
    for one, pixels_SSC, owners_KSS, cover_KSS in zip(
        made, pixels_BSSC, owners_BKSS, cover_BKSS, strict=True
    ):
        ground = cover_KSS.max(axis=0) == 0
        assert not owners_KSS[:, ground].any()
        assert (
            np.abs(pixels_SSC[ground] - BACKGROUNDS[one.background]).max() < 35
        )  # noise has a deviation of 5
        for k, member in enumerate(one.things):
            whole = (cover_KSS[k] == 1) & (cover_KSS[k + 1 :] == 0).all(axis=0)
            assert owners_KSS[k, whole].all()
            assert np.abs(pixels_SSC[whole] - COLOURS[member.colour]).max(initial=0) < 35
            # What is owned shows its owner's colour at least by half: it is nearer to it than to the ground,
            # where only these two meet.
            alone = owners_KSS[k] & (np.delete(cover_KSS, k, axis=0) == 0).all(axis=0)
            to_owner = np.abs(pixels_SSC[alone] - COLOURS[member.colour]).sum(axis=1)
            to_ground = np.abs(pixels_SSC[alone] - BACKGROUNDS[one.background]).sum(axis=1)
            assert (to_owner < to_ground + 60).all()
        assert not owners_KSS[len(one.things) :].any()


def test_shapes_have_their_areas():
    """Against the closed formulas, in units of the squared radius."""
    expected = {
        "circle": np.pi,
        "square": 1.64**2,
        "ring": np.pi * 0.75,
        "diamond": 1.3,
        "cross": 4 * 0.95 * 0.6 - 0.6**2,
    }
    expected |= {
        "triangle": 3 * np.sqrt(3) * 0.55**2,
        "half": np.pi / 2,
        "star": 10 * 0.5 * 0.42 * np.sin(np.pi / 5),
    }
    for shape in SHAPES:
        area = masks([scene(thing(shape, radius=0.4))], 200).sum() / (0.4 * 200) ** 2
        assert area == pytest.approx(expected[shape], rel=0.015), shape


def test_boxes_and_visible_shares_by_hand():
    made = [scene(thing("square", radius=0.25 / 0.82), thing("square", "blue", x=0.75, radius=0.25 / 0.82))]
    owners = masks(made, 40)
    assert boxes(owners).tolist() == [[[10, 10, 20, 30], [20, 10, 40, 30]]]
    np.testing.assert_allclose(visible_share(made, 40), [[0.5, 1.0]])
    assert boxes(np.zeros((1, 1, 8, 8), bool)).tolist() == [[[0, 0, 0, 0]]]


def test_things_stay_on_the_canvas_and_mostly_in_sight():
    for level in (1, 2, 3):
        made = make_scenes(80, level)
        shares = visible_share(made, 48)
        seen = [share for one, row in zip(made, shares, strict=True) for share in row[: len(one.things)]]
        assert min(seen) > 0.05 and np.mean(seen) > 0.9
        assert all(
            one.radius <= min(one.x, one.y, 1 - one.x, 1 - one.y) + 1e-9
            for each in made
            for one in each.things
        )


def test_too_small_or_unknown_is_refused():
    with pytest.raises(
        DataError, match="cannot be drawn at 15 pixels: shapes are told apart from 16 pixels on"
    ):
        draw(make_scenes(1), 15)
    with pytest.raises(
        DataError, match="split 'dev' and level 1: expected split train, val, test and level 1, 2 or 3"
    ):
        make_scenes(1, split="dev")
    with pytest.raises(DataError, match="level 4"):
        make_scenes(1, level=4)
    with pytest.raises(DataError, match="held_out='count' needs level 3, found level 1"):
        make_scenes(1, held_out="count")


@pytest.mark.parametrize(
    ("caption", "truth"),
    [
        ("a red circle", True),
        ("A crimson disc.", True),
        ("a green circle", False),
        ("there is a small green star", True),
        ("there is a large green star", False),
        ("two red circles", True),
        ("there are two circles", True),
        ("one red circle", False),
        ("one small red circle", True),
        ("three circles", False),
        ("four things", True),
        ("no ring", True),
        ("no star", False),
        ("no blue circle", True),
        ("a red circle left of a blue square", True),
        ("a small red disc to the left of a big blue square", True),
        ("a blue square left of a red circle", False),
        ("a blue square right of a red circle", True),
        ("a star inside a square", True),
        ("a square inside a star", False),
        ("a red circle below a red circle", True),
        ("a green star below a green star", False),
        ("a circle the same color as a circle", True),
        ("a star the same colour as a thing", False),
        ("a circle overlapping a square", False),
        ("a red circle and a blue square", True),
        ("a red circle and a pink square", False),
        ("a picture of two circles and no ring on a grey background", True),
        ("a red circle on a white background", False),
        ("a star on a grey background", True),
        ("i can see a thing", True),
    ],
)
def test_entailment_table(caption, truth):
    assert parse(caption) is not None
    assert entails(TABLE, caption) is truth


@pytest.mark.parametrize(
    "words",
    [
        "",
        "a",
        "circle",
        "red circle",
        "a circle red",
        "two circle",
        "a circles",
        "a red circle left of",
        "a red a circle",
        "a dog",
        "and",
    ]
    + [
        "a circle and",
        "a circle on a pink background",
        "two circles left of a star",
        "a red red circle",
        "there is",
        "no red",
    ],
)
def test_what_is_not_of_the_grammar_is_never_entailed(words):
    assert parse(words) is None and not entails(TABLE, words)


def test_parse_gives_the_facts():
    assert parse(
        "there are two big crimson rings and a little dome over an orange thing on a slate background"
    ) == (
        BackgroundStatement("slate"),
        ExistenceStatement(Phrase(2, "large", "red", "ring")),
        RelationStatement(Phrase(None, "small", None, "half"), "above", Phrase(None, None, "orange", None)),
    )


def test_the_scene_graph():
    graph = relations(TABLE)
    assert (0, "left of", 1) in graph and (1, "right of", 0) in graph and (2, "inside", 1) in graph
    assert (0, "the same colour as", 3) in graph and not any(i == j for i, _, j in graph)
    pairs = [(a, b) for i, a in enumerate(TABLE.things) for j, b in enumerate(TABLE.things) if i != j]
    assert len(graph) == sum(related(name, a, b) for name in RELATIONS for a, b in pairs)


def test_relations_by_hand():
    left, right = thing(x=0.2), thing(x=0.6, y=0.5)
    assert related("left of", left, right) and related("right of", right, left)
    assert not related("above", left, right) and not related("left of", left, thing(x=0.25, y=0.5))
    assert related("above", thing(y=0.2), thing(y=0.7)) and related("below", thing(y=0.7), thing(y=0.2))
    large = thing("ring", x=0.5, radius=0.3)
    assert related("inside", thing(x=0.55), large) and not related("inside", thing(x=0.7), large)
    assert not related("inside", thing(), thing("star", radius=0.3))  # nothing lies inside a star
    assert related("overlapping", thing(x=0.5), thing(x=0.6)) and not related(
        "overlapping", thing(x=0.5), thing(x=0.68)
    )
    assert not related("overlapping", thing(), large)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_captions_are_true_parsed_as_meant_and_linked(level):
    texts = set()
    for one in make_scenes(40, level):
        for caption in describe(one, 6):
            texts.add(caption.text)
            assert entails(one, caption.text) and set(parse(caption.text)) == set(caption.facts)
            assert len(caption.links) == len(caption.words)
            for word, places in zip(caption.words, caption.links, strict=True):
                linked = [one.things[place] for place in places]
                if word in COLOURS:
                    assert linked and all(member.colour == word for member in linked)
                if word in SHAPES and linked:
                    assert all(member.shape == word for member in linked)
                if word in ("two", "three", "four", "five", "six"):
                    assert len(linked) == {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}[word]
    assert len(texts) > 100
    assert {caption.style for caption in describe(make_scenes(1, level)[0], 6)} == set(range(6))


def test_captions_tell_scenes_apart():
    made = make_scenes(40, 2)
    captions = [describe(one, 1)[0].text for one in made]
    true = sum(entails(one, caption) for one in made for caption in captions)
    assert 40 <= true < 160  # 1600 pairs: most captions are false elsewhere
    kept = distinct(made, captions)
    assert len(kept) > 20
    assert all(entails(made[i], captions[j]) == (i == j) for i in kept for j in kept)


@pytest.mark.parametrize(
    ("held_out", "level"),
    [("combo", 1), ("combo", 3), ("relation", 2), ("count", 3)],
)
def test_held_out_parts(held_out, level):
    def has(one):
        if held_out == "combo":
            return any((member.colour, member.shape) in HELD_OUT_COMBOS for member in one.things)
        if held_out == "count":
            return len(one.things) > 3
        pairs = [(a, b) for a in one.things for b in one.things if (a.shape, b.shape) in HELD_OUT_ORDERS]
        return any(related("left of", a, b) for a, b in pairs)

    for split in ("train", "val", "test"):
        assert {has(one) for one in make_scenes(40, level, split, held_out)} == {split == "test"}


def test_answers_by_hand():
    red_circle, square, star = (
        Phrase(None, None, "red", "circle"),
        Phrase(None, None, None, "square"),
        Phrase(None, None, None, "star"),
    )
    assert (
        answer(TABLE, Program("exist", star)) == "yes"
        and answer(TABLE, Program("exist", Phrase(None, None, "pink"))) == "no"
    )
    assert (
        answer(TABLE, Program("count", red_circle)) == "two"
        and answer(TABLE, Program("count", Phrase(None, None, "pink"))) == "zero"
    )
    assert (
        answer(TABLE, Program("colour", square)) == "blue" and answer(TABLE, Program("size", star)) == "small"
    )
    assert answer(TABLE, Program("shape", Phrase(None, "large"))) == "square"
    assert answer(TABLE, Program("colour", red_circle)) is None  # there are two
    assert answer(TABLE, Program("compare", red_circle, second=square)) == "yes"
    assert answer(TABLE, Program("compare", square, second=star)) == "no"
    assert answer(TABLE, Program("relation", square, "left of", star)) == "no"
    assert answer(TABLE, Program("relation", Phrase(None, "small", "red"), "left of", square)) == "yes"


def test_questions_are_answered_right_different_and_balanced():
    asked = [(one, question) for one in make_scenes(160, 3) for question in ask(one, 5)]
    assert all(
        answer(one, question.program) == question.answer and question.answer in ANSWERS
        for one, question in asked
    )
    assert all(len({question.text for question in ask(one, 5)}) == 5 for one in make_scenes(20, 3))
    for kind in ("exist", "compare", "relation"):
        answers = Counter(question.answer for _, question in asked if question.kind == kind)
        assert set(answers) == {"yes", "no"} and 0.38 < answers["yes"] / answers.total() < 0.62, (
            kind,
            answers,
        )
    numbers = Counter(question.answer for _, question in asked if question.kind == "count")
    assert numbers.most_common(1)[0][1] < 0.45 * numbers.total() and len(numbers) >= 5
    questions = [question for _, question in asked]
    assert 0.2 < question_only_baseline(questions[:400], questions[400:]) < 0.5


def test_a_scene_with_nothing_more_to_ask_gives_fewer_questions():
    assert ask(make_scenes(1, 1)[0], 3, kinds=("relation",)) == []


@pytest.mark.parametrize("kind", ["noise", "blur", "contrast", "brightness", "pixelate"])
def test_corruption_grows_with_severity_and_repeats(kind):
    made = make_scenes(4, 2)
    clean = draw(made, 32)
    damage = [
        np.abs(corrupt(clean, made, kind, severity).astype(int) - clean).mean() for severity in range(1, 6)
    ]
    assert 0 < damage[0] and all(a < b for a, b in zip(damage, damage[1:], strict=False))
    assert np.array_equal(corrupt(clean, made, kind, 3), corrupt(clean, made, kind, 3))


def test_unknown_corruptions_are_refused():
    made = make_scenes(1)
    with pytest.raises(DataError, match="severity 6 of 'blur': expected a whole number from 1 to 5"):
        corrupt(draw(made, 16), made, "blur", 6)
    with pytest.raises(DataError, match="corruption 'fog' is not known: expected noise, blur"):
        corrupt(draw(made, 16), made, "fog", 1)


def test_scenes_on_disk_are_a_karpathy_data_set(tmp_path):
    write_scenes(tmp_path, 5, level=2, size=24, split="train")
    file = write_scenes(tmp_path, 3, level=2, size=24, split="val", captions=2)
    write_scenes(tmp_path, 4, level=2, size=24, split="train")  # written anew, not twice
    records = read_captions(file)
    assert Counter(record.split for record in records) == {"train": 4, "val": 3}
    assert len({record.image_id for record in records}) == 7
    for record in records:
        with Image.open(tmp_path / "images" / record.file) as image:
            assert image.size == (24, 24)
        split, index = record.file.split("_")[1], int(record.file.split("_")[2][:-4])
        one = make_scenes(1, 2, split, start=index)[0]
        assert all(entails(one, caption) for caption in record.captions)
        assert len(record.captions) == (5 if split == "train" else 2) and record.tokens is not None
    assert [path.name for path in tmp_path.glob("*.partial")] == []
    assert json.loads(file.read_text(encoding="utf-8"))["dataset"] == "scenes"


def test_tables_of_labels_and_phrases_say_what_is_drawn(tmp_path):
    """A label is the shape of the one thing; a phrase names one thing of its scene, within whose box it is drawn."""
    import json

    from patchword.data.scenes import make_scenes, masks, write_labels, write_phrases

    rows = [json.loads(line) for line in write_labels(tmp_path, 20).read_text().splitlines()]
    assert [row["label"] for row in rows] == [scene.things[0].shape for scene in make_scenes(20)]
    write_phrases(tmp_path, 5, 2, 24, "val")
    file = write_phrases(tmp_path, 30, 2, 24)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "val"}  # a split that is there is kept
    scenes = {f"{scene.name}.png": scene for scene in make_scenes(30, 2)}
    for row in (row for row in rows if row["split"] == "train"):
        scene = scenes[row["image"]]
        (number,) = [
            k for k, one in enumerate(scene.things) if row["phrase"] == f"the {one.colour} {one.shape}"
        ]
        left, top, right, bottom = (round(24 * share) for share in row["box"])
        visible_SS = masks([scene], 24)[0, number]
        assert visible_SS[top:bottom, left:right].sum() == visible_SS.sum() > 0
