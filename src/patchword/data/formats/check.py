"""`patchword check`: everything in a data set that would stop a training, or spoil it, found before the
training and in one go.

Annotations are read by the same code as for a training, with a `complain` that collects; pictures are decoded
by the same code as well. Nothing is ever changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from patchword.data.decoding import open_lazily, orientation
from patchword.data.formats.questions import holds_questions, read_questions
from patchword.data.formats.readers import read_captions
from patchword.data.isolated import PictureReader
from patchword.data.records import CaptionRecord, QuestionRecord
from patchword.errors import NotAPicture, PictureError, PictureTooLarge, counted
from patchword.lookup import look_up
from patchword.text.words import split_characters, written_without_spaces

MOST_WORDS = 50
"""Captions of more words are pointed out: the usual longest caption in training."""
MANY_PIXELS = 40_000_000
SMALL_EDGE = 32
STRETCHED = 8


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd."""

    kind: str
    where: str
    message: str
    stops: bool
    """Would it stop a training? Otherwise it is worth knowing."""


@dataclass(frozen=True)
class Report:
    """What the doctor saw."""

    data: str
    images: str
    pictures: int
    captions: int
    """Or questions."""
    splits: dict[str, int]
    findings: tuple[Finding, ...]
    texts: str = "captions"
    """What the pictures come with: captions or questions."""

    @property
    def stops(self) -> bool:
        """True when a training on this data set would stop."""
        return any(finding.stops for finding in self.findings)

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps({**asdict(self), "stops": self.stops}, indent=1)

    def to_text(self) -> str:
        """The report as lines, gathered by kind; every finding is listed."""
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items()) or "none"
        texts = counted(self.captions, self.texts.removesuffix("s"))
        lines = [
            f"{self.data}: {counted(self.pictures, 'picture')} with {texts}; splits: {splits}; "
            f"pictures in {self.images}"
        ]
        for title, stops in (("Would stop a training:", True), ("Worth knowing:", False)):
            groups: dict[str, list[Finding]] = defaultdict(list)
            for finding in self.findings:
                if finding.stops == stops:
                    groups[finding.kind].append(finding)
            lines += [title] if groups else []
            for kind, findings in groups.items():
                lines.append(f"  {kind} ({len(findings)})")
                lines += [f"    {finding.where}: {finding.message}" for finding in findings]
        stopping = sum(finding.stops for finding in self.findings)
        lines.append(
            f"{stopping} findings would stop a training."
            if stopping
            else "Nothing found would stop a training."
        )
        return "\n".join(lines)


Watch = Callable[[Sequence[CaptionRecord | QuestionRecord]], Iterable[CaptionRecord | QuestionRecord]]


def examine(
    data: Path | str, images: Path | str | None = None, watch: Watch = iter, answers: Path | None = None
) -> Report:
    """Look at annotations and pictures; `watch` may wrap the pictures in a progress bar.

    Questions are told from captions by what the file holds; `answers` is VQA v2's annotations file where it
    does not lie beside them. Without `images` the pictures are looked for in the data folder itself, or, for
    a file, in `images` beside it or else beside it. Raises `DataError` only when `data` cannot be opened at
    all.
    """
    data = Path(data)
    images = _images_folder(data) if images is None else Path(images)
    findings: list[Finding] = []

    def complain(kind: str, where: str, message: str, stops: bool = True) -> None:
        # Names of files that are not UTF-8 must still be printable.
        stops = stops and kind != "sample"  # one of a shard is left out
        findings.append(Finding(kind, _printable(where), _printable(message), stops))

    if answers is not None or holds_questions(data):
        asked = read_questions(data, answers, complain)
        _look_at_questions(asked, data, complain)
        _look_at_splits(asked, data, complain)
        first = list({record.file: record for record in reversed(asked)}.values())[::-1]
        _look_at_pictures(first, images, watch, complain)
        splits = Counter(record.split or "none" for record in first)
        return Report(
            str(data),
            str(images),
            len(first),
            len(asked),
            dict(sorted(splits.items())),
            tuple(findings),
            "questions",
        )
    records = read_captions(data, complain)
    _look_at_ids(records, data, complain)
    _look_at_captions(records, data, complain)
    _look_at_splits(records, data, complain)
    _look_at_pictures(records, images, watch, complain)
    splits = Counter(record.split or "none" for record in records)
    captions = sum(len(record.captions) for record in records)
    return Report(
        str(data), str(images), len(records), captions, dict(sorted(splits.items())), tuple(findings)
    )


def _images_folder(data: Path) -> Path:
    if (data / "questions.json").is_file() and (data / "images").is_dir():  # easy-VQA
        return data / "images"
    if data.is_dir():
        return data
    beside = data.parent / "images"
    return beside if beside.is_dir() else data.parent


def _printable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _look_at_ids(records: list[CaptionRecord], data: Path, complain) -> None:
    """One picture under many ids, each with one caption, and COCO names whose number is not the id: ids of
    annotations, mostly.
    """
    by_file: dict[str, list[CaptionRecord]] = defaultdict(list)
    for record in records:
        by_file[record.file].append(record)
    for file, same in by_file.items():
        ids = ", ".join(str(record.image_id) for record in same[:5])
        if len(same) > 1 and all(len(record.captions) == 1 for record in same):
            complain(
                "annotation-ids",
                file,
                f"stands under {len(same)} ids with one caption each ({ids}): these look like annotation ids",
            )
        elif len(same) > 1:
            complain(
                "duplicate-file",
                file,
                f"stands under {len(same)} ids ({ids}): give a picture one id",
                stops=False,
            )
    numbered = [
        (record, int(found.group(1)))
        for record in records
        if (found := re.search(r"(\d{12})\.\w+$", record.file))
    ]
    wrong = [(record, number) for record, number in numbered if record.image_id != number]
    if wrong and len(wrong) >= len(numbered) / 2:
        record, number = wrong[0]
        message = f"in {len(wrong)} of {len(numbered)} names the number is not the image id"
        example = f"{record.file} has {record.image_id!r}, expected {number}"
        advice = "predictions under these ids will not meet COCO's references"
        complain("foreign-ids", str(data), f"{message} ({example}): {advice}", stops=False)


def _look_at_captions(records: list[CaptionRecord], data: Path, complain) -> None:
    unspaced: list[str] = []
    for record in records:
        for caption in record.captions:
            words = len(caption.split())
            if words > MOST_WORDS:
                complain(
                    "long-caption",
                    record.file,
                    f"a caption has {words} words, over {MOST_WORDS}: {caption[:60]!r} ...",
                    stops=False,
                )
            if words == 1 and len(caption) > 3 and written_without_spaces(caption):
                unspaced.append(record.file)
            if not split_characters(caption):
                complain(
                    "no-words",
                    record.file,
                    f"a caption holds neither letters nor digits: {caption[:60]!r}",
                    stops=False,
                )
            if "\ufffd" in caption:
                complain(
                    "lost-letters",
                    record.file,
                    f"a letter was lost in an earlier conversion: {caption[:60]!r}",
                    stops=False,
                )
        repeated = [caption for caption, count in Counter(record.captions).items() if count > 1]
        if repeated:
            complain(
                "repeated-caption",
                record.file,
                f"the same caption stands there more than once: {repeated[0][:60]!r}",
                stops=False,
            )
    if unspaced:
        found = (
            f"{counted(len(unspaced), 'caption is', 'captions are')} of a script without "
            f"spaces, the first is that of {unspaced[0]}"
        )
        advice = "train with data.splitter=characters, score with --tokenizer char"
        complain("no-spaces", str(data), f"{found}: {advice}", stops=False)


def _look_at_questions(records: list[QuestionRecord], data: Path, complain) -> None:
    """Questions without a word, answers that cannot be chosen between, and val answers that no training
    shows.
    """
    for record in records:
        if not split_characters(record.question):
            complain(
                "no-words",
                f"question {record.question_id!r}",
                f"holds neither letters nor digits: {record.question[:60]!r}",
            )
    answers = {answer for record in records for answer in record.answers}
    if len(answers) == 1:
        complain(
            "one-answer",
            str(data),
            f"every question has the answer {answers.pop()!r}: there is nothing to learn",
        )
    taught = {answer for record in records if record.split == "train" for answer in record.answers}
    beyond = [
        record for record in records if record.split == "val" and not taught.intersection(record.answers)
    ]
    if taught and beyond:
        some = ", ".join(sorted({record.answer for record in beyond})[:5])
        message = f"{counted(len(beyond), 'question of val has', 'questions of val have')} only answers that no training question has ({some}): they count as wrong"  # noqa: E501
        complain("unknown-answer", str(data), message, stops=False)


def _look_at_splits(records: list[CaptionRecord] | list[QuestionRecord], data: Path, complain) -> None:
    splits = {record.split for record in records}
    if splits == {None}:
        complain(
            "no-split",
            str(data),
            "no record says its split: one picture in ten will be val, the others train",
            stops=False,
        )
    elif records:
        for split in ("train", "val"):
            if split not in splits:
                complain("no-split", str(data), f"no record is in {split}", stops=False)


def _look_at_pictures(
    records: list[CaptionRecord] | list[QuestionRecord], images: Path, watch: Watch, complain
) -> None:
    if not images.is_dir():
        complain("missing", str(images), "the folder of the pictures does not exist: give it with --images")
        return
    seen: dict[bytes, CaptionRecord | QuestionRecord] = {}
    names: dict[str, str] | None = None
    looked_at: set[str] = set()
    with PictureReader() as reader:
        for record in watch(records):
            if record.file in looked_at:
                continue
            looked_at.add(record.file)
            path = images / record.file
            if ".tar#" not in record.file and not path.is_file():
                names = _names_in(images) if names is None else names
                complain("missing", str(path), f"does not exist{_hint(record.file, names)}")
                continue
            try:
                content = _content(path)
            except (OSError, PictureError) as reason:
                found = getattr(reason, "strerror", None) or reason
                complain("unreadable", str(path), f"cannot be read: {found}")
                continue
            _look_at_picture(content, str(path), reader, complain)
            twin = seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), record)
            if twin is not record and content:
                across = twin.split != record.split and None not in (twin.split, record.split)
                message = f"the same picture as {twin.file}" + (
                    f", which is in {twin.split}; this one is in {record.split}" if across else ""
                )
                complain("split-overlap" if across else "duplicate-picture", str(path), message, stops=False)


def _content(path: Path) -> bytes:
    """The bytes of a picture, also of one in a shard."""
    if ".tar#" not in str(path):
        return path.read_bytes()
    content: bytes = look_up("data.shards:read_member")(path, sys.maxsize - 1)
    return content


def _names_in(folder: Path) -> dict[str, str]:
    """The files of a folder by name and by name without suffix, in lower case: for hints."""
    names: dict[str, str] = {}
    for root, _, files in os.walk(folder):
        for file in files:
            there = os.path.relpath(os.path.join(root, file), folder)
            names.setdefault(file.lower(), there)
            names.setdefault(Path(file).stem.lower(), there)
    return names


def _hint(file: str, names: dict[str, str]) -> str:
    base = re.split(r"[\\/]", file)[-1]
    close = names.get(base.lower()) or names.get(Path(base).stem.lower())
    return f"; is it {close}?" if close else ""


def _look_at_picture(content: bytes, name: str, reader: PictureReader, complain) -> None:
    """Decode one picture as a training would; then what is odd about it."""
    try:
        with open_lazily(content, name) as header:
            odd = list(_oddities(header))
        reader.open(content, name)
    except PictureError as reason:
        complain(_kind_of(reason, content), name, str(reason).removeprefix(f"{name}: "))
        return
    for kind, message in odd:
        complain(kind, name, message, stops=False)


def _kind_of(reason: PictureError, content: bytes) -> str:
    if not content:
        return "empty-file"
    if isinstance(reason, PictureTooLarge):
        return "too-large"
    if isinstance(reason, NotAPicture):
        return "not-a-picture"
    return "truncated" if "truncated" in str(reason).lower() else "damaged"


def _oddities(image: Image.Image) -> Iterable[tuple[str, str]]:
    """What training bears, but its owner may want to know."""
    width, height = image.size
    if image.mode == "CMYK":
        yield "cmyk", "is CMYK (made for print): its colours are converted without a profile"
    # Pillow turns 16-bit colour into 8 bits while decoding: only the decoder's own arguments tell.
    if image.mode.startswith(("I", "F")) or any(
        re.search(r";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", ())
    ):
        yield "16-bit", "has more than 8 bits per channel: it is scaled to 8"
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as reason:  # counting walks through all frames, and later ones may be broken in any way
        yield (
            "animated",
            f"has frames that cannot be counted ({type(reason).__name__}: {reason}): only the first is used",
        )
    else:
        if frames > 1:
            yield "animated", f"has {frames} frames: only the first is used"
    if orientation(image) != 1:
        yield "rotated", f"is stored turned (EXIF orientation {orientation(image)}): it is set upright"
    if width * height > MANY_PIXELS:
        yield "large", f"{width}x{height} pixels: decoding it slows training down"
    if min(width, height) < SMALL_EDGE:
        yield "small", f"{width}x{height} pixels: there is hardly anything to see"
    if max(width, height) > STRETCHED * min(width, height):
        yield (
            "stretched",
            f"{width}x{height} pixels: little of it is left after cutting, or it is squashed beyond "
            "recognition",
        )
