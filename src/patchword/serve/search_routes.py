"""The routes of searches: words in, names and scores out, and a small copy of each picture that was found by
a route of its own.

The app is passed in with its `Service`, of which only the batcher, the threads, the limits and the index are
used."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse, Response

from patchword.html.page import clean
from patchword.search.thumbnails import is_key
from patchword.serve.abilities import Hit, Query
from patchword.serve.batching import Call
from patchword.serve.refusals import Refusal, configured, invalid_request
from patchword.serve.uploads import read_body, unless_gone

_LASTING = "private, max-age=31536000, immutable"
"""A copy is named by the content of its picture, so it never changes; it may be private, so only the asking
browser keeps it."""


class SearchRequest(BaseModel):
    """What to find."""

    text: str = Field(min_length=1, max_length=500)
    k: int = Field(12, ge=1, le=100, description="how many pictures")


_SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": SearchRequest.model_json_schema()}},
    }
}


class SearchHit(BaseModel):
    """One picture that a search gave."""

    name: str
    score: float
    picture: str = Field(description="path of a small copy; 404 where none can be had")


class SearchAnswer(BaseModel):
    """Pictures, best first."""

    hits: list[SearchHit]
    remarks: list[str] = Field(
        [], description="words that the model does not know, and what of a long text is left out"
    )


def add_search(app: FastAPI, service: Any) -> None:
    """Add `POST /search` and `GET /thumbnails/{key}`."""

    @app.post("/search", response_model=SearchAnswer, openapi_extra=_SEARCH_BODY)
    async def search(request: Request) -> Response:
        """Pictures of the index that fit a text."""
        configured(service.index, "an index", "searches")
        client = service.client(request)
        service.need_room(client)
        deadline = service.deadline()
        wanted = await _wanted(request, service)
        job = service.batcher.enter(Call("search", ()), wanted.text, 0, deadline, client)
        query: Query = await unless_gone(request, job.answer())
        hits = await service.beside(deadline, lambda: service.index.nearest(query, wanted.k))
        answer = SearchAnswer(
            hits=[_shown(hit) for hit in hits], remarks=[clean(one) for one in query.remarks]
        )
        return JSONResponse(answer.model_dump(mode="json"))

    @app.get("/thumbnails/{key}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def thumbnail(request: Request, key: str) -> Response:
        """A small copy of a picture that a search found, as a JPEG."""
        configured(service.index, "an index", "searches")
        headers = {"Cache-Control": _LASTING, "ETag": f'"{key}"'}
        if is_key(key) and request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        deadline = service.deadline()
        content = (
            await service.beside(deadline, lambda: service.index.thumbnail(key)) if is_key(key) else None
        )
        if content is None:
            do = "search again: a picture that moved or changed is found once it is indexed anew"
            raise Refusal(404, "no_copy", "there is no small copy of such a picture", do)
        return Response(content, media_type="image/jpeg", headers=headers)


async def _wanted(request: Request, service: Any) -> SearchRequest:
    body = await read_body(request, service.limits.json_bytes, service.limits, service.held)
    service.held.bytes -= len(body)
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(
            error.errors(include_url=False, include_input=False, include_context=False)
        ) from error


def _shown(hit: Hit) -> SearchHit:
    """A hit as JSON; a name that is no text is shown with marks in place of its bytes."""
    return SearchHit(name=clean(hit.name), score=hit.score, picture=f"/thumbnails/{hit.key}")
