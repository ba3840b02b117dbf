"""Files and folders appear whole or not at all, and what cannot be written is said in one line with the old
state intact.
"""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from patchword import files
from patchword.errors import WriteError

OLD, NEW = "what was there", "what is new"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(OLD)
    files.write_text(path, NEW)
    assert path.read_text() == NEW and names(tmp_path) == ["a.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(OLD)
    with pytest.raises(RuntimeError), files.whole_file(path) as aside:
        aside.write_text(NEW)
        raise RuntimeError("in the middle")
    assert path.read_text() == OLD and names(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    (tmp_path / "ordinary").touch()
    files.write_text(tmp_path / "ours", NEW)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_link_keeps_pointing_where_it_points(tmp_path):
    (tmp_path / "target.txt").write_text(OLD)
    (tmp_path / "link.txt").symlink_to("target.txt")
    files.write_text(tmp_path / "link.txt", NEW)
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "target.txt").read_text() == NEW


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    files.write_text(pipe, NEW)
    assert reader.communicate(timeout=10)[0] == NEW and pipe.is_fifo()


def test_long_names_and_names_of_bytes_are_written(tmp_path):
    for name in ("n" * 251 + ".txt", "\u00e9" * 120 + ".txt", os.fsdecode(b"\xff\xfe.txt"), "no-suffix"):
        files.write_text(tmp_path / name, NEW)
        assert (tmp_path / name).read_text() == NEW
    assert len(names(tmp_path)) == 4


def test_json_carries_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"photo-\xff.jpg")
    files.write_json(tmp_path / "a.json", {name: "\u00e9"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: "\u00e9"}


@pytest.mark.parametrize(
    "code, said", [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the disk is read-only")]
)
def test_the_cause_is_said_and_the_old_file_stays(tmp_path, monkeypatch, code, said):
    path = tmp_path / "a.txt"
    path.write_text(OLD)

    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(WriteError, match=f"{path} cannot be written, {said}.*unchanged"):
        files.write_text(path, NEW)
    assert path.read_text() == OLD and names(tmp_path) == ["a.txt"]


def test_a_disk_that_is_too_small_is_said_and_the_old_file_stays(tmp_path, small_disk):
    path = tmp_path / "a.txt"
    path.write_text(OLD)
    with small_disk(1000), pytest.raises(WriteError, match=r"a\.txt cannot be written"):
        files.write_text(path, 10 * NEW * 1000)
    assert path.read_text() == OLD and names(tmp_path) == ["a.txt"]


def test_a_read_only_folder_is_said(read_only):
    with pytest.raises(WriteError, match="writing is not allowed there"):
        files.write_text(read_only / "kept.json", NEW)
    with pytest.raises(WriteError, match="writing is not allowed there"), files.whole_folder(read_only / "f"):
        raise AssertionError("the block must not run")
    assert (read_only / "kept.json").read_text() == OLD


def test_a_missing_folder_and_a_folder_in_the_way_are_said(tmp_path):
    with pytest.raises(WriteError, match="there is no folder .*nowhere: make it first"):
        files.write_text(tmp_path / "nowhere" / "a.txt", NEW)
    with pytest.raises(WriteError, match="it is a folder, and a file is to be written"):
        files.write_text(tmp_path, NEW)


def test_errors_of_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), files.whole_file(tmp_path / "a.txt"):
        (tmp_path / "picture.jpg").read_bytes()


def test_a_folder_is_made_whole_and_replaces_only_where_it_may(tmp_path):
    target = tmp_path / "deep" / "folder"
    with files.whole_folder(target) as aside:
        (aside / "a").write_text(OLD)
        assert not target.exists()
    with pytest.raises(WriteError, match="exists and is not empty"), files.whole_folder(target):
        raise AssertionError("the block must not run")
    with files.whole_folder(target, over=True) as aside:
        (aside / "b").write_text(NEW)
    assert names(target) == ["b"] and names(target.parent) == ["folder"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "a").write_text(OLD)
    with pytest.raises(RuntimeError), files.whole_folder(target, over=True) as aside:
        (aside / "a").write_text(NEW)
        raise RuntimeError("in the middle")
    assert (target / "a").read_text() == OLD and names(tmp_path) == ["folder"]


KILLED = """
import os, sys
from pathlib import Path
from patchword import files
operations = iter(range(10**6))
at = int(sys.argv[2])
def counted(call):
    def wrapper(*arguments, **options):
        if next(operations) == at:
            os._exit(9)
        return call(*arguments, **options)
    return wrapper
for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir", "open"):
    setattr(os, name, counted(getattr(os, name)))
with files.whole_folder(Path(sys.argv[1]), over=True) as aside:
    for name in ("a", "b"):
        (aside / name).write_text("new")
print("done")
"""


def test_killed_at_any_operation_the_old_or_the_new_folder_is_there(tmp_path):
    """One process per operation of the system; the next writer puts right what was left, and clears it away."""
    ended = 0
    for at in range(60):
        folder = tmp_path / str(at) / "folder"
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).write_text("old")
        code = [sys.executable, "-c", KILLED, str(folder), str(at)]
        killed = subprocess.run(code, capture_output=True, text=True, env={**os.environ})
        files.recover_folder(folder)
        assert {(folder / name).read_text() for name in ("a", "b")} in ({"old"}, {"new"})
        with files.whole_folder(folder, over=True) as aside:
            (aside / "a").write_text("after")
        assert names(folder.parent) == ["folder"] and names(folder) == ["a"]
        if killed.returncode == 0:
            ended += 1
            break
        assert killed.returncode == 9, killed.stderr
    assert ended, "more operations than were tried"


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"out.partial-{dead.pid}").mkdir()
    (tmp_path / f"out.partial-{dead.pid}-ab12@{files._host()}").mkdir()
    (tmp_path / f"out.partial-{dead.pid}-ab12@elsewhere").mkdir()
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / f"out.partial-{living.pid}").mkdir()
    (tmp_path / "out.partial-notes").mkdir()
    files.remove_leftovers(tmp_path / "out")
    living.communicate(b"\n")
    kept = {f"out.partial-{living.pid}", "out.partial-notes", f"out.partial-{dead.pid}-ab12@elsewhere"}
    assert set(names(tmp_path)) == kept


def test_space_is_asked_for_before_it_is_needed(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(WriteError, match="the disk is full: free some space .*MiB are needed"):
        with files.whole_file(tmp_path / "big") as aside, open(aside, "wb") as file:
            files.allocate(file, 2 * free)
    assert names(tmp_path) == []
