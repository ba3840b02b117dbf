"""The page in a real browser (`make test-browser` installs what it needs): a picture, its words, search,
errors, a phone, the keyboard.
"""

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.errors import DataError
from patchword.html.pictures import small_jpeg
from patchword.serve.abilities import Hit, Query
from patchword.serve.app import create_app
from patchword.serve.connections import bounded_protocol
from patchword.serve.limits import Limits
from patchword.serve.refusals import unknown_words
from patchword.tasks.answer.result import Answer, Answers

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
if CHROMIUM is None:
    pytest.skip("no chromium here: make test-browser installs it where it can", allow_module_level=True)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright here: make test-browser installs it"
)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
]
SHOTS = os.environ.get("PATCHWORD_SCREENSHOTS")


class Everything:
    def read(self, texts):
        if "nonsense" in texts[0]:
            raise unknown_words(DataError("no word of this is known"))
        return [Query(text, ("the model does not know: zebra",) * ("zebra" in text)) for text in texts]

    def nearest(self, query, k):
        return [Hit(f"{query.vector_E} <b>{i}</b>.jpg", 0.5, f"{i:064x}") for i in range(3)]

    def thumbnail(self, key):
        number = int(key, 16)
        return small_jpeg(Image.new("RGB", (40, 30), (number, 9, 9))) if number else None

    facts = ModelFacts(
        name="able", description="knows shapes", limits="no photographs", example="which shape?"
    )

    def explain(self, picture, question, n_best=3, anyway=False):
        if "photograph" in question and not anyway:
            raise DataError("unlike the pictures that able was trained on")
        looked_hw = np.array([[0.0, 0, 1], [0, 0, 0]])
        words = tuple(question.split())
        return Answers(
            question,
            (Answer(question.upper(), 0.75), Answer("no", 0.25)),
            words,
            looked_hw,
            np.stack([looked_hw] * len(words)),
        )

    def label(self, picture, labels):
        return [(label, 1 / len(labels)) for label in labels]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def served():
    """Serve a page: `served({"name": model}, index=..., ...)` gives its address."""
    running = []

    def start(models, **more):
        limits = Limits()
        app = create_app(models, limits=limits, **more)
        server = uvicorn.Server(
            uvicorn.Config(
                app, port=0, http=bounded_protocol(limits), ws="none", log_level="error", access_log=False
            )
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def page_of(browser, served, fake):
    """Open the page: `page_of(width=..., scheme=..., models=..., able=...)`.

    At the end nothing may have been asked of another host, nor failed in a script.
    """
    contexts, faults = [], []

    def start(width=1100, height=900, scheme="light", models=None, able=None, **more):
        address = served(models or {"fake": fake}, **(able or {"index": Everything()}))
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((address, "blob:", "data:")) else faults.append(request.url)
            ),
        )
        page.on(
            "console",
            lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None,
        )
        page.goto(address)
        until(page, "document.getElementById('about').textContent !== ''")
        return page

    yield start
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def photo(tmp_path):
    """One bright colour, so that a lit patch can be told from a dark one on a screenshot."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((200, 300, 3), 230, np.uint8)).save(path)
    return path


def keep(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def caption(page, photo):
    page.set_input_files("#file", photo)
    page.wait_for_selector("#caption button")


def until(page, condition, seconds=60.0):
    """Wait until an expression holds; the driver's own way compiles a string within the page, which its
    content policy forbids.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"it did not happen: {condition}"
        page.wait_for_timeout(20)


def brightness(page, row, column):
    """Mean of the patch of the 2 x 3 grid as it is seen, over the stage."""
    import io

    shot = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L"), dtype=float)
    height, width = shot.shape[0] / 2, shot.shape[1] / 3
    middle = shot[
        int((row + 0.4) * height) : int((row + 0.6) * height),
        int((column + 0.4) * width) : int((column + 0.6) * width),
    ]
    return middle.mean()


def test_upload_and_word_hover(page_of, photo):
    page = page_of()
    caption(page, photo)
    assert page.locator("#caption button").all_inner_texts() == ["colour", "230", "230", "230"]
    assert page.get_attribute("#picture", "alt") == "colour 230 230 230"
    until(page, "!document.body.classList.contains('busy')")
    assert brightness(page, 1, 1) > 200, "nothing is dark before a word is pointed at"
    assert "sea" in page.inner_text("#why") and "67 %" in page.inner_text("#why"), "four of six patches"
    page.hover("#caption button:nth-child(2)")
    page.wait_for_timeout(300)
    assert brightness(page, 0, 1) > 180 > 120 > brightness(page, 1, 0)
    why = " ".join(page.inner_text("#why").split())
    assert "Looked most at row 1 of 2, column 2 of 3 (100 % of its attention)." in why and "80 % seen" in why
    assert (
        "sea 100 %" in why and "Prototype 3 50 %" in why and "a red thing" in why and "Prototype 5" not in why
    )
    keep(page, "hover")
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)
    assert brightness(page, 1, 0) > 200
    considered = [line.split("\n") for line in page.locator("#hypotheses-list li").all_inner_texts()]
    shares = np.exp([-2.0, -4.0, -5.0])
    shares = [
        f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.1f} %" for share in shares / shares.sum()
    ]
    assert considered == [["colour 230 230 230", shares[0]], ["other 1", shares[1]], ["other 2", shares[2]]]
    assert page.is_hidden("#hypotheses-order")


def test_captions_that_do_not_stand_by_their_shares_say_why(page_of, photo, fake):
    said = fake.one
    fake.one = lambda picture, n_best=1, trace=True: replace(
        said(picture, n_best, trace), log_probability=-9.0
    )
    page = page_of(models={"fake": fake})
    caption(page, photo)
    shares = [line.split("\n")[1] for line in page.locator("#hypotheses-list li").all_inner_texts()]
    assert shares[1] == "73 %" and page.is_visible("#hypotheses-order")


def test_concepts_light_their_patches_and_a_patch_names_its_words(page_of, photo):
    page = page_of()
    caption(page, photo)
    page.click("#caption button:nth-child(2)")
    page.hover("#why button.concept")
    page.wait_for_timeout(300)
    assert brightness(page, 0, 2) > 180 and brightness(page, 1, 1) > 180 and brightness(page, 0, 0) < 120, (
        "all patches of the sea"
    )
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(stage["x"] + stage["width"] * 0.9, stage["y"] + stage["height"] * 0.2)
    until(page, "document.getElementById('why').innerText.includes('column 3 of 3')")
    why = page.inner_text("#why")
    assert "Its concept: sea" in why and "“230” 100 %" in why
    tints = page.evaluate(
        "[...document.querySelectorAll('#caption button')].map((word) => "
        "word.style.getPropertyValue('--share'))"
    )
    assert [float(tint) for tint in tints] == [0, 0, 1, 0], "the word that looked there is tinted"
    page.mouse.move(5, 5)
    assert page.get_attribute("#caption button:nth-child(2)", "aria-pressed") == "true", (
        "the chosen word is lit again"
    )


def test_words_appear_while_the_model_speaks(page_of, photo, streaming_fake):
    streaming_fake.gate.clear()
    page = page_of(models={"fake": streaming_fake})
    page.set_input_files("#file", photo)
    until(page, "document.getElementById('draft').innerText.trim() === 'colour'")
    assert (
        page.get_attribute("#draft", "aria-hidden") == "true" and page.locator("#caption button").count() == 0
    )
    streaming_fake.gate.set()
    page.wait_for_selector("#caption button")
    assert page.is_hidden("#draft") and page.inner_text("#status") == "Caption: colour 230 230 230"


def test_questions_and_labels(page_of, photo):
    able = Everything()
    page = page_of(able={"answers": able, "labels": able})
    assert page.is_hidden("#ask-section"), "there is nothing to ask about yet"
    caption(page, photo)
    page.fill("#question", "why <b>?")
    page.press("#question", "Enter")
    page.wait_for_selector("#answers li")
    assert page.locator("#answers li").all_inner_texts()[0].split() == ["WHY", "<B>?", "75", "%"]
    assert page.inner_text("#ask-about") == "able: Knows shapes. No photographs."
    assert page.get_attribute("#question", "placeholder") == "which shape?"
    page.hover("#asked button")
    page.wait_for_timeout(300)
    assert brightness(page, 0, 2) > 180 > 120 > brightness(page, 1, 0), "the word lights what it looked at"
    page.fill("#question", "which photograph")
    page.press("#question", "Enter")
    page.click("#anyway")
    page.wait_for_selector("#answers li")
    assert page.is_hidden("#refused") and "WHICH PHOTOGRAPH" in page.inner_text("#answers")
    page.fill("#labels", "a cat, a dog,")
    page.press("#labels", "Enter")
    page.wait_for_selector("#labelled li")
    assert [line.split("\n")[0] for line in page.locator("#labelled li").all_inner_texts()] == [
        "a cat",
        "a dog",
    ]
    keep(page, "asked")


def test_another_model_captions_the_same_picture(page_of, photo, fake, streaming_fake):
    streaming_fake.facts = ModelFacts(name="other", description="another one")
    page = page_of(models={"fake": fake, "other": streaming_fake})
    caption(page, photo)
    assert page.inner_text("#about").startswith("fake: Says colours.")
    page.select_option("#model", "other")
    until(page, "document.getElementById('about').innerText.trim() === 'other: Another one.'")
    page.wait_for_selector("#caption button")
    assert (len(fake.batches), len(streaming_fake.batches)) == (1, 1)


def test_a_token_is_asked_for_and_kept(page_of, photo, fake, browser, served):
    address = served({"fake": fake}, token="a-long-enough-secret")
    page = browser.new_context().new_page()
    page.goto(address)
    page.wait_for_selector("#token-form:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "token"
    page.keyboard.type("a-long-enough-secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-form", state="hidden")
    caption(page, photo)
    page.context.close()


def test_paste_and_drop(page_of, photo):
    page = page_of()
    send = """([kind, bytes]) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
      const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: files, bubbles: true })
                                     : new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
    }"""
    for kind in ("paste", "drop"):
        page.evaluate("document.getElementById('caption').replaceChildren()")
        page.evaluate(send, [kind, list(photo.read_bytes())])
        page.wait_for_selector("#caption button")


def test_search(page_of):
    page = page_of()
    page.fill("#query", "<i>dog")
    page.press("#query", "Enter")
    page.wait_for_selector("#hits figure img")
    page.wait_for_function("document.querySelectorAll('#hits img').length == 2")
    page.wait_for_function("document.querySelector('#hits .gone').textContent == 'no picture'")
    assert page.locator("#hits .name").all_inner_texts() == [f"<i>dog <b>{i}</b>.jpg" for i in range(3)]
    assert page.is_hidden("#ask-section") and page.is_hidden("#label-section"), (
        "what is not configured is not offered"
    )
    keep(page, "search")


def test_old_results_vanish(page_of, photo):
    page = page_of()

    def ask(words):
        page.fill("#query", words)
        page.press("#query", "Enter")

    ask("a zebra")
    page.wait_for_selector("#hits figure img")
    assert page.inner_text("#search-remarks") == "The model does not know: zebra."
    ask("nonsense")
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#hits figure").count() == 0 and page.inner_text("#search-remarks") == ""
    ask("dogs")
    page.wait_for_selector("#hits figure img")
    page.set_input_files("#file", photo)
    page.wait_for_selector("#caption button")
    assert page.locator("#hits figure").count() == 0


def test_errors_are_told(page_of, tmp_path, photo):
    page = page_of()
    (tmp_path / "text.jpg").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.jpg")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error").startswith("The upload is not a picture of a known kind")
    assert page.inner_text("#error").endswith("TIFF or BMP (SVG is not drawn)."), (
        "nothing of how HTTP sends it"
    )
    keep(page, "error")
    with open(tmp_path / "large.jpg", "wb") as large:
        large.truncate(21 * 2**20)
    page.set_input_files("#file", tmp_path / "large.jpg")
    until(page, "document.getElementById('error').innerText.includes('21 MB')")
    caption(page, photo)
    assert page.is_hidden("#error"), "a success takes the message away"
    page.set_input_files("#file", tmp_path / "text.jpg")
    page.wait_for_selector("#error:not([hidden])")
    assert (
        page.get_attribute("#picture", "alt") == "colour 230 230 230"
        and page.locator("#caption button").count() == 4
    ), "nothing is lost"


def test_narrow_screen_in_the_dark(page_of, photo):
    page = page_of(width=360, height=740, scheme="dark", has_touch=True)
    caption(page, photo)
    page.tap("#caption button:nth-child(1)")
    assert page.get_attribute("#caption button:nth-child(1)", "aria-pressed") == "true"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "nothing stands out sideways"
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 30)"
    keep(page, "phone")


def test_keyboard_only(page_of, photo):
    page = page_of()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    caption(page, photo)
    page.focus("#caption button")
    for key, word in (("ArrowRight", 1), ("End", 3), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert (
            page.evaluate("[...document.activeElement.parentNode.children].indexOf(document.activeElement)")
            == word
        )
    assert "column 2 of 3" in page.inner_text("#why")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "copy", "all words are one stop of the tab key"
    assert page.get_attribute("#caption button:nth-child(2)", "aria-pressed") == "true", (
        "a chosen word stays lit"
    )
    page.keyboard.press("Enter")
    until(page, "document.getElementById('status').innerText.startsWith('Copied: colour 230')")
    assert page.inner_text("#copy") == "Copied"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#caption button[aria-pressed=true]").count() == 0, "the whole picture is seen again"
