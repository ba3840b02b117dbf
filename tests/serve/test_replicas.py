"""Several replicas behind one address: the answers of one process, and what becomes of requests whose replica
is gone.
"""

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from patchword.checkpoints.facts import ModelFacts
from patchword.errors import ConfigError
from patchword.serve.app import create_app, paths_of
from patchword.serve.limits import Limits
from patchword.serve.replicas import Deployed, Front, Replica
from patchword.tasks.caption.result import Caption

LIMITS = Limits(batch=4, deadline_seconds=20)
TOKEN = "a token of sixteen letters"


class Colours:
    """Says the mean colour of a picture, so that a swapped answer is seen."""

    def __init__(self, seconds=0.0):
        self.facts = ModelFacts(name="fake", description="says colours", limits="knows nothing else")
        self.seconds = seconds

    def caption(self, pictures, beams=3, n_best=1, trace=False):
        time.sleep(self.seconds)
        colours = [[str(int(value)) for value in np.asarray(picture).mean((0, 1))] for picture in pictures]
        return [Caption(" ".join(["colour", *one]), -2.0, ("colour", *one)) for one in colours]


def png(colour=(200, 10, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(buffer, "PNG")
    return buffer.getvalue()


class Here:
    """In place of Ray Serve: replicas in this process, asked one after the other."""

    def __init__(self, *apps):
        self.replicas = [Replica(lambda app=app: app) for app in apps]
        self.asked, self.cancelled, self.fails_after = 0, 0, None

    def ask(self, scope, body):
        assert all(key in ("type", "asgi", "http_version", "scheme", "method", "root_path", "path", "raw_path",
                           "query_string", "headers", "client", "server") for key in scope)  # fmt: skip
        self.asked += 1
        return Messages(self, self.replicas[self.asked % len(self.replicas)].answer(scope, body))


class Messages:
    def __init__(self, here, messages):
        self.here, self.messages, self.count = here, messages, 0

    async def __anext__(self):
        if self.here.fails_after == self.count:
            await self.messages.aclose()
            self.here.fails_after = None
            raise self.here.error
        self.count += 1
        return await self.messages.__anext__()

    def cancel(self):
        self.here.cancelled += 1
        asyncio.ensure_future(self.messages.aclose())


def front_of(*models, limits=LIMITS, token=None):
    here = Here(*(create_app({"fake": model}, limits=limits, token=token) for model in models))
    front = Front(here.ask, paths_of(create_app({})), token, limits)
    client = TestClient(front, base_url="http://127.0.0.1:8321", raise_server_exceptions=False)
    return here, front, client


def test_routes_refusals_and_streams_are_those_of_one_process(client_for, fake, streaming_fake):
    here, _, client = front_of(fake, streaming_fake)
    alone = client_for(type(fake)(), limits=LIMITS)
    with client:
        for method, path, more in (
            ("GET", "/", {}),
            ("GET", "/models", {}),
            ("GET", "/openapi.json", {}),
            ("GET", "/ready", {}),
            ("POST", "/caption?n_best=2&trace=true", {"content": png((9, 8, 7))}),
            ("POST", "/caption", {"files": {"image": png((1, 2, 3))}}),
            ("POST", "/caption", {"content": b"no picture"}),
            ("POST", "/caption?beams=77", {"content": png()}),
            ("POST", "/ask?question=what", {"content": png()}),
            ("GET", "/nothing", {}),
        ):
            ours, theirs = client.request(method, path, **more), alone.request(method, path, **more)
            assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content), path
            kept = ("content-type", "content-security-policy", "x-frame-options", "cache-control")
            assert [ours.headers.get(name) for name in kept] == [theirs.headers.get(name) for name in kept]
        streamed = client.post("/caption?stream=true", content=png((5, 6, 7)))
        events = [line for line in streamed.text.splitlines() if line.startswith("event")]
        assert events[0] == "event: queued" and events[-1] == "event: caption"
        large = client.post("/caption", content=bytes(LIMITS.body_bytes + 1))
        assert large.status_code == 413
        assert client.get("/models", headers={"host": "elsewhere"}).status_code == 403
    assert here.asked > 8


def test_the_numbers_are_those_of_all_replicas():
    _, front, client = front_of(Colours(), Colours(), Colours())
    with client:
        for number in range(7):
            assert client.post("/caption", content=png((number, 0, 0))).status_code == 200
        client.post("/caption", content=b"no picture")
        text = client.get("/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert numbers['patchword_requests_total{path="/caption",status="200"}'] == "7"
    assert numbers['patchword_requests_total{path="/caption",status="415"}'] == "1"
    assert numbers["patchword_batched_requests_total"] == "7" and len(front._tallies) == 3
    assert float(numbers["patchword_model_seconds_total"]) > 0


def test_a_replica_that_is_gone_costs_503_or_an_answer_that_ends():
    ray = pytest.importorskip("ray.exceptions", reason="the extra `replicas` is not installed")
    pytest.importorskip("ray.serve", reason="the extra `replicas` is not installed")
    here, _, client = front_of(Colours())
    with client:
        here.error, here.fails_after = ray.RayActorError(), 0
        refused = client.post("/caption", content=png())
        assert refused.status_code == 503 and refused.headers["retry-after"] == "2"
        assert refused.json()["error"]["code"] == "replica_gone"
        assert client.post("/caption", content=png((4, 5, 6))).json()["caption"] == "colour 4 5 6"
        here.error, here.fails_after = ray.RayActorError(), 1  # after the head of the answer
        with pytest.raises(Exception, match="."):
            assert client.post("/caption", content=png()).json()["caption"]
        here.error, here.fails_after = ValueError("a fault of ours"), 0
        assert client.post("/caption", content=png()).json()["error"]["code"] == "internal"


def test_without_a_token_nothing_is_passed_on():
    here, _, client = front_of(Colours(), token=TOKEN)
    with client:
        assert client.post("/caption", content=png()).status_code == 401 and here.asked == 0
        allowed = client.post("/caption", content=png(), headers={"Authorization": f"Bearer {TOKEN}"})
        assert allowed.status_code == 200


def test_what_cannot_be_had_is_said(patchword):
    pytest.importorskip("ray.serve", reason="the extra `replicas` is not installed")
    with pytest.raises(ConfigError, match="must run on a machine of the cluster"):
        Deployed(Colours, 2, "ray://elsewhere:10001", LIMITS)
    status, _, said = patchword("serve", "--cluster", "local", "--port", "48321")
    assert status == 2 and "--cluster is for --replicas" in said
    status, _, said = patchword("serve", "--replicas", "2", "--model", "no/such/model", "--port", "48321")
    assert status == 2 and "no/such/model" in said


def application():
    """The application of a replica on Ray."""
    return create_app({"fake": Colours(0.05)}, limits=LIMITS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray uses what Ray deprecates
@pytest.mark.timeout(600)
def test_a_replica_killed_under_load_loses_and_swaps_no_answer(monkeypatch):
    """On Ray Serve itself: two replicas, one killed while eight clients ask."""
    pytest.importorskip("ray.serve", reason="the extra `replicas` is not installed")
    import psutil
    from ray import cloudpickle

    from patchword.serve.run import serve, take_port

    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default workers yield to every other process
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    began = time.perf_counter()
    running = Deployed(application, 2, "local", LIMITS)
    print(f"two replicas began in {time.perf_counter() - began:.1f} s")
    front = Front(running.ask, paths_of(create_app({})), None, LIMITS)
    taken = take_port("127.0.0.1", 0)
    address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    ready, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(signal, "signal", lambda number, action: None)  # not the main thread

    def run():
        serve(front, taken, LIMITS, ready.set, front.end_soon)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    assert ready.wait(60)
    replicas = [
        one for one in psutil.process_iter(["cmdline"])
        if "ServeReplica:patchword" in " ".join(one.info["cmdline"] or ()) and one.uids().real == os.getuid()
    ]  # fmt: skip
    assert len(replicas) == 2
    outcomes = Counter()

    def ask(number):
        if number == 60:
            replicas[0].kill()
        colour = (number % 256, number // 2 % 256, 7)
        with httpx.Client(timeout=60) as client:
            answer = client.post(f"{address}/caption", content=png(colour))
        if answer.status_code == 200:
            right = answer.json()["caption"] == "colour {} {} {}".format(*colour)
            outcomes["right" if right else "wrong"] += 1
        else:
            outcomes[answer.status_code] += 1
            assert answer.status_code == 503 and answer.headers["retry-after"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(200)))
    print(json.dumps({str(key): count for key, count in outcomes.items()}))
    assert sum(outcomes.values()) == 200 and not outcomes["wrong"] and outcomes["right"] >= 180
    text = httpx.get(f"{address}/metrics").text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(numbers['patchword_requests_total{path="/caption",status="200"}']) == outcomes["right"]
    assert (
        int(numbers['patchword_requests_total{path="/caption",status="503"}']) == outcomes[503]
        or not outcomes[503]
    )
    deadline = time.monotonic() + 120  # and a new replica takes the place of the one that is gone
    while len(front._tallies) < 3 and time.monotonic() < deadline:
        httpx.post(f"{address}/caption", content=png(), timeout=60)
        time.sleep(0.2)
    assert len(front._tallies) == 3
    running.close()
