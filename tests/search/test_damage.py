"""An index whose files are changed, cut, lost or mixed up says so, or finds what it found before; it never
gives a wrong hit or a traceback. PATCHWORD_FUZZ=10000 runs as many mutations in place of the few that every
run of the tests can afford."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import patchword.search.segments as segments_file
import patchword.search.vectors as vectors_file
import patchword.search.writer as writer_file
from patchword.errors import PatchwordError, StoreError
from patchword.search.check import check_index, repair_index
from patchword.search.index import Concepts, open_index, update_index
from patchword.search.records import IndexModel

MUTATIONS = int(os.environ.get("PATCHWORD_FUZZ", "25"))
QUERIES = np.eye(3, dtype=np.float32) + 0.1


def embed(pictures):
    """The mean colour."""
    return np.stack(
        [np.asarray(picture.resize((1, 1)), dtype=np.float32).reshape(3) + 1 for picture in pictures]
    )


CONCEPTS = Concepts(
    ("dark", "light"),
    lambda pictures: [["dark"] if min(p.getpixel((0, 0))) < 9 else ["light"] for p in pictures],
)


def hits(out):
    """What every query finds, with what a filter leaves."""
    with open_index(out, "colours") as opened:
        found = [opened.search(query, 60) for query in QUERIES]
        found.append(opened.search(QUERIES[0], 60, ["light"]))
        return [[(match.path, round(match.score, 5)) for match in one] for one in found]


def update(photos, out):
    return update_index(photos, out, IndexModel(embed, "colours", concepts=CONCEPTS), batch=16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of pictures, an index of it with two segments, cells, a removed picture and one that cannot be
    read."""
    folder = tmp_path_factory.mktemp("damage")
    photos, out = folder / "photos", folder / "out"
    photos.mkdir()
    for i in range(16):  # as many as there are cells that a search visits: it finds all of them
        Image.new("RGB", (4, 4), (16 * i, 255 - 16 * i, (i * 37) % 255)).save(photos / f"{i}.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors_file, "FLAT_LIMIT", 10)
        patch.setattr(writer_file, "LARGE_RUN", 1)
        update(photos, out)
        (photos / "7.png").unlink()
        Image.new("RGB", (4, 4), (1, 1, 250)).save(photos / "new.png")
        patch.setattr(vectors_file, "FLAT_LIMIT", 100)
        update(photos, out)
    assert {path.suffix for path in out.iterdir() if path.is_file()} == {
        ".json",
        ".lock",
        ".sqlite",
        ".npy",
        ".faiss",
    }
    return photos, out, hits(out)


def files(out):
    return sorted(path for path in out.iterdir() if path.is_file() and path.name != "index.lock")


def mutated(content, kind, place, value):
    """The bytes with one fault in them."""
    at = int(place * max(len(content) - 1, 0))
    if kind == "byte":
        return content[:at] + bytes([value]) + content[at + 1 :]
    if kind == "zeros":
        return content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :]
    if kind == "cut":
        return content[:at]
    if kind == "longer":
        return content + bytes([value]) * (at + 1)
    return content[:at] + content[at + value + 1 :]


MUTATION = st.tuples(
    st.integers(0, 10),
    st.sampled_from(["byte", "zeros", "cut", "longer", "without"]),
    st.floats(0, 1),
    st.integers(0, 255),
)
FEW = settings(
    max_examples=MUTATIONS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)


@pytest.mark.parametrize("verified", [64 * 2**20, 0], ids=["small", "as if it were large"])
@FEW
@given(mutation=MUTATION)
def test_a_mutated_file_is_an_error_or_harmless_and_is_repaired(whole, tmp_path_factory, verified, mutation):
    """In a large index only heads are verified at opening: there a picture may be missed, but what is found
    is right."""
    photos, out, right = whole
    number, kind, place, value = mutation
    copy = tmp_path_factory.mktemp("copy") / "out"
    shutil.copytree(out, copy)
    chosen = files(copy)[number % len(files(copy))]
    chosen.write_bytes(mutated(chosen.read_bytes(), kind, place, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments_file, "VERIFIED_AT_OPENING", verified)
        try:
            found = hits(copy)
        except PatchwordError as error:
            assert str(copy) in str(error), error
        else:
            certified = {match for one in right for match in one}
            assert found == right or (not verified and {match for one in found for match in one} <= certified)
        repair_index(copy, "colours", "")
        update(photos, copy)
        again = hits(copy)
        assert [sorted(one) for one in again] == [sorted(one) for one in right]
        assert check_index(copy).damaged == ()
    shutil.rmtree(copy.parent)


@pytest.mark.parametrize("kind", ["pictures", "vectors", "cells", "index"])
def test_a_lost_file_is_named_with_the_cure(whole, tmp_path, kind):
    photos, out, right = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    lost = next(path for path in files(copy) if path.name.startswith(kind))
    lost.unlink()
    with pytest.raises(StoreError) as told:
        hits(copy)
    if kind == "index":
        assert "no index here" in str(told.value)
    else:
        assert f"{lost}: damaged: the file is missing; `patchword index FOLDER --out {copy} --repair`" in str(
            told.value
        )
    assert repair_index(copy, "colours", "").damaged[0][0] == lost.name
    update(photos, copy)
    assert [sorted(one) for one in hits(copy)] == [sorted(one) for one in right]


def test_only_what_is_lost_is_embedded_again(whole, tmp_path):
    photos, out, right = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    vectors = max(copy.glob("vectors-*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(vectors.read_bytes())
    content[segments_file.HEADER + 3 * 12 + 1] ^= 255
    vectors.write_bytes(content)
    assert [name for name, _ in check_index(copy).damaged] == [vectors.name]
    with pytest.raises(StoreError, match="does not fit its sum"):
        update(photos, copy)
        hits(copy)
    report = repair_index(copy, "colours", "")
    assert (report.kept, report.lost) == (15, 1)
    embedded = []

    def watching(pictures):
        embedded.extend(pictures)
        return embed(pictures)

    update_index(photos, copy, IndexModel(watching, "colours", concepts=CONCEPTS))
    assert len(embedded) == 1 and [sorted(one) for one in hits(copy)] == [sorted(one) for one in right]


def test_a_whole_index_is_left_as_it_is_by_repair(whole):
    _, out, right = whole
    before = {path: path.read_bytes() for path in files(out)}
    assert repair_index(out, "colours", "").damaged == ()
    assert {path: path.read_bytes() for path in files(out)} == before and hits(out) == right
    report = check_index(out)
    assert (report.damaged, report.pictures) == ((), 16)


def test_altered_vectors_of_a_large_index_give_no_wrong_hit(whole, tmp_path, monkeypatch):
    """Sums of pictures that were found are verified whatever the size of the index."""
    _, out, _ = whole
    monkeypatch.setattr(segments_file, "VERIFIED_AT_OPENING", 0)
    held = max(out.glob("vectors-*.npy"), key=lambda path: path.stat().st_size).read_bytes()
    vector = held[segments_file.HEADER + 36 : segments_file.HEADER + 48]
    for kind in ("vectors-*.npy", "cells-*.faiss"):
        copy = tmp_path / kind[:5]
        shutil.copytree(out, copy)
        path = max(copy.glob(kind), key=lambda path: path.stat().st_size)
        content = path.read_bytes()
        at = content.rindex(vector)  # in the cells it is a centre as well, which the head's sum covers
        path.write_bytes(content[:at] + np.full(3, 0.5, "<f4").tobytes() + content[at + 12 :])
        with pytest.raises(StoreError, match="damaged"):
            hits(copy)


def test_a_score_is_that_of_the_picture_named_though_its_cells_are_altered(whole, tmp_path, monkeypatch):
    """Of large cells only the head is verified: a last bit of a vector, and a number that now names another
    picture of nearly the same vector, alter neither the scores nor how often a picture is found."""
    _, out, right = whole
    monkeypatch.setattr(segments_file, "VERIFIED_AT_OPENING", 0)
    cells = max(out.glob("cells-*.faiss"), key=lambda path: path.stat().st_size)
    vectors = np.load(max(out.glob("vectors-*.npy"), key=lambda path: path.stat().st_size))
    content = bytearray(cells.read_bytes())
    for vector in vectors:
        content[content.rindex(vector.astype("<f4").tobytes())] ^= 64  # seven bits of 23: 4e-6 of the number
    copy = tmp_path / "bits"
    shutil.copytree(out, copy)
    (copy / cells.name).write_bytes(content)
    assert hits(copy) == right


def test_of_two_pictures_alike_none_is_found_twice_though_the_cells_name_it_twice(tmp_path, monkeypatch):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(20):
        Image.new("RGB", (4, 4), (12 * i, 255 - 12 * i, 40)).save(photos / f"{i}.png")
    alike = Image.new("RGB", (4, 4), (120, 135, 40))
    alike.putpixel((0, 0), (121, 135, 40))
    alike.save(photos / "alike.png")
    monkeypatch.setattr(vectors_file, "FLAT_LIMIT", 10)
    monkeypatch.setattr(writer_file, "LARGE_RUN", 1)
    monkeypatch.setattr(segments_file, "VERIFIED_AT_OPENING", 0)
    update(photos, out)
    [cells], [vectors] = out.glob("cells-*.faiss"), out.glob("vectors-*.npy")
    rows = {Path(match.path).name: match.score for match in open_index(out).search(QUERIES[0], 60)}
    numbers = np.argsort(-(np.load(vectors) @ QUERIES[0]))
    first = list(rows).index("alike.png")
    alike, twin = (
        int(numbers[first]),
        int(numbers[first + 1 if list(rows)[first + 1] == "10.png" else first - 1]),
    )
    content = cells.read_bytes()
    at = content.index(np.int64(alike).tobytes(), content.rindex(np.load(vectors)[alike].tobytes()))
    cells.write_bytes(content[:at] + np.int64(twin).tobytes() + content[at + 8 :])
    found = [match.path for match in open_index(out).search(QUERIES[0], 60)]
    assert sorted(Path(path).name for path in found) == sorted(set(rows) - {"alike.png"})


def test_an_index_of_a_later_format_is_refused(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "out")
    path = tmp_path / "out" / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(StoreError, match="an index of format 3; this version reads 2: update Patchword"):
        open_index(tmp_path / "out")


def test_messages_name_a_path_once_and_fit_a_line(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "out")
    Path(tmp_path / "out" / "index.json").write_text("[]")
    with pytest.raises(StoreError) as told:
        open_index(tmp_path / "out")
    assert "\n" not in str(told.value) and "it names no format" in str(told.value)
