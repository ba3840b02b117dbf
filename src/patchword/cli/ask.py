"""`patchword ask`: a question about a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from patchword.cli.outputs import (
    PAGES,
    AllowUrls,
    Overwrite,
    Shots,
    complain,
    print_json,
    refuse_existing,
    refuse_suffix,
)
from patchword.errors import ConfigError
from patchword.files import write_text
from patchword.lookup import import_torch


def ask(
    photo: Annotated[str, typer.Argument(help="The picture.")],
    question: Annotated[str, typer.Argument(help='The question, such as "is there a dog?".')],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="A question-answering model, or two towers for photographs: shipped name, folder, hub id. "
            "Left out: two-towers for photographs, easy-vqa for drawings like its own.",
        ),
    ] = None,
    n_best: Annotated[int, typer.Option("-n", "--n-best", min=1, help="How many answers.")] = 3,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object: image, question, answers with probabilities."),
    ] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Write a page that shows where each word of the question looked.")
    ] = None,
    shots: Shots = None,
    overwrite: Overwrite = False,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway", help="Answer even about a picture unlike all that the model was trained on."
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps; the best there is where left out.")
    ] = None,
    allow_urls: AllowUrls = False,
) -> None:
    """Answer a question about a picture, best answer first, each with its probability. Photographs can be
    asked "is there a dog?" and "what is it?"; other questions are refused, and so are pictures unlike those
    that a named model was trained on."""
    import_torch()
    from patchword.data.pictures import open_picture
    from patchword.tasks.answer.any_picture import load_any, preprocessing_of

    refuse_suffix("--explain", explain, PAGES)
    refuse_existing(overwrite, {"--explain": explain})
    picture = open_picture(photo, allow_urls=allow_urls)
    setattr(picture, "filename", photo)  # noqa: B010  # so that an error can name it
    if shots is not None:
        if model is None:
            raise ConfigError("--shots needs a few-shot model: name one with --model")
        _as_shown(picture, photo, question, model, shots, as_json, explain, device)
        return
    answerer = load_any(model, device)
    asked = answerer.explain(picture, question, n_best, anyway)
    unknown = answerer.unknown_words(question)
    if unknown:
        complain(f"the model never learnt {', '.join(unknown)}: the answer takes no notice of it")
    for remark in answerer.cut_off(question):
        complain(remark)
    if as_json:
        answers = [{"answer": answer.text, "probability": answer.probability} for answer in asked.answers]
        print_json({"image": photo, "question": question, "answers": answers})
    else:
        for answer in asked.answers:
            print(f"{answer.probability:.3f}  {answer.text}")
    if explain is not None:
        from patchword.data.pictures import seen_part
        from patchword.tasks.answer.page import answer_page

        seen = seen_part(picture, preprocessing_of(answerer))
        seen.thumbnail((480, 480))
        write_text(explain, answer_page([(Path(photo), seen, asked)]))


def _as_shown(
    picture: Any,
    photo: str,
    question: str,
    model: str,
    shots: Path,
    as_json: bool,
    explain: Path | None,
    device: str | None,
) -> None:
    """The one answer of a few-shot model after its examples."""
    from patchword.lookup import look_up
    from patchword.tasks.table import few_shots_of

    if explain is not None:
        raise ConfigError("--explain shows models that were trained to answer: leave it out with --shots")
    shown = look_up(few_shots_of(model))(model, device, shots)
    unknown = shown.model.unknown_words(question)
    if unknown:
        complain(f"the model never learnt {', '.join(unknown)}: the answer takes no notice of it")
    (answer,) = shown.model.ask([picture], question, shown.before)
    if as_json:
        print_json({"image": photo, "question": question, "answers": [{"answer": answer}]})
    else:
        print(answer)
