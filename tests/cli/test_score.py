import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from patchword.cli import app
from patchword.errors import ConfigError, DataError

KIT = json.loads(
    (Path(__file__).parents[1] / "data" / "metrics" / "captions.json").read_text(encoding="utf-8")
)


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["score", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write(path: Path, predictions: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps([{"image_id": int(image), "caption": caption} for image, caption in predictions.items()]),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def references(tmp_path: Path) -> Path:
    rows = [
        {"image_id": int(image), "caption": caption}
        for image, captions in KIT["references"].items()
        for caption in captions
    ]
    path = tmp_path / "captions.json"
    path.write_text(
        json.dumps({"images": [{"id": int(image)} for image in KIT["references"]], "annotations": rows}),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return write(tmp_path / "one" / "results.json", KIT["predictions"])


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    return write(
        tmp_path / "one" / "worse.json",
        {image: " ".join(text.split()[:5]) for image, text in KIT["predictions"].items()},
    )


def test_json_has_full_precision_and_the_names_of_the_field(
    predictions: Path, references: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    shown = run(predictions, references, "--metrics", "bleu,rouge,cider", "--per-image", "--out", out).output
    assert "Bleu_1" in shown and "200 images" in shown and f"{100 * KIT['corpus']['CIDEr']:.2f}" in shown
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["corpus"] == pytest.approx(KIT["corpus"], abs=1e-12)
    assert list(content["corpus"]) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    first = next(iter(KIT["references"]))
    assert content["per_image"][first]["Bleu_4"] == pytest.approx(KIT["per_image"]["Bleu_4"][0], abs=1e-12)
    assert content["settings"]["comparable_with_coco_caption"] is True


def test_a_folder_gives_one_table(predictions: Path, worse: Path, references: Path) -> None:
    lines = run(predictions.parent, references, "--metrics", "cider").output.splitlines()
    assert [any(name in line for line in lines) for name in ("results", "worse")] == [True, True]


def test_compare_shows_interval_and_p_value(predictions: Path, worse: Path, references: Path) -> None:
    shown = run(
        predictions, references, "--metrics", "bleu,cider", "--compare", worse, "--resamples", "200"
    ).output
    assert "results against worse: paired bootstrap over images, 200 resamples" in shown
    assert "+" in shown and "0.010" in shown
    with pytest.raises(ConfigError, match="--compare takes one on each side"):
        run(predictions.parent, references, "--compare", worse, "--metrics", "bleu")


def test_intervals_hold_the_value(predictions: Path, references: Path) -> None:
    assert (
        "95 % interval"
        in run(predictions, references, "--metrics", "cider", "--intervals", "--resamples", "100").output
    )


def test_other_tokenizers_are_marked(predictions: Path, references: Path) -> None:
    shown = run(predictions, references, "--metrics", "bleu", "--tokenizer", "none").output
    assert "tokenizer none: NOT comparable with coco-caption" in shown


def test_missing_images_stop_it_unless_allowed(tmp_path: Path, references: Path) -> None:
    half = write(tmp_path / "half.json", dict(list(KIT["predictions"].items())[:150]))
    with pytest.raises(DataError, match="50 images .* without a prediction, 0 images without references"):
        run(half, references, "--metrics", "bleu")
    shown = run(half, references, "--metrics", "bleu", "--allow-missing").output
    assert "150 images; INCOMPLETE: up to 50 images left out, which only one side has" in shown


def test_duplicate_ids_stop_it(tmp_path: Path, references: Path) -> None:
    twice = tmp_path / "twice.json"
    twice.write_text(
        json.dumps([{"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}]), encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"1 ids stand more than once \(7\)"):
        run(twice, references)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds no predictions; expected an image_id and a caption of every image"),
        ("[{}]", r"row 0: expected an image_id and a caption \(a text\), found \{\}"),
        ('[{"image_id": 1, "caption": null}]', "row 0: expected an image_id and a caption"),
        ("[", "line 1: is not JSON"),
    ],
)
def test_malformed_predictions_are_named(
    tmp_path: Path, references: Path, content: str, message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        run(path, references)


def test_karpathy_files_are_read_by_split(tmp_path: Path) -> None:
    images = [
        {"cocoid": 1, "split": "test", "sentences": [{"raw": "A dog."}]},
        {"cocoid": 2, "split": "restval", "sentences": [{"raw": "A cat."}]},
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    assert (
        "1 image"
        in run(
            write(tmp_path / "p.json", {"1": "a dog"}), path, "--split", "test", "--metrics", "bleu"
        ).output
    )
    assert (
        "1 image"
        in run(
            write(tmp_path / "p.json", {"2": "a cat"}), path, "--split", "train", "--metrics", "bleu"
        ).output
    )
    with pytest.raises(
        DataError, match=r"no image belongs to split 'val'; the file has test \(1\), train \(1\)"
    ):
        run(tmp_path / "p.json", path, "--split", "val")


def test_a_text_file_per_image_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "3.txt").write_text("a dog runs\na brown dog\n", encoding="utf-8")
    assert "1 image" in run(write(tmp_path / "p.json", {"3": "a dog"}), folder, "--metrics", "rouge").output
    with pytest.raises(DataError, match="holds no splits"):
        run(tmp_path / "p.json", folder, "--split", "val")


def test_strict_counts_line_breaking_characters(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "45":
        (folder / f"{name}.txt").write_text("a dog", encoding="utf-8")
    path = write(tmp_path / "p.json", {"4": "a red\u2028bus", "5": "a dog"})
    with pytest.raises(
        DataError,
        match="the predictions hold a line-breaking character in 1 caption, .*shift the 1 caption after it",
    ):
        run(path, folder, "--strict")
    assert run(path, folder, "--metrics", "bleu").exit_code == 0


def test_diversity_with_the_training_captions(predictions: Path, references: Path) -> None:
    shown = run(predictions, references, "--metrics", "diversity", "--training", references).output
    assert "distinct_1" in shown and "unseen" in shown


def test_per_image_needs_a_file(predictions: Path, references: Path) -> None:
    with pytest.raises(ConfigError, match="--per-image writes the values to a file: name it with --out"):
        run(predictions, references, "--per-image")
    with pytest.raises(ConfigError, match="metric 'bleurt' does not exist"):
        run(predictions, references, "--metrics", "bleurt")
