"""Questions about photographs: what is understood, what is refused, and answers of the shipped towers."""

import json

import pytest
import skimage.data
from PIL import Image, ImageDraw

from patchword.errors import DataError, ModelError
from patchword.tasks.answer.any_picture import load_any
from patchword.tasks.answer.photographs import PhotographAnswerer, PhotographQuestion, known_word, understood
from patchword.tasks.retrieve.load import load_two_towers


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Is there a dog?", PhotographQuestion("presence", "dog")),
        ("are there any people in the picture", PhotographQuestion("presence", "people")),
        ("Does this photo show a hot dog?", PhotographQuestion("presence", "hot dog")),
        ("is it a cat?", PhotographQuestion("presence", "cat")),
        ("What is it?", PhotographQuestion("what", "")),
        ("what's in this image?", PhotographQuestion("what", "")),
    ],
)
def test_the_kinds_of_question_that_are_understood(question, asked):
    assert understood(question) == asked


@pytest.mark.parametrize(
    "question",
    ["how many dogs are there?", "what color is the car?", "why is she sad?", "what is the man doing?", "is it raining?", "", "dog",
     "is there a man who rides a horse on a beach?"],
)  # fmt: skip
def test_every_other_question_is_refused_with_what_can_be_asked(question):
    with pytest.raises(DataError, match='can be asked "is there a dog'):
        understood(question)


def test_things_are_known_in_either_number():
    assert known_word("dogs") == known_word("dog") == "dog" and known_word("buses") == "bus"
    assert known_word("man") is None


@pytest.fixture(scope="module")
def answerer():
    return PhotographAnswerer(load_two_towers("two-towers", "cpu"))


def test_a_cat_and_a_cup_of_coffee(answerer):
    cat, coffee = (Image.fromarray(picture()) for picture in (skimage.data.chelsea, skimage.data.coffee))
    pictures = [cat, cat, coffee, coffee]
    questions = ["is there a cat?", "is there a bus?", "what is it?", "is there a cat?"]
    found = answerer.ask_each(pictures, questions, n_best=3)
    assert [answers[0].text for answers in found] == ["yes", "no", "coffee", "no"]
    for answers, kind in zip(found, (2, 2, 3, 2), strict=True):
        shares = [one.probability for one in answers]
        assert len(answers) == kind and shares == sorted(shares, reverse=True)
    assert found[0][0].probability + found[0][1].probability == pytest.approx(1)
    alone = answerer.towers.ask(cat, "is there a cat?", n_best=2)
    assert [one.probability for one in alone] == pytest.approx(
        [one.probability for one in found[0]], abs=1e-5
    )


def test_towers_without_the_section_answer_nothing():
    towers = load_two_towers("two-towers", "cpu")
    towers.settings = towers.settings.model_copy(update={"questions": None})
    with pytest.raises(ModelError, match="answers no questions"):
        towers.ask("photo.jpg", "is there a dog?")


def test_the_command_chooses_who_answers_by_the_picture(patchword, tmp_path):
    cat, drawing = tmp_path / "cat.png", tmp_path / "drawing.png"
    Image.fromarray(skimage.data.chelsea()).save(cat)
    picture = Image.new("RGB", (64, 64), (240, 245, 250))
    ImageDraw.Draw(picture).rectangle((20, 20, 40, 36), fill=(255, 0, 0))
    picture.save(drawing)
    status, out, err = patchword("ask", cat, "is there a cat?", "--json", "--device", "cpu")
    assert status == 0 and err == "" and json.loads(out)["answers"][0]["answer"] == "yes"
    status, out, _ = patchword("ask", drawing, "what color is the shape?", "--device", "cpu")
    assert status == 0 and out.splitlines()[0].endswith("red")
    anyway = ("what color is the shape?", "--anyway", "--device", "cpu")
    assert patchword("ask", cat, *anyway)[0] == 0, "the model of drawings answers when told to"
    status, out, err = patchword("ask", cat, "how many cats are there?", "--device", "cpu")
    assert status == 2 and out == "" and "cannot count" in err
    status, _, _ = patchword(
        "ask", cat, "what is it?", "--explain", tmp_path / "page.html", "--device", "cpu"
    )
    assert status == 0 and "cat" in (tmp_path / "page.html").read_text()


def test_a_model_of_its_own_is_asked_itself():
    assert isinstance(load_any("two-towers", "cpu"), PhotographAnswerer)
    with pytest.raises(ModelError, match="is a model for 'caption'"):
        load_any("flickr8k", "cpu")
