import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch


def test_a_word_list_becomes_a_codebook_of_its_tower(patchword, towers, tmp_path):
    from patchword.checkpoints.folder import weights_digest
    from patchword.layers.codebook import Codebook
    from patchword.tasks.retrieve.load import load_two_towers

    (tmp_path / "words.txt").write_text(
        "# animals\ndog\ncat\ndog\n\nzebra\nwine glass\nglass eye\n", encoding="utf-8"
    )
    status, out, err = patchword(
        "codebook", tmp_path / "words.txt", "--tower", towers, "--out", tmp_path / "book"
    )
    assert status == 0 and "3 words, 12 wide" in out
    assert "does not know 2 words: glass eye, zebra" in err
    book = Codebook.read(tmp_path / "book")
    assert book.words == ("dog", "cat", "wine glass")
    book.check_tower(weights_digest(load_two_towers(towers).model.vision)[:16])
    torch.testing.assert_close(book.embeddings_WE.norm(dim=1), torch.ones(3))
    assert not torch.allclose(book.embeddings_WE[0], book.embeddings_WE[1])


def test_words_of_captions_are_added(patchword, towers, tmp_path):
    rows = [
        {"image": f"{number}.jpg", "caption": "a dog in the snow", "split": "train"} for number in range(3)
    ]
    rows.append({"image": "v.jpg", "caption": "a cat and a cat and a cat", "split": "val"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "words.txt").write_text("ball\n", encoding="utf-8")
    words = (
        "codebook",
        tmp_path / "words.txt",
        "--from-captions",
        tmp_path / "data.jsonl",
        "--tower",
        towers,
    )
    status, out, _ = patchword(*words, "--minimum-count", "3", "--out", tmp_path / "book")
    description = json.loads((tmp_path / "book" / "codebook.json").read_text(encoding="utf-8"))
    assert status == 0 and description["words"] == ["ball", "dog", "snow"]
    status, _, err = patchword(*words, "--minimum-count", "4", "--out", tmp_path / "other")
    assert status == 2 and "no noun or adjective occurs 4 times" in err and not (tmp_path / "other").exists()


def test_the_shipped_list_serves_where_none_is_given(patchword, towers, tmp_path):
    status, out, err = patchword("codebook", "--tower", towers, "--out", tmp_path / "book")
    assert status == 0 and "does not know" in err
    assert {"dog", "cat"} <= set(
        json.loads((tmp_path / "book" / "codebook.json").read_text(encoding="utf-8"))["words"]
    )


def test_what_cannot_be_made(patchword, towers, tmp_path):
    (tmp_path / "words.txt").write_text("zebra\nyak\n", encoding="utf-8")
    status, _, err = patchword(
        "codebook", tmp_path / "words.txt", "--tower", towers, "--out", tmp_path / "book"
    )
    assert status == 2 and "knows none of the 2 words (zebra, yak ...)" in err
    status, _, err = patchword(
        "codebook", tmp_path / "none.txt", "--tower", towers, "--out", tmp_path / "book"
    )
    assert status == 2 and "no word list at" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    status, _, err = patchword("codebook", "--tower", towers, "--out", tmp_path / "full")
    assert status == 2 and "exists and is not empty" in err


def test_a_codebook_that_cannot_be_written_is_one_line_and_leaves_nothing(
    patchword, towers, tmp_path, small_disk
):
    (tmp_path / "words.txt").write_text("dog\ncat\n", encoding="utf-8")
    words = ("codebook", tmp_path / "words.txt", "--tower", towers, "--out", tmp_path / "book")
    with small_disk(20):
        status, out, err = patchword(*words)
    assert status == 2 and err.count("\n") == 1 and "book cannot be written" in err and not out
    assert [path.name for path in tmp_path.iterdir()] == ["words.txt"]
    assert patchword(*words)[0] == 0


@pytest.fixture
def readable(towers):
    """The towers where everybody may read them: pytest's own folders are for who runs it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield shutil.copytree(towers, folder / "towers")
    shutil.rmtree(folder)


def test_a_codebook_in_a_read_only_folder_is_one_line(patchword, readable, read_only):
    status, _, err = patchword("codebook", "--tower", readable, "--out", read_only / "book")
    assert status == 2 and err.count("\n") <= 2 and "writing is not allowed there" in err


def test_an_altered_codebook_is_refused(patchword, towers, tmp_path):
    from patchword.errors import ModelError
    from patchword.layers.codebook import Codebook

    (tmp_path / "words.txt").write_text("dog\ncat\n", encoding="utf-8")
    patchword("codebook", tmp_path / "words.txt", "--tower", towers, "--out", tmp_path / "book")
    path = tmp_path / "book" / "codebook.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"dog"', '"dot"'), encoding="utf-8")
    with pytest.raises(ModelError, match=r"codebook\.json was altered.*build the codebook anew"):
        Codebook.read(tmp_path / "book")
    status, _, err = patchword("models", "--check", tmp_path / "book")
    assert status == 2 and "was altered" in err
