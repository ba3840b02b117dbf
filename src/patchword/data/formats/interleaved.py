"""Documents in which pictures stand between texts: JSON lines of several layouts, and folders of pages.

    ours     {"parts": [{"image": "a.jpg"}, {"text": "a dog"}, "a text", ...], "split": "train"}
    OBELICS  {"images": ["a.jpg", null, ...], "texts": [null, "a dog", ...]}     one of the two at each place
    MMC4     {"text_list": ["a dog", ...], "image_info": [{"image_name": "a.jpg", "matched_text_index": 0}]}
    pages    .html, .htm, .md and .txt files with <img src="a.jpg"> or ![...](a.jpg) between their paragraphs

In MMC4 a picture stands before the sentence that it is matched with. What names a picture on the web is left
out, with a complaint: nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from patchword.data.formats.complaints import Complain, raise_at_once, read_text
from patchword.errors import DataError, counted

EXPECTED = (
    "expected JSON lines with parts (ours), images and texts (OBELICS), or text_list and image_info (MMC4), "
    "or a folder of .html, .md or .txt pages"
)
PAGES = (".html", ".htm", ".md", ".txt")
_MARKDOWN_PICTURE = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_PARAGRAPHS = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "h6", "br", "tr", "figcaption", "article"}
_SILENT = {"script", "style", "head", "title"}


class Part(NamedTuple):
    """A picture, by its file, or a text."""

    image: str | None = None
    text: str | None = None


class Document(NamedTuple):
    """Pictures and texts in their order."""

    name: str
    parts: tuple[Part, ...]
    split: str | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The files of the pictures, in their order."""
        return tuple(part.image for part in self.parts if part.image is not None)


def read_documents(path: Path, complain: Complain = raise_at_once) -> list[Document]:
    """Every document with at least one text.

    Raises DataError, or calls `complain` and leaves the part out, for what cannot be used.
    """
    if path.is_dir():
        pages = sorted(file for file in path.rglob("*") if file.suffix.lower() in PAGES)
        found = [_page(page, path, complain) for page in pages]
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        found = _lines(path, complain)
    else:
        raise DataError(f"{path}: {EXPECTED}")
    kept = [one for one in found if one is not None and any(part.text for part in one.parts)]
    if not kept:
        raise DataError(f"{path} holds no document with a text; {EXPECTED}")
    return kept


def _lines(path: Path, complain: Complain) -> list[Document | None]:
    found: list[Document | None] = []
    for number, line in enumerate(read_text(path, complain).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            content = json.loads(line)
        except ValueError as error:
            complain("json", where, f"this is not JSON ({error})")
            continue
        if not isinstance(content, dict):
            complain("layout", where, EXPECTED)
            continue
        parts = _parts(content, where, complain)
        if parts is not None:
            name, split = content.get("name", content.get("id")), content.get("split")
            if split not in (None, "train", "val", "test"):
                complain("split", where, f"split is {split!r}, expected train, val or test")
                continue
            found.append(Document(where if name is None else str(name), tuple(parts), split))
    return found


def _parts(content: dict[str, Any], where: str, complain: Complain) -> list[Part] | None:
    if isinstance(content.get("parts"), list):
        return [part for one in content["parts"] for part in _own(one, where, complain)]
    images, texts = content.get("images"), content.get("texts")
    if isinstance(images, list) and isinstance(texts, list):
        if len(images) != len(texts):
            complain(
                "length",
                where,
                f"{counted(len(images), 'image')} and "
                f"{counted(len(texts), 'text')}: one of the two at each place",
            )
            return None
        pairs = zip(images, texts, strict=True)
        return [part for image, text in pairs for part in _either(image, text, where, complain)]
    if isinstance(content.get("text_list"), list) and isinstance(content.get("image_info"), list):
        return _mmc4(content["text_list"], content["image_info"], where, complain)
    complain("layout", where, f"found {', '.join(map(str, content)) or 'nothing'}; {EXPECTED}")
    return None


def _own(one: Any, where: str, complain: Complain) -> list[Part]:
    if isinstance(one, str):
        return [Part(text=one)] if one.strip() else []
    if isinstance(one, dict) and len({"image", "text"} & one.keys()) == 1:
        return _either(one.get("image"), one.get("text"), where, complain)
    complain(
        "part",
        where,
        f'a part is {json.dumps(one)[:60]}, expected a text, {{"image": ...}} or {{"text": ...}}',
    )
    return []


def _either(image: Any, text: Any, where: str, complain: Complain) -> list[Part]:
    if isinstance(image, dict):  # as `datasets` exports pictures
        image = image.get("path")
    parts = []
    if isinstance(image, str) and image:
        if "://" in image:
            complain("address", where, f"{image} is an address: download the picture, and name its file")
        else:
            parts.append(Part(image=image))
    elif image is not None:
        complain("image", where, f"an image is {image!r}, expected the name of a file")
    if isinstance(text, str) and text.strip():
        parts.append(Part(text=text.strip()))
    elif text is not None and not isinstance(text, str):
        complain("text", where, f"a text is {text!r}, expected letters")
    return parts


def _mmc4(texts: list[Any], pictures: list[Any], where: str, complain: Complain) -> list[Part]:
    before: dict[int, list[Part]] = {}
    for one in pictures:
        index = one.get("matched_text_index") if isinstance(one, dict) else None
        if not isinstance(index, int) or not 0 <= index < len(texts):
            complain(
                "image",
                where,
                f"matched_text_index is {index!r}, and there are {counted(len(texts), 'text')}",
            )
            continue
        before.setdefault(index, []).extend(_either(one.get("image_name"), None, where, complain))
    parts = []
    for index, text in enumerate(texts):
        parts += before.get(index, [])
        parts += _either(None, text, where, complain)
    return parts


def _page(page: Path, root: Path, complain: Complain) -> Document | None:
    text, name = read_text(page, complain), page.relative_to(root).as_posix()
    if page.suffix.lower() in (".html", ".htm"):
        reader = _Html()
        reader.feed(text)
        raw = reader.finished()
    else:
        pieces = _MARKDOWN_PICTURE.split(text)
        raw = [
            Part(image=piece) if number % 2 else Part(text=" ".join(piece.split()))
            for number, piece in enumerate(pieces)
            if piece.strip()
        ]
    parts = []
    for part in raw:
        if part.image is not None and "://" in part.image:
            complain("address", name, f"{part.image} is an address: download the picture, and name its file")
        elif part.image is not None:
            file = os.path.relpath(os.path.normpath(page.parent / part.image), root)
            if file.startswith(".."):
                complain("image", name, f"{part.image} lies outside {root}: put the pictures below it")
            else:
                parts.append(Part(image=Path(file).as_posix()))
        else:
            parts.append(part)
    return Document(name, tuple(parts))


class _Html(HTMLParser):
    """The visible text and the pictures of a page, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[Part] = []
        self._text: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self._silent += 1
        source = dict(attrs).get("src")
        if tag == "img" and source:
            self._flush()
            self._parts.append(Part(image=source))
        elif tag in _PARAGRAPHS:
            self._text.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT and self._silent:
            self._silent -= 1
        if tag in _PARAGRAPHS:
            self._text.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._text.append(data)

    def _flush(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self._parts.append(Part(text=text))

    def finished(self) -> list[Part]:
        """All parts of the page."""
        self._flush()
        return self._parts
