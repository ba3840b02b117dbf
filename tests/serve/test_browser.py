"""The page in a real browser (`make test-browser` installs what it needs): a picture, its words, search, errors, a phone, the keyboard."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from patchword.serve.abilities import Hit
from patchword.serve.app import create_app
from patchword.serve.connections import bounded_protocol
from patchword.serve.limits import Limits

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
if CHROMIUM is None:
    pytest.skip("no chromium here: make test-browser installs it where it can", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: make test-browser installs it")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
SHOTS = os.environ.get("PATCHWORD_SCREENSHOTS")


class Index:
    def search(self, text, k):
        return [Hit(f"{text} <b>{i}</b>.jpg", 0.5, Image.new("RGB", (40, 30), (i, 9, 9))) for i in range(3)]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def address(fake):
    able, limits = Index(), Limits()
    app = create_app({"fake": fake}, index=able, limits=limits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=bounded_protocol(limits), ws="none", log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page_of(browser, address):
    """Open the page: `page_of(width=..., scheme=...)`. At the end nothing may have been asked of another host, nor failed in a script."""
    contexts, faults = [], []

    def start(width=1100, height=900, scheme="light", **more):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address, "blob:", "data:")) else faults.append(request.url))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(address)
        return page

    yield start
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def photo(tmp_path):
    """The four quarters of a picture, so that a lit patch can be seen on a screenshot."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((200, 300, 3), 230, np.uint8)).save(path)
    return path


def keep(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def caption(page, photo):
    page.set_input_files("#file", photo)
    page.wait_for_selector("#caption button")


def brightness(page, row, column):
    """Mean of the patch of the 2 x 3 grid as it is seen, over the stage."""
    import io

    shot = np.asarray(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L"), dtype=float)
    height, width = shot.shape[0] / 2, shot.shape[1] / 3
    middle = shot[int((row + 0.4) * height) : int((row + 0.6) * height), int((column + 0.4) * width) : int((column + 0.6) * width)]
    return middle.mean()


def test_upload_and_word_hover(page_of, photo):
    page = page_of()
    caption(page, photo)
    assert page.locator("#caption button").all_inner_texts() == ["colour", "230", "230", "230"]
    assert page.get_attribute("#picture", "alt") == "colour 230 230 230"
    assert brightness(page, 1, 1) > 200, "nothing is dark before a word is pointed at"
    page.hover("#caption button:nth-child(2)")
    page.wait_for_timeout(300)
    assert brightness(page, 0, 1) > 180 > 120 > brightness(page, 1, 0)
    why = page.inner_text("#why")
    assert "row 1 of 2, column 2 of 3 (100 %)" in why and "80 % seen" in why
    assert "sky 100 %" in why and "like “a red thing”" in why
    keep(page, "hover")
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)
    assert brightness(page, 1, 0) > 200
    page.click("#hypotheses summary")
    assert "other 1" in page.inner_text("#hypotheses-table")


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
    page.wait_for_selector("#hits .sample img")
    assert page.locator("#hits .name").all_inner_texts() == [f"<i>dog <b>{i}</b>.jpg" for i in range(3)]
    assert page.is_hidden("#ask-section") and page.is_hidden("#label-section"), "what is not configured is not offered"


def test_errors_are_told(page_of, tmp_path, photo):
    page = page_of()
    (tmp_path / "text.jpg").write_text("no picture")
    page.set_input_files("#file", tmp_path / "text.jpg")
    page.wait_for_selector("#error:not([hidden])")
    assert "not a picture of a known kind" in page.inner_text("#error") and "send JPEG, PNG" in page.inner_text("#error")
    keep(page, "error")
    with open(tmp_path / "large.jpg", "wb") as large:
        large.truncate(21 * 2**20)
    page.set_input_files("#file", tmp_path / "large.jpg")
    page.wait_for_function("document.getElementById('error').innerText.includes('21 MB')")
    caption(page, photo)
    assert page.is_hidden("#error"), "a success takes the message away"


def test_narrow_screen_in_the_dark(page_of, photo):
    page = page_of(width=360, height=740, scheme="dark", has_touch=True)
    caption(page, photo)
    page.tap("#caption button:nth-child(1)")
    assert page.get_attribute("#caption button:nth-child(1)", "aria-pressed") == "true"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing stands out sideways"
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
        assert page.evaluate("[...document.activeElement.parentNode.children].indexOf(document.activeElement)") == word
    assert "column 2 of 3" in page.inner_text("#why")
    page.keyboard.press("Enter")
    page.focus("#copy")
    assert page.get_attribute("#caption button:nth-child(2)", "aria-pressed") == "true", "a chosen word stays lit"
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('status').innerText.startsWith('Copied: colour 230')")
