"""The route that paints: a text in, marked PNG files out. It is there where a painter was named.

The app is passed in with its `Service`, of which only the batcher, the limits and the painter are used."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse, Response

from patchword.errors import ConfigError, DataError
from patchword.html.page import clean
from patchword.serve.batching import Call
from patchword.serve.refusals import Refusal, configured, invalid_request
from patchword.serve.uploads import read_body, unless_gone
from patchword.tasks.paint.marks import marked_png
from patchword.tasks.paint.paint import Order, Painter, facts_of

MOST = 8
"""Pictures of one request: they are painted together, and others wait for them."""


class PaintRequest(BaseModel):
    """What to paint."""

    prompt: str = Field(min_length=1, max_length=500)
    number: int = Field(4, ge=1, le=MOST, description="how many pictures")
    seed: int = Field(1, ge=0, le=2**62, description="of the first picture; the others count up from it")
    guidance: float | None = Field(None, ge=0, le=50, description="how much the text counts")
    steps: int | None = Field(None, ge=1, le=1000, description="from noise to picture")


class PaintOptions(NamedTuple):
    """What may share a batch."""

    guidance: float | None
    steps: int | None


class QueuedPainting(NamedTuple):
    """One request in the queue."""

    prompt: str
    seeds: Sequence[int]


class PaintedPicture(BaseModel):
    """One picture."""

    seed: int
    png: str = Field(description="the file in base64; it carries the mark that it is generated")


class PaintAnswer(BaseModel):
    """Pictures in the order of their seeds."""

    pictures: list[PaintedPicture]
    remarks: list[str] = Field([], description="words that the model does not know, and what is cut off")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": PaintRequest.model_json_schema()}},
    }
}


def painted(painter: Painter, items: Sequence[QueuedPainting], options: PaintOptions) -> list[PaintAnswer]:
    """The pictures of each request, in the thread of the model. Raises `Refusal` for what it cannot paint."""
    answers = []
    for wanted in items:
        order = Order(wanted.prompt, wanted.seeds, painter.facts.name, options.guidance, options.steps)
        try:
            painter.check(wanted.prompt)
            pixels = painter.paint(wanted.prompt, wanted.seeds, options.guidance, options.steps)
        except (DataError, ConfigError) as error:
            raise Refusal(422, "not_painted", str(error), "ask for something else") from error
        facts = facts_of(painter, order)
        files = [
            marked_png(one, {**facts, "seed": seed}) for one, seed in zip(pixels, wanted.seeds, strict=True)
        ]
        answers.append(
            PaintAnswer(
                pictures=[
                    PaintedPicture(seed=seed, png=base64.b64encode(file).decode("ascii"))
                    for seed, file in zip(wanted.seeds, files, strict=True)
                ],
                remarks=[clean(remark) for remark in painter.remarks(wanted.prompt)],
            )
        )
    return answers


def add_painting(app: FastAPI, service: Any) -> None:
    """Add `POST /paint`."""

    @app.post("/paint", response_model=PaintAnswer, openapi_extra=_BODY)
    async def paint(request: Request) -> Response:
        """Pictures of a text, each with the seed that repeats it."""
        configured(service.painter, "a painter", "paints")
        client = service.client(request)
        service.need_room(client)
        deadline = service.deadline()
        body = await read_body(request, service.limits.json_bytes, service.limits, service.held)
        service.held.bytes -= len(body)
        try:
            asked = PaintRequest.model_validate_json(body)
        except ValidationError as error:
            raise invalid_request(
                error.errors(include_url=False, include_input=False, include_context=False)
            ) from error
        wanted = QueuedPainting(asked.prompt, tuple(range(asked.seed, asked.seed + asked.number)))
        call = Call("paint", PaintOptions(asked.guidance, asked.steps))
        job = service.batcher.enter(call, wanted, 0, deadline, client)
        answer: PaintAnswer = await unless_gone(request, job.answer())
        return JSONResponse(answer.model_dump(mode="json"))
