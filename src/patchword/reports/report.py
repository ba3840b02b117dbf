"""Builds report.html of a training: curves, scores, warnings and sample captions from a run folder.

`runs.py` describes the folder.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from patchword.data.isolated import PictureReader
from patchword.errors import PictureError, counted
from patchword.html.page import Html, escape, join, name, note, number, page, section, table, tiles, warning
from patchword.html.pictures import picture_uri
from patchword.reports.curves import Curve, curve_figure
from patchword.reports.runs import Run, part, read_run, real, training_seconds

_SAMPLES = 24
_SHEETS = 4
_VALIDATIONS = 60
_LOST_AFTER = 3  # validations without a better CIDEr before the report warns


def training_report(run_folder: Path | str, pictures: Path | str | None = None) -> str:
    """Builds a self-contained HTML document.

    `pictures` is the folder of the sample pictures; only then are they embedded, because a data set may
    forbid passing them on. An empty, unfinished or damaged run gives a page that says so.
    """
    run = read_run(run_folder)
    parts = [_facts(run), *map(warning, _warnings(run))]
    if run.steps or run.validations:
        parts.append(_curves(run))
    if run.validations:
        parts.append(_scores(run))
    if run.samples:
        parts.append(_samples(run, None if pictures is None else Path(pictures)))
    if run.predictions:
        parts.append(_predictions(run))
    sheets = sorted(Path(run_folder).glob("sheets/*.png"))
    if sheets:
        parts.append(_sheets(sheets))
    if run.config:
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in _flat(run.config)]
        listed = table(["setting", "value"], rows)
        parts.append(
            section(
                "Configuration",
                Html(f"<details><summary>{counted(len(rows), 'setting')}</summary>{listed}</details>"),
            )
        )
    return page(f"Training: {run.name}", parts)


def _facts(run: Run) -> Html:
    if not run.steps and not run.validations:
        return note("No step was recorded: the run has not begun, or its folder is another one.")
    last = (run.steps or run.validations)[-1]
    facts = [("last step", number(last["at"]))]
    if "epoch" in last:
        facts.append(
            (
                f"last epoch of {last['stage']}" if len(run.stages) > 1 else "last epoch",
                number(real(last["epoch"])),
            )
        )
    seconds, measured = training_seconds(run)
    if measured:
        facts.append(("time", _duration(seconds)))
    speeds = _finite(run.steps, "images_per_second")
    if speeds:
        facts.append(("images per second (median)", number(speeds[len(speeds) // 2])))
    for metric in ("CIDEr", "Bleu_4"):
        best = _best(run, metric)
        if best:
            facts.append((f"best {metric}, at step {number(best[1])}", f"{best[0]:.3f}"))
    facts.append(("steps skipped", number(len(run.skipped))))
    return tiles(facts)


def _finite(events: list[dict], key: str) -> list[float]:
    """Returns the finite values of all events in ascending order."""
    return sorted(value for value in (real(event.get(key)) for event in events) if math.isfinite(value))


def _best(run: Run, metric: str) -> tuple[float, float] | None:
    scored = [(real(part(event, "scores").get(metric)), event["at"]) for event in run.validations]
    return max((pair for pair in scored if math.isfinite(pair[0])), default=None, key=lambda pair: pair[0])


def _warnings(run: Run) -> Iterable[str]:
    yield from run.troubles
    if run.skipped:
        last = run.skipped[-1]
        ids = last.get("image_ids")
        ids = (
            ", ".join(map(str, ids[:8])) + (", …" if len(ids) > 8 else "")
            if isinstance(ids, list)
            else "not recorded"
        )
        skipped = counted(len(run.skipped), "step")
        when = f"last at step {number(last['at'])} (image ids: {ids})"
        yield f"{skipped} skipped for a loss that was not finite, {when}."
    if run.steps and not run.validations:
        yield "There was no validation yet: nothing here says how good the model is."
    best = _best(run, "CIDEr")
    since = sum(event["at"] > best[1] for event in run.validations) if best else 0
    if best and since >= _LOST_AFTER:
        yield f"CIDEr was best at step {number(best[1])}; none of the {since} validations since was better."
    for file, rows in run.predictions.items():
        empty = sum(not text.strip() for text in _said(rows))
        if empty:
            yield f"{empty} of {len(rows)} {_kind(run)}s in predictions/{file} are empty."


def _curves(run: Run) -> Html:
    """Draws the curves; decoded scores and those under teacher forcing are in separate figures."""
    marks = run.stages if len(run.stages) > 1 else []

    def figure(title: str, curves: Iterable[Curve]) -> Html:
        return curve_figure(title, list(curves), "step", marks)

    steps, checks = run.steps, run.validations
    forced_losses = [
        _curve("validation, teacher forcing", checks, lambda event: part(event, "teacher_forced").get("loss"))
    ]
    names = _names(steps, "losses", leave={"loss"})
    captions = [metric for metric in _names(checks, "scores") if metric != "CIDEr"]
    scores = (
        "Scores" if len(captions) == len(_names(checks, "scores")) else "Other scores of decoded captions"
    )
    figures = [
        figure("Loss", [_curve("training", steps, lambda event: event.get("loss")), *forced_losses]),
        figure(
            "CIDEr of decoded captions",
            [_curve("CIDEr", checks, lambda event: part(event, "scores").get("CIDEr"))],
        ),
        figure(scores, _nested(checks, "scores", captions)),
        figure(
            "Under teacher forcing",
            _nested(checks, "teacher_forced", _names(checks, "teacher_forced", leave={"loss"})),
        ),
        figure("Parts of the loss", _nested(steps, "losses", names)) if len(names) > 1 else Html(),
        *_model_curves(steps, figure),
        figure("Learning rates", _nested(steps, "learning_rates", _names(steps, "learning_rates"))),
        figure("Gradient norm", [_curve("gradient norm", steps, lambda event: event.get("gradient_norm"))]),
        figure(
            "Images per second", [_curve("images/s", steps, lambda event: event.get("images_per_second"))]
        ),
    ]
    return section("Curves", Html(f'<div class="curves">{join(figures)}</div>'))


def _model_curves(steps: list[dict], figure: Callable[[str, Iterable[Curve]], Html]) -> list[Html]:
    """Draws what a recipe measured of its model while training; figures without values are empty."""
    shown = {
        "Attention on prototypes": "memory_attention_",
        "Live prototypes": "prototypes_live_",
        "Prototype bank, share filled": "bank_fill",
        "Concepts in use, words of the codebook": "concepts_in_use",
        "Entropy of the concepts' shares, nats": "concept_entropy",
        "Share of a self-critical step spent on rewards": "reward_share",
    }
    figures = []
    for title, beginning in shown.items():
        keys = sorted({key for event in steps for key in event if key.startswith(beginning)})
        labels = [
            f"layer {key.removeprefix(beginning)}" if beginning.endswith("_") else key.replace("_", " ")
            for key in keys
        ]
        curves = [
            _curve(label, [event for event in steps if key in event], _value(key))
            for label, key in zip(labels, keys, strict=True)
        ]
        figures.append(figure(title, curves))
    return figures


def _value(key: str) -> Callable[[dict], object]:
    return lambda event: event[key]


def _curve(label: str, events: list[dict], value) -> Curve:
    found = [(event["at"], real(value(event))) for event in events]
    return Curve(label, [at for at, _ in found], [y for _, y in found])


def _nested(events: list[dict], key: str, names: Iterable[str]) -> list[Curve]:
    """Skips events without the value, so that a score that is not computed every time is still one line."""
    return [
        _curve(
            n, [event for event in events if n in part(event, key)], lambda event, n=n: part(event, key)[n]
        )
        for n in names
    ]


def _names(events: list[dict], key: str, leave: frozenset[str] | set[str] = frozenset()) -> list[str]:
    return [n for n in dict.fromkeys(n for event in events for n in part(event, key)) if n not in leave]


def _scores(run: Run) -> Html:
    metrics, forced = _names(run.validations, "scores"), _names(run.validations, "teacher_forced")

    def shown(value: object) -> str:
        return "–" if value is None else f"{real(value):.4f}"

    rows = [
        (
            f"{event['at']:.0f}",
            str(event.get("epoch", "–")),
            *(shown(part(event, "scores").get(metric)) for metric in metrics),
        )
        + tuple(shown(part(event, "teacher_forced").get(metric)) for metric in forced)
        for event in run.validations[-_VALIDATIONS:]
    ]
    head = ["step", "epoch", *metrics, *(f"{metric}, teacher forcing" for metric in forced)]
    left = len(run.validations) - len(rows)
    more = note(f"The first {left} validations are not listed.") if left else ""
    return section("Validation", table(head, rows), more)


def _sheets(sheets: list[Path]) -> Html:
    """The sheets of painted samples that validations left, the newest first."""
    cards = []
    with PictureReader() as reader:
        for sheet in sheets[: -_SHEETS - 1 : -1]:
            try:
                uri = picture_uri(reader.open(sheet), 720)
            except PictureError as error:
                cards.append(warning(error))
                continue
            shown = f'<img src="{uri}" alt="painted samples" style="max-width:100%">'
            cards.append(Html(f"<figure>{shown}<figcaption>{escape(sheet.stem)}</figcaption></figure>"))
    left = len(sheets) - len(cards)
    more = note(f"{left} earlier sheets lie in the folder sheets.") if left else ""
    return section("Painted samples", note("Generated pictures, always with the same seeds."), *cards, more)


def _samples(run: Run, pictures: Path | None) -> Html:
    cards = []
    with PictureReader() as reader:
        for sample in run.samples[:_SAMPLES]:
            references = sample.get("references")
            listed = (
                "".join(f"<li>{escape(reference)}</li>" for reference in references)
                if isinstance(references, list)
                else ""
            )
            file = sample.get("file", sample.get("image_id", ""))
            cards.append(
                f'<div class="sample">{sample_picture(pictures, sample, reader)}'
                + (f"<p>{escape(sample['question'])}</p>" if "question" in sample else "")
                + f"<b>{escape(sample.get('caption', sample.get('answer', '')))}</b>"
                f'<p class="soft">{name(file)}</p>' + (f"<ul>{listed}</ul>" if listed else "") + "</div>"
            )
    lead = "In bold what the model says, below what people said."
    more = f" The first {_SAMPLES} of {len(run.samples)}." if len(run.samples) > _SAMPLES else ""
    title = "Sample answers" if "question" in run.samples[0] else "Sample captions"
    return section(title, note(lead + more), Html(f'<div class="samples">{"".join(cards)}</div>'))


def sample_picture(pictures: Path | None, sample: dict, reader: PictureReader) -> str:
    """Embeds the sample's picture, and only from inside the folder, whatever the file name says."""
    file = sample.get("file", sample.get("image_id", ""))
    if pictures is None or not isinstance(file, str):
        return ""
    path = (pictures / file).resolve()
    if not path.is_relative_to(pictures.resolve()):
        return str(note("(the picture lies outside of the folder of pictures)"))
    try:
        picture = reader.open(path, name=file)
    except PictureError as error:
        return str(note(f"(the picture cannot be shown: {error})"))
    return f'<img alt="{escape(sample.get("caption", ""))}" src="{picture_uri(picture, longest=320)}">'


def _predictions(run: Run) -> Html:
    rows = []
    for file, results in run.predictions.items():
        captions = _said(results)
        words = [word for caption in captions for word in caption.split()]
        often = Counter(captions).most_common(1)
        rows.append(
            (
                name(file),
                len(captions),
                len(set(captions)),
                len(set(words)),
                len(words) / max(len(captions), 1),
                *_often(often),
            )
        )
    kind = _kind(run)
    head = [
        "file",
        f"{kind}s",
        "different ones",
        "different words",
        f"words per {kind}",
        "times",
        f"most frequent {kind}",
    ]
    return section("Predictions", table(head, rows))


def _said(rows: list[dict]) -> list[str]:
    """Returns the captions of COCO results, or the answers of VQA results."""
    return [str(row.get("caption", row.get("answer", ""))) for row in rows]


def _kind(run: Run) -> str:
    return (
        "answer"
        if any("answer" in row for rows in run.predictions.values() for row in rows[:1])
        else "caption"
    )


def _often(often: list[tuple[str, int]]) -> tuple[object, object]:
    return (often[0][1], often[0][0]) if often else (None, "–")


def _flat(config: dict, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )
