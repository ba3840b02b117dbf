"""The service: pictures in, captions out, over HTTP with JSON. Read `create_app` for the routes,
`batching.py` for what runs the model.

Everything it lets in is bounded by `Limits`; what it refuses is a `Refusal`, one JSON shape; `guards.py`
stands before every request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from patchword.checkpoints import facts as facts_of
from patchword.data.isolated import Upright
from patchword.html.page import look
from patchword.serve import abilities
from patchword.serve.abilities import CaptionAnswer, WordStreamer, caption_answer
from patchword.serve.asking import AnswerOption, AskAnswer, AskOptions, QuestionAnswerer, answered
from patchword.serve.batching import Batcher, Call, Job
from patchword.serve.decoders import Decoders
from patchword.serve.fairness import Client, Clients
from patchword.serve.guards import Guard
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers
from patchword.serve.painting import add_painting, painted
from patchword.serve.refusals import ErrorBody, Refusal, configured, full, invalid_request, stopping, too_late
from patchword.serve.search_routes import add_search
from patchword.serve.streaming import Words, WordStream, events, streamed
from patchword.serve.uploads import BodyBudget, read_picture, unless_gone
from patchword.tasks.paint.paint import Painter
from patchword.version import version

_BESIDE = 2  # threads for work that needs no model, such as searches
_BEAMS = 3

Result = TypeVar("Result")

Beams = Annotated[int, Query(ge=1, le=10, description="hypotheses that the search follows; 1 is greedy")]
Best = Annotated[int, Query(ge=1, le=5, description="hypotheses to return")]
Name = Annotated[
    str | None, Query(max_length=200, description="one of GET /models; the first where left out")
]
Question = Annotated[str, Query(min_length=1, max_length=500)]
Label = Annotated[str, Field(min_length=1, max_length=200)]

_PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The picture, as the body itself or as the file `image` of a form. Its kind is told "
        "by its content.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 415, 422, 503, 504)
}


class LabelAnswer(BaseModel):
    """Labels, best first."""

    answers: list[AnswerOption]


class ModelFacts(BaseModel):
    """A model that this service offers."""

    name: str
    description: str
    limits: str = Field(description="what it was not made for")
    example: str = Field("", description="a question like those that it was trained on")


class Models(BaseModel):
    """What this service offers."""

    models: list[ModelFacts]
    answerer: ModelFacts | None = Field(description="what answers questions")
    painter: ModelFacts | None = Field(None, description="what paints")
    can: dict[str, bool] = Field(
        description="which of caption, search, ask, label and paint this service was started for"
    )


class Status(BaseModel):
    """Whether the service runs."""

    status: str


class Service:
    """The state behind the routes, made within the event loop by the application's lifespan."""

    def __init__(
        self,
        models: Mapping[str, abilities.PictureCaptioner],
        index: abilities.PictureFinder | None,
        answers: QuestionAnswerer | None,
        labels: abilities.PictureLabeller | None,
        limits: Limits,
        numbers: Numbers,
        painter: Painter | None = None,
    ) -> None:
        self.models, self.index, self.answers, self.labels, self.limits, self.numbers = (
            models,
            index,
            answers,
            labels,
            limits,
            numbers,
        )
        self.painter = painter
        self.held, self.clients = BodyBudget(limits), Clients()
        self.ending = False
        """Set by a signal: what was accepted is finished, its picture may still be decoded, and nothing
        new is accepted."""

    def start(self) -> None:
        self.batcher = Batcher(self.run, self.limits, self.numbers)
        self.decoders = Decoders(self.limits, self.numbers)
        self.threads = ThreadPoolExecutor(_BESIDE, thread_name_prefix="patchword-beside")
        self._loop = asyncio.get_running_loop()

    def end_soon(self) -> None:
        """Accepts nothing new from now on, and answers what was accepted with 503 where it is not done within
        `limits.stop_seconds`. May be called from a signal handler."""
        self._loop.call_soon_threadsafe(self._end_soon)

    def _end_soon(self) -> None:
        self.ending = True
        self._loop.call_later(self.limits.stop_seconds, self._give_up)

    def _give_up(self) -> None:
        self.decoders.end()
        self.batcher.give_up()

    async def stop(self) -> None:
        await self.decoders.close()
        await self.batcher.close()
        self.threads.shutdown()

    def run(self, call: Call, items: Sequence) -> Sequence:
        """One batch, in the thread of the model; the routes refuse a call whose model there is not."""
        options: Any = call.options
        if call.ability == "caption":
            name, beams, n_best, trace = call.options
            return self.models[name].caption(list(items), beams=beams, n_best=n_best, trace=trace)
        if call.ability == "stream":
            # Each request has words of its own, so that such calls never share a batch.
            name, trace, words = options
            streamer: Any = self.models[name]
            return [streamed(streamer, picture, trace, words) for picture in items]
        if call.ability == "search" and self.index is not None:
            return self.index.read(list(items))
        if call.ability == "ask" and self.answers is not None:
            return answered(self.answers, items, options)
        if call.ability == "paint" and self.painter is not None:
            return painted(self.painter, items, options)
        if call.ability == "label" and self.labels is not None:
            return [self.labels.label(picture, list(options)) for picture in items]
        raise ValueError(f"no model of this service does {call.ability!r}")

    def model(self, name: str | None) -> str:
        chosen = next(iter(self.models)) if name is None else name
        if chosen not in self.models:
            known = ", ".join(self.models)
            raise Refusal(
                404,
                "unknown_model",
                f"there is no model {chosen!r} here",
                f"choose one of: {known}; GET /models lists them",
            )
        return chosen

    async def picture(self, request: Request) -> tuple[Upright, float]:
        """The picture of a request and the deadline of its answer; a full queue refuses before anything is
        read."""
        deadline, client = self.deadline(), self.client(request)
        self.need_room(client)
        found = await read_picture(request, self.limits, self.held, self.decoders, deadline, client)
        return found, deadline

    def client(self, request: Request) -> Client:
        """Whom the time that a request takes is counted to."""
        return self.clients.of(request.scope)

    def enter(
        self, request: Request, call: Call, upload: Upright, deadline: float, item: object = None
    ) -> Job:
        """Put a picture, or an item with one, into the queue."""
        picture = upload.picture
        weight = picture.width * picture.height
        item = picture if item is None else item
        return self.batcher.enter(call, item, weight, deadline, self.client(request))

    async def beside(self, deadline: float, work: Callable[[], Result]) -> Result:
        """Run work that needs no model in threads of its own. Raises `Refusal` when the deadline passes."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(
                loop.run_in_executor(self.threads, work), max(deadline - loop.time(), 0)
            )
        except asyncio.TimeoutError:
            raise too_late(self.limits.deadline_seconds) from None

    def need_room(self, client: Client) -> None:
        if self.ending or not self.batcher.has_room(client):
            over = self.ending or self.batcher.closing
            raise (stopping if over else full)(self.limits.retry_seconds)

    def deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.deadline_seconds


def create_app(
    models: Mapping[str, abilities.PictureCaptioner],
    *,
    index: abilities.PictureFinder | None = None,
    answers: QuestionAnswerer | None = None,
    labels: abilities.PictureLabeller | None = None,
    painter: Painter | None = None,
    token: str | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The application for these models (the first is the default) and, where given, an index, a question
    model, a labelling model and a painter.

    With `token`, requests must carry it; without, only requests to a loopback name are answered."""
    numbers = Numbers()
    service = Service(models, index, answers, labels, limits or Limits(), numbers, painter)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    # The interactive documentation pages would load scripts from elsewhere: only the document itself is
    # served.
    app = FastAPI(
        title="Patchword",
        version=version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_REFUSED,
    )
    app.state.service = service
    _add_captions(app, service)
    _add_others(app, service)
    add_search(app, service)
    add_painting(app, service)
    _add_facts(app, service)
    _add_page(app)
    _add_refusals(app)
    app.add_middleware(
        Guard,
        token=token,
        numbers=numbers,
        paths=paths_of(app),
        limits=service.limits,
        clients=service.clients,
        ending=lambda: service.ending,
    )
    return app


def paths_of(app: FastAPI) -> frozenset[str]:
    """The paths of the application's routes."""
    return frozenset(route.path for route in app.routes if hasattr(route, "path"))


def _add_captions(app: FastAPI, service: Service) -> None:
    @app.post("/caption", response_model=CaptionAnswer, openapi_extra=_PICTURE_BODY)
    async def caption(
        request: Request,
        model: Name = None,
        beams: Beams | None = None,
        n_best: Best = 1,
        trace: bool = False,
        stream: bool = False,
    ) -> Response:
        """Caption one picture. With `trace`, say what made each word. With `stream`, or where the request
        accepts text/event-stream, send server-sent events: `queued`, a `word` each, and `caption` with the
        whole answer. Words are sent as they are made, by greedy search. With `beams` or `n_best` of more
        than one (3 beams where left out and nothing is streamed) they arrive together, for a search knows
        its first word only when it has ended; until then the words of greedy search are sent as `draft`.
        From models that cannot stream they arrive together without a draft."""
        name = service.model(model)
        as_events = stream or "text/event-stream" in request.headers.get("accept", "")
        greedy = as_events and beams in (None, 1) and n_best == 1
        search = Call("caption", (name, 1 if greedy else max(beams or _BEAMS, n_best), n_best, trace))
        upload, deadline = await service.picture(request)

        async def answer(job: Job) -> CaptionAnswer:
            return caption_answer(name, service.models[name], await job.answer(), upload, trace)

        def telling(call: Call, words: Words | None = None) -> WordStream:
            job = service.enter(request, call, upload, deadline)
            return WordStream(service.batcher, job, answer(job), words)

        if not as_events:
            job = service.enter(request, search, upload, deadline)
            return JSONResponse((await unless_gone(request, answer(job))).model_dump(mode="json"))
        if isinstance(service.models[name], WordStreamer):
            words = Words()
            first = telling(Call("stream", (name, trace and greedy, words)), words)
            then = None if greedy else lambda: telling(search)
        else:
            first, then = telling(search), None
        return StreamingResponse(events(service.batcher.waiting, first, then), media_type="text/event-stream")


def _add_others(app: FastAPI, service: Service) -> None:
    @app.post("/ask", response_model=AskAnswer, openapi_extra=_PICTURE_BODY)
    async def ask(
        request: Request, question: Question, trace: bool = False, anyway: bool = False
    ) -> Response:
        """Answers to a question about a picture, best first. With `trace`, say where the words of the
        question looked; with `anyway`, answer about pictures unlike those that the model was trained on,
        too."""
        configured(service.answers, "a question model", "answers questions")
        upload, deadline = await service.picture(request)
        call = Call("ask", AskOptions(trace, anyway))
        job = service.enter(request, call, upload, deadline, (upload.picture, question))
        return JSONResponse((await unless_gone(request, job.answer())).model_dump(mode="json"))

    @app.post("/label", response_model=LabelAnswer, openapi_extra=_PICTURE_BODY)
    async def label(
        request: Request, label: Annotated[list[Label], Query(min_length=1, max_length=100)]
    ) -> Response:
        """Which of the given labels fits a picture, best first."""
        configured(service.labels, "a labelling model", "labels pictures")
        upload, deadline = await service.picture(request)
        job = service.enter(request, Call("label", tuple(label)), upload, deadline)
        found = await unless_gone(request, job.answer())
        return JSONResponse(
            LabelAnswer(
                answers=[AnswerOption(text=text, probability=share) for text, share in found]
            ).model_dump(mode="json")
        )


def _facts(name: str, facts: facts_of.ModelFacts) -> ModelFacts:
    return ModelFacts(name=name, description=facts.description, limits=facts.limits, example=facts.example)


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/models", response_model=Models)
    async def models() -> Models:
        abilities = {
            "search": service.index,
            "ask": service.answers,
            "label": service.labels,
            "paint": service.painter,
        }
        painter = service.painter
        return Models(
            painter=None if painter is None else _facts(painter.facts.name, painter.facts),
            models=[_facts(name, model.facts) for name, model in service.models.items()],
            answerer=None
            if service.answers is None
            else _facts(service.answers.facts.name, service.answers.facts),
            can={"caption": True, **{name: ability is not None for name, ability in abilities.items()}},
        )

    @app.get("/health", response_model=Status)
    async def health() -> Status:
        """The process answers."""
        return Status(status="ok")

    @app.get("/ready", response_model=Status)
    async def ready(request: Request) -> Status:
        """A request sent now would be taken: 503 while the queue is full or the service is ending."""
        service.need_room(service.client(request))
        return Status(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        return PlainTextResponse(
            service.numbers.text(service.batcher.waiting), media_type="text/plain; version=0.0.4"
        )


def _add_page(app: FastAPI) -> None:
    """The page and its files, kept in memory: no path of a request ever reaches the disk."""
    folder = resources.files("patchword.serve")
    files = {
        "/": ("text/html", folder.joinpath("page.html").read_text(encoding="utf-8")),
        "/page.js": ("text/javascript", folder.joinpath("page.js").read_text(encoding="utf-8")),
        "/words.js": ("text/javascript", folder.joinpath("words.js").read_text(encoding="utf-8")),
        "/page.css": ("text/css", look() + folder.joinpath("page.css").read_text(encoding="utf-8")),
    }
    for path, (kind, content) in files.items():
        app.add_route(path, _handler(kind, content), methods=["GET"], include_in_schema=False)


def _handler(kind: str, content: str):
    async def send(request: Request) -> Response:
        return Response(content, media_type=kind)

    return send


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return invalid_request(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        do = "GET /openapi.json lists the paths and their methods"
        return Refusal(
            error.status_code, "no_such_path", f"{error.detail}", do, dict(error.headers or {})
        ).response()
