"""A library of 5,000 photographs with every oddity mixed in: captioned, indexed, searched, moved, partly
unmounted, searched again. What each command counts must add up to the files that are there.

    python benchmarks/library.py --photographs flickr8k/images --place /tmp/library --seconds 150

Repeated until it prints its table; a command that is ended goes on with the next call. Copies of photographs
make most of it: with all eight EXIF orientations, as PNG, WebP, AVIF, TIFF, GIF, JPEG 2000 and HEIC, under
wrong suffixes and without one, as copies of each other, broken in five ways, with names that are no UTF-8,
hold newlines or are 255 bytes long, behind links, and beside what is no picture. A part of it is a drive of
its own (needs the right to mount; without it that part is said to be left out). The models are small ones
with hardly any training (tests/kits): what is asked is counts.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
KITS = ROOT / "tests" / "kits" / "format1"
HEIC = ROOT / "tests" / "data" / "files" / "stored-turned.heic"

NO_PICTURE, BROKEN_LINK, LINKED = "no picture", "broken link", "linked folder, not followed"


class Library:
    """Writes the files and remembers what each of them is: a picture, unreadable, or why it is left out."""

    def __init__(self, folder: Path, photographs: list[Path]) -> None:
        self.folder, self.photographs = folder, photographs
        self.chance, self.kinds = random.Random(5), Counter()
        self.what: Counter[str] = Counter()

    def put(self, name: bytes, content: bytes, what: str, kind: str) -> None:
        path = os.path.join(os.fsencode(self.folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
        self.kinds[kind] += 1
        self.what[what] += 1

    def make(self, count: int) -> None:
        """`count` files and links."""
        makers = [self.plain] * 10 + [self.turned] * 4 + [self.format] * 3 + [self.misnamed, self.named]
        makers += [self.broken, self.copy, self.link, self.other]
        number = 0
        while sum(self.what.values()) < count:
            self.chance.choice(makers)(number)
            number += 1

    def photograph(self, number: int) -> bytes:
        return self.photographs[number % len(self.photographs)].read_bytes() + b"%06d" % number

    def place(self, number: int) -> bytes:
        """A folder of the library, up to four levels down; every tenth is on the drive."""
        top = b"drive" if number % 10 == 0 else b"year %d" % (2010 + number % 12)
        return b"/".join([top, *(b"album %d" % (number % k) for k in (3, 7, 11)[: number % 4])])

    def plain(self, number: int) -> None:
        name = self.place(number) + b"/IMG_%05d.JPG" % number
        self.put(name, self.photograph(number), "picture", "plain JPEG")

    def turned(self, number: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        name = self.place(number) + b"/turned %05d.jpeg" % number
        self.put(name, self.encoded(number, "JPEG", exif=exif), "picture", "EXIF orientation")

    def encoded(self, number: int, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(self.photograph(number))) as image:
            image.resize((160, 120)).save(buffer, kind, **options)
        return buffer.getvalue()

    def format(self, number: int) -> None:
        suffix, kind = self.chance.choice(
            [("png", "PNG"), ("webp", "WEBP"), ("avif", "AVIF"), ("tif", "TIFF"), ("gif", "GIF")]
            + [("jp2", "JPEG2000"), ("bmp", "BMP"), ("jfif", "JPEG"), ("heic", "HEIC")]
        )
        if kind == "HEIC":  # nothing here writes it: one file, told apart by what follows it
            content = HEIC.read_bytes() + (16).to_bytes(4, "big") + b"free" + b"%08d" % number
        else:
            content = self.encoded(number, kind)
        name = self.place(number) + b"/other %05d." % number + suffix.encode()
        self.put(name, content, "picture", kind)

    def misnamed(self, number: int) -> None:
        """A PNG that says JPEG, and one without a suffix."""
        suffix = self.chance.choice([b".jpg", b"", b".backup"])
        name = self.place(number) + b"/misnamed %05d" % number + suffix
        self.put(name, self.encoded(number, "PNG"), "picture", "wrong or no suffix")

    def named(self, number: int) -> None:
        kinds = [b"\xff\xfe bytes %05d.jpg", b"new\nline, %05d.jpg", b"-dash %05d.jpg", b"'\"<&> %05d.jpg"]
        kinds += ["ß猫🐈 %05d.jpg".encode(), b"x" * 246 + b"%05d.jpg", b"=1+1 %05d.jpg", b".hidden %05d.jpg"]
        name = self.place(number) + b"/" + self.chance.choice(kinds) % number
        self.put(name, self.photograph(number), "picture", "odd name")

    def broken(self, number: int) -> None:
        whole = self.photograph(number)
        kinds = [b"", whole[: len(whole) // 2], b"<html>not found</html>", whole[:3] + bytes(500)]
        content = self.chance.choice([*kinds, b"\x89PNG\r\n\x1a\n" + whole[:900]])
        self.put(self.place(number) + b"/broken %05d.jpg" % number, content, "unreadable", "broken")

    def copy(self, number: int) -> None:
        content = self.photograph(1_000_000)
        self.put(self.place(number) + b"/copy %05d.jpg" % number, content, "picture", "copy")

    def link(self, number: int) -> None:
        place = os.path.join(os.fsencode(self.folder), self.place(number))
        os.makedirs(place, exist_ok=True)
        kind = self.chance.choice(["file", "broken", "folder"])
        target = {"file": self.photographs[number % 50], "broken": "/nowhere/x.jpg", "folder": self.folder}[
            kind
        ]
        os.symlink(target, place + b"/link %05d" % number + (b"" if kind == "folder" else b".jpg"))
        what = {"file": "picture", "broken": BROKEN_LINK, "folder": LINKED}[kind]
        self.kinds[f"link to a {kind}" if kind != "broken" else "broken link"] += 1
        self.what[what] += 1

    def other(self, number: int) -> None:
        name = self.chance.choice([b"Thumbs %d.db", b"film %d.mp4", b"notes %d.txt", b"._IMG_%d.JPG"])
        self.put(
            self.place(number) + b"/" + name % number, b"\0\0\0 ftypisom" + bytes(99), NO_PICTURE, NO_PICTURE
        )


def run(place: Path, name: str, *words: object) -> tuple[int, list[str], list[str]]:
    """A command as a person types it; ended with this script, it goes on with the next call."""
    began = time.monotonic()
    command = [sys.executable, "-m", "patchword", *map(str, words)]
    with open(place / f"{name}.out", "wb") as out, open(place / f"{name}.err", "wb") as err:
        status = subprocess.run(command, stdout=out, stderr=err).returncode
    print(f"{name}: status {status}, {time.monotonic() - began:.0f} s", flush=True)
    lines = [
        (place / f"{name}.{end}").read_bytes().decode("utf-8", "surrogateescape").splitlines()
        for end in ("out", "err")
    ]
    return status, *lines


def there(folder: Path) -> Counter[str]:
    """Files, links to files and links to folders, counted by the system."""
    counts: Counter[str] = Counter()
    for place, folders, files in os.walk(os.fsencode(folder)):
        counts["links to folders"] += sum(os.path.islink(os.path.join(place, one)) for one in folders)
        counts["files"] += len(files)
    return counts


class Steps:
    """What is done, one after the other; each is kept in a file when it is done."""

    def __init__(self, place: Path, photographs: Path, count: int) -> None:
        self.place, self.photographs, self.count = place, photographs, count
        self.library, self.index, self.drive = place / "library", place / "index", place / "drive"
        self.state = place / "state.json"
        self.done: dict[str, Any] = json.loads(self.state.read_text()) if self.state.exists() else {}

    def step(self, name: str) -> None:
        if name not in self.done:
            began = time.monotonic()
            self.done[name] = {**getattr(self, name)(), "seconds": round(time.monotonic() - began)}
            self.state.write_text(json.dumps(self.done, indent=1))

    def make(self) -> dict[str, Any]:
        photographs = sorted(self.photographs.iterdir())[: self.count]
        library = Library(self.library, photographs)
        library.make(self.count)
        return {"what": library.what, "kinds": library.kinds, "there": there(self.library)}

    def mounted(self) -> bool:
        """The drive of the library is a mounted one, where that is allowed."""
        inside = self.library / "drive"
        if self.drive.exists() and any(inside.iterdir()):
            return True
        if not self.drive.exists():
            inside.rename(self.drive)
            inside.mkdir()
        return (
            subprocess.run(["mount", "--bind", self.drive, inside], stderr=subprocess.DEVNULL).returncode == 0
        )

    def caption(self) -> dict[str, Any]:
        self.mounted()
        table = self.place / "captions.csv"
        words = ("caption", self.library, "--model", KITS / "caption", "--out", table, "--beam", 1, "--json")
        status, out, _ = run(self.place, "caption", *words, "--batch", 64, "--device", "cpu")
        last = json.loads(out[-1])
        with open(table, encoding="utf-8", errors="surrogateescape", newline="") as file:
            images = [row["image"] for row in csv.DictReader(file)]
        assert len(images) == len(set(images)), "a picture has two captions"
        return {"status": status, "captions": len(images), **last}

    def caption_again(self) -> dict[str, Any]:
        return self.caption()

    def _indexed(self, name: str, *words: object) -> dict[str, Any]:
        command = ("index", self.library, "--out", self.index, "--model", KITS / "retrieve", "--json")
        status, out, err = run(self.place, name, *command, *words)
        found = json.loads(out[-1]) if out else {"said": err[-1]}
        bad = found.pop("bad", [])
        return {"status": status, **found, "bad": len(bad)}

    def _searched(self, name: str) -> dict[str, Any]:
        command = ("search", self.index, "a dog", "-k", 10_000, "--json")
        status, out, err = run(self.place, name, *command)
        paths = [row["path"] for row in json.loads(out[-1])["results"]]
        gone = sum(not row["exists"] for row in json.loads(out[-1])["results"])
        return {"status": status, "found": len(paths), "different": len(set(paths)), "gone": gone}

    def index_all(self) -> dict[str, Any]:
        """Twice, for a run that was ended adds only what is left: the second one counts what there is."""
        self._indexed("index_first")
        return self._indexed("index_all")

    def search(self) -> dict[str, Any]:
        return self._searched("search")

    def move(self) -> dict[str, Any]:
        """Four years are renamed, one goes into another, and every file of a sixth gets another name."""
        for year in range(2010, 2014):
            (self.library / f"year {year}").rename(self.library / f"renamed {year}")
        (self.library / "year 2014").rename(self.library / "year 2015" / "moved")
        for place, _, files in os.walk(os.fsencode(self.library / "year 2016")):
            for file in files:
                if len(file) < 250:
                    os.rename(os.path.join(place, file), os.path.join(place, b"new " + file))
        return self._indexed("move")

    def search_moved(self) -> dict[str, Any]:
        return self._searched("search_moved")

    def unmount(self) -> dict[str, Any]:
        if subprocess.run(["umount", self.library / "drive"], stderr=subprocess.DEVNULL).returncode:
            return {"left out": "no right to mount here"}
        assert not any((self.library / "drive").iterdir()), "the drive is still there"
        return self._indexed("unmount")

    def search_unmounted(self) -> dict[str, Any]:
        return self._searched("search_unmounted")

    def away(self) -> dict[str, Any]:
        """The whole library is an empty folder, as an unmounted drive is."""
        hidden = self.place / "hidden"
        self.library.rename(hidden)
        self.library.mkdir()
        found = self._indexed("away")
        self.library.rmdir()
        hidden.rename(self.library)
        return found

    def back(self) -> dict[str, Any]:
        self.mounted()
        return self._indexed("back")

    def search_back(self) -> dict[str, Any]:
        return self._searched("search_back")


STEPS = (
    *("make", "caption", "caption_again", "index_all", "search", "move", "search_moved"),
    *("unmount", "search_unmounted", "away", "back", "search_back"),
)


def main() -> None:
    """The steps that are left, then what each counted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--place", type=Path, required=True, help="folder of the library and its index")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=150.0, help="no step begins after so long")
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    steps, began = Steps(asked.place, asked.photographs, asked.count), time.monotonic()
    for name in STEPS:
        if time.monotonic() - began > asked.seconds:
            break
        steps.step(name)
    for name, found in steps.done.items():
        print(name, json.dumps(found))


if __name__ == "__main__":
    main()
