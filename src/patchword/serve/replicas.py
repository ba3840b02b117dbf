"""Several copies of the service behind one address, on Ray Serve: `patchword serve --replicas N`.

    client -> this process: the limits of the service (connections, bodies, who may ask), counters
           -> Ray Serve: which replica, and a new one where one is gone
           -> a replica: the whole application of `app.py` with its models

A request is sent to one replica as it came, and the answer comes back message by message, so that routes,
refusals and streams are those of one process. Ray's own HTTP server is not used: it would neither know the
limits nor say what became of a request. Where a replica is killed, its requests get 503 with Retry-After, or
a connection that ends where the answer had begun; none is answered twice or by something else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from patchword.errors import ConfigError, MissingExtra
from patchword.jobs.cluster import connect
from patchword.jobs.files import anywhere
from patchword.lookup import import_torch, look_up
from patchword.serve.app import create_app, paths_of
from patchword.serve.fairness import Clients
from patchword.serve.guards import Guard
from patchword.serve.limits import Limits
from patchword.serve.memory import settle
from patchword.serve.numbers import Numbers
from patchword.serve.refusals import ClientGone, Refusal, stopping, too_late
from patchword.serve.uploads import BodyBudget, read_body, unless_gone
from patchword.tasks.table import task_of

NAME = "patchword"
_SCOPE: tuple[str, ...] = ("type", "asgi", "http_version", "scheme", "method", "root_path", "path")
_SCOPE += ("raw_path", "query_string", "headers", "client", "server")
_GRACE = 5.0
"""Seconds beyond the deadline of an answer after which a replica that says nothing is taken for gone."""

log = logging.getLogger("patchword.serve")


class Tally(NamedTuple):
    """What a replica has counted since it began; it comes with every answer."""

    replica: str
    batches: int
    batched: int
    model_seconds: float
    cancelled: int
    decoders_ended: int


class Replica:
    """What Ray Serve runs N times: the application, called without a server of its own."""

    def __init__(self, make: Callable[[], Any]) -> None:
        """`make` gives the application."""
        self._app = make()
        self._name = uuid.uuid4().hex
        self._running: set[asyncio.Task] = set()
        self._begun: asyncio.Task | None = None

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message | Tally]:
        """The messages of an answer, and before the last what this replica has counted."""
        if self._begun is None:
            self._begun = asyncio.ensure_future(self._begin())
        await self._begun
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone, bodies = asyncio.Event(), [body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(self._app(scope, receive, messages.put))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda done: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if _is_last(message):
                    yield self._tally()
                yield message
            await task
        finally:
            gone.set()  # the application ends what nobody waits for

    async def _begin(self) -> None:
        await self._app.router.lifespan_context(self._app).__aenter__()

    def _tally(self) -> Tally:
        counted = self._app.state.service.numbers
        numbers = (counted.batches, counted.batched, counted.model_seconds)
        return Tally(self._name, *numbers, counted.cancelled, counted.decoders_ended)


class Front:
    """The application of this process: lets in what the service lets in, and has it answered elsewhere."""

    def __init__(
        self,
        ask: Callable[[dict[str, Any], bytes], Any],
        paths: frozenset[str],
        token: str | None,
        limits: Limits,
    ) -> None:
        """`ask`: (scope, body) -> the messages of a replica, as an asynchronous iterator with `cancel`."""
        self._ask, self._limits, self._held = ask, limits, BodyBudget(limits)
        self.numbers = Numbers()
        self._tallies: dict[str, Tally] = {}
        self._relays: set[asyncio.Future] = set()
        self.ending = self._given_up = False
        ending, clients = lambda: self.ending, Clients()  # a replica tells clients apart itself
        self._guarded = Guard(self._admitted, token, self.numbers, paths, limits, clients, ending)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        if scope["type"] == "lifespan":
            for said in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{said}.complete"})
        else:
            await self._guarded(scope, receive, send)

    def end_soon(self) -> None:
        """As `Service.end_soon`; may be called from a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_soon)

    def _end_soon(self) -> None:
        self.ending = True
        asyncio.get_running_loop().call_later(self._limits.stop_seconds, self._give_up)

    def _give_up(self) -> None:
        self._given_up = True
        for relay in self._relays:
            relay.cancel()

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/metrics" and scope["method"] == "GET":
            counted = self.counted().text(len(self._relays))
            answer = PlainTextResponse(counted, media_type="text/plain; version=0.0.4")
            await answer(scope, receive, send)
            return
        if self.ending:
            raise stopping(self._limits.retry_seconds)
        request = Request(scope, receive)
        body = await read_body(request, self._limits.body_bytes, self._limits, self._held)
        try:
            sent = asyncio.Event()
            relay = asyncio.ensure_future(self._relayed(scope, bytes(body), send, sent))
            self._relays.add(relay)
            relay.add_done_callback(self._relays.discard)
            await unless_gone(request, relay)
        except ClientGone:
            if not sent.is_set():  # who has the whole answer may go
                raise
        finally:
            self._held.release(body)

    async def _relayed(self, scope: Scope, body: bytes, send: Send, sent: asyncio.Event) -> None:
        """Have a request answered; `sent` is set when all of it is. Raises `Refusal` where its replica is
        gone before the answer began."""
        begun = False
        messages = self._ask({name: scope[name] for name in _SCOPE if name in scope}, body)
        try:
            while (message := await self._next(messages)) is not None:
                if isinstance(message, Tally):
                    self._tallies[message.replica] = message
                    continue
                begun = True
                await send(message)
                if _is_last(message):
                    sent.set()
        except asyncio.TimeoutError:
            raise too_late(self._limits.deadline_seconds) from None
        except asyncio.CancelledError:
            messages.cancel()
            if self._given_up and not begun:
                raise stopping(self._limits.retry_seconds) from None
            raise
        except Exception as error:
            if not _is_gone(error):
                raise
            log.warning("a replica is gone: %s", type(error).__name__)
            if begun:  # an answer that had begun cannot be taken back: its connection ends, counted as 499
                raise ClientGone from error
            raise replica_gone(self._limits.retry_seconds) from error

    async def _next(self, messages: Any) -> Message | Tally | None:
        wait = self._limits.deadline_seconds + _GRACE
        try:
            found: Message | Tally = await asyncio.wait_for(messages.__anext__(), wait)
        except StopAsyncIteration:
            return None
        return found

    def counted(self) -> Numbers:
        """The requests of this process, and what all replicas have counted, those that are gone included."""
        whole = Numbers()
        whole.requests, whole.seconds = self.numbers.requests, self.numbers.seconds
        for one in self._tallies.values():
            whole.batches += one.batches
            whole.batched += one.batched
            whole.model_seconds += one.model_seconds
            whole.cancelled += one.cancelled
            whole.decoders_ended += one.decoders_ended
        return whole


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def replica_gone(retry_seconds: int) -> Refusal:
    """The replica that had a request is gone."""
    return Refusal(
        503,
        "replica_gone",
        "the copy of the service that had this request is gone, and a new one is being started",
        f"try again in {retry_seconds} seconds",
        {"Retry-After": str(retry_seconds)},
    )


def _is_gone(error: Exception) -> bool:
    """Whether Ray says that a replica, or every one, cannot answer."""
    from ray.exceptions import RayActorError, RayTaskError
    from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

    if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
        return False
    return isinstance(error, RayActorError | DeploymentUnavailableError | RayServeException)


@contextmanager
def deployed(settings: Mapping[str, Any], replicas: int, cluster: str) -> Iterator[Front]:
    """The application in front of so many replicas, which end with this context; `settings` are the arguments
    of `serve.loading:app_of`. Raises as `Deployed` does, and ModelError
    where there is no such model."""
    for name in settings["names"]:
        task_of(name)  # what is no model is said before Ray is started
    absolute = {**settings, "names": [anywhere(name) for name in settings["names"]]}
    if settings["index"] is not None:
        absolute["index"] = anywhere(settings["index"])
    limits: Limits = settings["limits"]
    running = Deployed(partial(application, absolute), replicas, cluster, limits)
    try:
        yield Front(running.ask, paths_of(create_app({})), settings["token"], limits)
    finally:
        running.close()


def application(settings: Mapping[str, Any]) -> Any:
    """The application of a replica: only there models, and what they need, are loaded."""
    import_torch()
    made = look_up("serve.loading:app_of")(**settings)
    settle()
    return made


class Deployed:
    """Replicas that run; to be ended by `close`."""

    def __init__(self, make: Callable[[], Any], replicas: int, cluster: str, limits: Limits) -> None:
        """Start Ray where it does not run, and the replicas, and wait until each has loaded its models.

        Raises:
            MissingExtra: Ray Serve is not installed.
            ConfigError: no such cluster can be reached, or a replica cannot begin.
        """
        self._ray, self._serve = load_serve()
        if cluster.startswith("ray://"):
            raise ConfigError(
                f"--cluster {cluster}: requests go from this process to the replicas, so it must run on a "
                "machine of the cluster: start it there with --cluster auto"
            )
        connect(self._ray, cluster, max(replicas, os.cpu_count() or 1))
        try:
            gpus = 1 if self._ray.cluster_resources().get("GPU", 0) else 0
            self._serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            deployment = self._serve.deployment(
                Replica,
                name=NAME,
                num_replicas=replicas,
                max_ongoing_requests=limits.connections,
                ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
                health_check_period_s=2,
                health_check_timeout_s=60,
                graceful_shutdown_timeout_s=limits.stop_seconds,
                max_constructor_retry_count=2,
                logging_config={"log_level": "ERROR", "enable_access_log": False},
            )
            handle = self._serve.run(deployment.bind(make), name=NAME, route_prefix=None)
        except RuntimeError as error:
            self.close()
            said = " ".join(str(error).split())[:300]
            raise ConfigError(f"--replicas {replicas}: the replicas could not begin ({said})") from error
        self._answer = handle.options(stream=True, method_name="answer")

    def ask(self, scope: dict[str, Any], body: bytes) -> Any:
        """The messages of a replica that Ray Serve chooses."""
        return self._answer.remote(scope, body)

    def close(self) -> None:
        """End the replicas, and Ray where it was started here."""
        self._serve.shutdown()
        self._ray.shutdown()


def load_serve() -> tuple[Any, Any]:
    """Ray and Ray Serve. Raises MissingExtra where they are not installed."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingExtra(
            f"--replicas needs Ray Serve ({error.name} is missing): pip install 'patchword[replicas]'"
        ) from error
    return ray, serve
