"""Files of pictures are decoded in processes that can be ended (`data.isolated.PictureReader`), wherever many are read."""

import re
from pathlib import Path

import patchword

PACKAGE = Path(patchword.__file__).parent
IN_THIS_PROCESS = {
    **dict.fromkeys(["data/pictures.py", "data/isolated.py", "data/decoding.py", "data/worker.py"], "what decodes"),
    **dict.fromkeys(["cli/ask.py", "cli/pair.py", "cli/point.py"], "one picture that a person named"),
    "search/find.py": "one picture that a person searches by",
    "tasks/answer/any_picture.py": "a picture that was given to a method",
    "tasks/answer/model.py": "pictures that were given to a method",
    "tasks/answer/photographs.py": "pictures that were given to a method",
    "tasks/caption/exported.py": "pictures that were given to a method",
    "tasks/caption/hub.py": "pictures that were given to a method",
    "tasks/caption/model.py": "pictures that were given to a method",
    "tasks/caption/streamed.py": "a picture that was given to a method",
    "tasks/interleave/model.py": "pictures that were given to a method",
    "tasks/label/model.py": "pictures that were given to a method",
    "tasks/paint/extractors.py": "arrays that were decoded before",
    "tasks/paint/oracle.py": "pictures that were given to a method",
    "tasks/pretrain/model.py": "pictures that were given to a method",
    "tasks/pretrain/vilbert_model.py": "pictures that were given to a method",
    "tasks/retrieve/exported.py": "pictures that were given to a method",
    "tasks/retrieve/model.py": "pictures that were given to a method",
    "tasks/retrieve/query.py": "pictures that were given to a method",
    "tasks/caption/explanations_page.py": "pictures that the check decoded by a reader before",
    "tasks/paint/paint.py": "what the same command painted before, by its mark",
    "tasks/paint/marks.py": "the header of a PNG, for its mark",
    "html/pictures.py": "JPEGs that were encoded a moment before",
}
"""Files that open pictures in the process itself, and which ones."""
OPENS = re.compile(r"\bopen_picture\(|\bImage\.open\(|\bdecode\((?:content|stored)\b|\bbegin\(content\b")


def test_whoever_reads_many_files_decodes_them_elsewhere():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if OPENS.search(path.read_text(encoding="utf-8"))
    }
    new, gone = found - IN_THIS_PROCESS.keys(), IN_THIS_PROCESS.keys() - found
    assert not new, f"{sorted(new)}: of many files use PictureReader; otherwise say here which pictures these are"
    assert not gone, f"{sorted(gone)} open none any more: take them off the list"
