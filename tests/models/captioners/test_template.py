"""The template captioner against the truth of drawn scenes, hand-worked relations, and its errors."""

import math

import numpy as np
import pytest

from patchword.data.scenes import entails, make_scenes, parse
from patchword.data.scenes.sayings import RelationStatement
from patchword.errors import DataError
from patchword.models.captioners.template import (
    Sight,
    count_pairs,
    phrase,
    plural,
    relation,
    sentence,
    smooth,
)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 1, 1), (4, 0, 5, 1), "left of"),
        ((4, 0, 5, 1), (0, 0, 1, 1), "right of"),
        ((0, 0, 1, 1), (0, 4, 1, 5), "above"),
        ((0, 4, 1, 5), (0, 0, 1, 1), "below"),
        ((1, 1, 2, 2), (0, 0, 4, 4), "inside"),
        ((1, 0, 2, 2), (0, 1.5, 4, 5), "on"),
        ((0, 0, 4, 4), (0.2, 0.2, 4.2, 4.2), "near"),
    ],
)
def test_a_relation_follows_from_two_boxes(one, other, expected):
    assert relation(one, other) == expected


def test_a_box_without_an_area_is_refused():
    with pytest.raises(DataError, match="has no area"):
        relation((0, 0, 0, 1), (0, 0, 1, 1))


def test_true_detections_give_true_sentences_of_scenes():
    """Fed with what a scene holds, every sentence is true by the oracle, and names all that is there."""
    for scene in make_scenes(60, level=1):
        (thing,) = scene.things
        said = sentence([Sight(thing.shape, 1.0, None, f"{thing.size} {thing.colour}")])
        assert entails(scene, said) and parse(said)[0].phrase[1:] == (thing.size, thing.colour, thing.shape)
    for scene in make_scenes(60, level=3):
        sights = [Sight(thing.shape, 1.0, None, thing.colour) for thing in scene.things]
        said = sentence(sights, most=6)
        assert entails(scene, said.replace(",", " and")), said
        assert len(parse(said.replace(",", " and"))) == len({(t.shape, t.colour) for t in scene.things})


def test_a_relation_is_said_of_two_single_things():
    sights = [Sight("table", 0.9, (0, 5, 20, 15)), Sight("cup", 0.8, (5, 2, 8, 6)), Sight("dog", 0.3)]
    assert sentence(sights) == "a cup on a table and a dog"
    assert sentence([*sights[:2], Sight("cup", 0.7, (1, 2, 4, 6))]) == "a table and two cups"
    assert sentence([]) == "nothing that has a name"


def test_relations_of_scenes_parse_back():
    """Apart and of two kinds, the relation that is said holds in the scene."""
    checked = 0
    for scene in make_scenes(80, level=2):
        a, b = scene.things
        apart = math.hypot(a.x - b.x, a.y - b.y) > 1.2 * (a.radius + b.radius)
        if (a.shape, a.colour) == (b.shape, b.colour) or not apart:
            continue
        boxes = [(t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius) for t in (a, b)]
        said = sentence([Sight(t.shape, 1.0, box, t.colour) for t, box in zip((a, b), boxes, strict=True)])
        (fact,) = parse(said)
        assert isinstance(fact, RelationStatement) and entails(scene, said), said
        checked += 1
    assert checked >= 20


def test_pairs_correct_a_detection():
    """A cup is likelier than a ball beside a saucer, by hand: log .4 + 2 log 2 > log .6."""
    pairs = {frozenset(("cup", "saucer")): math.log(2)}
    detections = [{"ball": 0.6, "cup": 0.4}, {"saucer": 1.0}]
    assert smooth(detections, pairs, weight=0) == ["ball", "saucer"]
    assert smooth(detections, pairs, weight=1) == ["cup", "saucer"]
    with pytest.raises(DataError, match="detection 1 has no name"):
        smooth([{"cup": 1.0}, {"ball": 0.0}], pairs)
    concepts = {"ball": 0.6, "cup": 0.5, "saucer": 0.4}
    assert sorted(smooth([concepts] * 2, pairs, weight=0, distinct=True)) == ["ball", "cup"]
    assert sorted(smooth([concepts] * 2, pairs, weight=1, distinct=True)) == ["cup", "saucer"]
    with pytest.raises(DataError, match="only names that others have"):
        smooth([{"cup": 1.0}] * 2, pairs, distinct=True)


def test_smoothing_repairs_noisy_names():
    """Names that always come in pairs, a fifth of the detections wrong: smoothing finds more of them."""
    rng = np.random.default_rng(0)
    kinds = [("cup", "saucer"), ("dog", "leash"), ("fork", "plate"), ("bat", "ball")]
    names = [name for pair in kinds for name in pair]
    pairs = count_pairs([kinds[rng.integers(4)] for _ in range(400)])
    right = {0.0: 0, 2.0: 0}
    for _ in range(300):
        truth = kinds[rng.integers(4)]
        seen = []
        for name in truth:
            top = names[rng.integers(8)] if rng.random() < 0.2 else name
            seen.append({other: 0.05 for other in names} | {name: 0.15} | {top: 0.5})
        for weight in right:
            right[weight] += sum(a == b for a, b in zip(smooth(seen, pairs, weight), truth, strict=True))
    assert right[0.0] < 520 and right[2.0] >= right[0.0] + 40


def test_pairs_are_pointwise_mutual_information():
    found = count_pairs([["a", "b"], ["a", "b"], ["c"], ["a"]], smoothing=0)
    assert found == {frozenset("ab"): pytest.approx(math.log(2 * 4 / (3 * 2)))}


@pytest.mark.parametrize(
    ("noun", "many"),
    [("dog", "dogs"), ("person", "people"), ("bus", "buses"), ("hot dog", "hot dogs"), ("berry", "berries")],
)
def test_plurals(noun, many):
    assert plural(noun) == many and phrase(2, noun) == f"two {many}"


def test_articles_and_large_numbers():
    assert phrase(1, "apple") == "an apple" and phrase(1, "apple", "red") == "a red apple"
    assert phrase(12, "sheep") == "many sheep"
