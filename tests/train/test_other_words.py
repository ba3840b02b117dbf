"""Starting from a captioner that knows other words, and resuming after the data changed."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from patchword.checkpoints.words import load_by_words
from patchword.errors import ConfigError
from patchword.text.words import Vocabulary


def weights(folder):
    return load_file(folder / "model.safetensors")


def words(folder):
    return json.loads((folder / "vocab.json").read_text())["words"]


@pytest.fixture(scope="module")
def other(scenes, tmp_path_factory):
    """The same pictures with captions in which one word is new, and the words stand in another order."""
    folder = tmp_path_factory.mktemp("other")
    with open(folder / "captions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "split"])
        for image in json.loads((scenes / "dataset.json").read_text())["images"]:
            for sentence in image["sentences"]:
                said = sentence["raw"].replace("red", "scarlet")
                table.writerow([image["filename"], f"{said} here here here here", image["split"]])
    return folder / "captions.csv"


STILL = "stage.0.learning_rates={'' = 1e-12}"
"""A rate at which weights stay what they were."""


def test_shared_words_keep_their_rows(trained, config, other, run_patchword, tmp_path):
    """The words that both know begin as they were, as does the rest; new words begin anew."""
    run = tmp_path / "run"
    settings = (f"data.annotations={other}", f"captioner_from={trained / 'best'}", f"out={run}")
    one = ("stage.0.epochs=1", "stage.1.epochs=1", STILL, STILL.replace("0", "1", 1))
    finished = run_patchword("train", config, *settings, *one, "--device", "cpu")
    assert finished.returncode == 0, finished.stderr
    before, after = weights(trained / "best"), weights(run / "checkpoints" / "last")
    old, new = words(trained / "best"), words(run / "checkpoints" / "last")
    assert set(new) - set(old) == {"scarlet", "here"} and "red" in set(old) - set(new)
    said = f"{len(set(old) & set(new))} of {len(new)} words keep their weights, 2 are new"
    assert said in finished.stderr
    assert before.keys() == after.keys()
    grown = [name for name in after if after[name].shape != before[name].shape]
    assert grown and all(name.startswith("captioner.") for name in grown)
    for name in grown:
        for word in set(old) & set(new):
            row, was = after[name][1 + new.index(word)], before[name][1 + old.index(word)]
            torch.testing.assert_close(row, was, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            after[name][-3:], before[name][-3:], rtol=0, atol=1e-6
        )  # unknown, start, end
        assert not torch.allclose(after[name][1 + new.index("here")], before[name][1 + old.index("red")])
    same = set(after) - set(grown)
    assert all(
        torch.allclose(after[name], before[name], rtol=0, atol=1e-6)
        for name in same
        if name.startswith("captioner.")
    )


def test_words_of_one_number_in_another_order_are_told_apart():
    """The shapes fit, and the words do not: rows go with their words."""
    torch.manual_seed(0)
    old, new = Vocabulary(("a", "dog", "cat"), "english", 1), Vocabulary(("cat", "a", "bird"), "english", 1)
    trained = torch.nn.Embedding(old.size, 4)
    model = torch.nn.Embedding(new.size, 4)
    begun = model.weight.detach().clone()

    def load(module):
        module.load_state_dict(trained.state_dict())

    class Folder:
        """Stands for the folder of the trained model."""

        def __str__(self):
            return "trained"

    import patchword.checkpoints.words as words_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_of, "read_vocabulary", lambda folder, size: old)
        patch.setattr(words_of.checkpoint, "read_config", lambda folder: {"vocabulary_size": old.size})
        said = load_by_words(model, Folder(), new, lambda size: torch.nn.Embedding(size, 4), load)
        with pytest.raises(ConfigError, match="splits texts in another way"):
            characters = Vocabulary(("a",), "characters", 1)
            load_by_words(model, Folder(), characters, lambda size: torch.nn.Embedding(size, 4), load)
    assert said == "trained: 2 of 3 words keep their weights, 1 are new, 1 of its words are left out"
    expected = trained.weight[[0, 3, 1]]  # padding, cat, a
    assert torch.equal(model.weight[:3], expected) and torch.equal(model.weight[3], begun[3])
    assert torch.equal(model.weight[4:], trained.weight[4:])


def test_resuming_after_the_data_changed_says_so(trained, config, other, scenes, run_patchword, tmp_path):
    """A picture more, or only another word in a caption: what changed is said, and nothing is touched."""
    content = json.loads((scenes / "dataset.json").read_text())
    path, run = tmp_path / "dataset.json", tmp_path / "run"
    path.write_text(json.dumps(content))
    settings = (f"data.annotations={path}", f"out={run}", "stage.0.epochs=1", "stage.1.epochs=1")
    assert run_patchword("train", config, *settings, "--device", "cpu").returncode == 0
    before = (run / "metrics.jsonl").read_bytes()
    first = next(image for image in content["images"] if image["split"] == "train")
    content["images"].remove(first)
    path.write_text(json.dumps(content))
    fewer = run_patchword("train", config, *settings, "--resume", "--device", "cpu")
    count = sum(image["split"] == "train" for image in content["images"])
    assert fewer.returncode == 2 and f"training records {count + 1}, now {count}" in fewer.stderr
    first["sentences"][0]["raw"] = first["sentences"][0]["raw"] + " again"
    first["sentences"][0]["tokens"] = [*first["sentences"][0]["tokens"], "again"]
    content["images"].insert(0, first)
    path.write_text(json.dumps(content))
    edited = run_patchword("train", config, *settings, "--resume", "--device", "cpu")
    assert edited.returncode == 2 and "was begun with other data" in edited.stderr
    assert "has shape" not in fewer.stderr + edited.stderr
    assert (run / "metrics.jsonl").read_bytes() == before
