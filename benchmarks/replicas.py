"""Replicas of the service on Ray Serve, one of which is killed under load from a second process.

    python benchmarks/replicas.py --model NAME [--requests 400] [--clients 8] [--replicas 2]
    python benchmarks/replicas.py --requests 200 --unhurt --replicas 0 1 2   # speeds; 0: one process, no Ray

It prints the seconds until the service is ready and the memory of all its processes, then what became of the
requests (captions as body, as form and streamed, each compared with what one process answers): how many
were right, refused with 503 and Retry-After, broken off, other than that of one process, or otherwise;
whether /metrics counts as many as the clients; and how many replicas answer at the end. A replica is killed
(SIGKILL) when a third of the requests is done, unless `--unhurt`. CPU seconds are those of all processes of
the service: decoders, Ray's own and replicas among them. It needs the extras `serve` and `replicas`, and
Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Lock

import psutil
from serve import Request, Served, captions, pictures, same
from starlette.testclient import TestClient

import patchword
from patchword.serve.app import create_app

MARK = "ServeReplica:patchword"


def replicas_of(user: int) -> list[psutil.Process]:
    """The replicas that run, of this person."""
    found = []
    for one in psutil.process_iter(["cmdline", "uids"]):
        if MARK in " ".join(one.info["cmdline"] or ()) and one.info["uids"].real == user:
            found.append(one)
    return found


def answered_by_one_process(model: str) -> list[Request]:
    """Requests, with what the service answers where it has no replicas."""
    app = create_app({Path(model).name: patchword.load(model, "cpu", task="caption")})
    found = []
    with TestClient(app, base_url="http://127.0.0.1:8321") as client:
        for one in captions(model, pictures(12)):
            answer = client.post(one.path, content=one.body, headers=one.headers)
            found.append(one._replace(expected=one.read(answer.content)))
    return found


def family(served: Served) -> list[psutil.Process]:
    """The service, Ray and the replicas."""
    first = psutil.Process(served.process.pid)
    return [first, *first.children(recursive=True)]


def memory_mib(served: Served) -> float:
    """Resident memory of all of them: pages that they share are counted once."""
    return sum(one.memory_full_info().pss for one in family(served)) / 2**20


def cpu_seconds(served: Served) -> dict[int, float]:
    """Processor seconds of each of them so far."""
    return {one.pid: sum(one.cpu_times()[:2]) for one in family(served)}


def ask(served: Served, request: Request) -> str:
    """Send one request, and say what became of it."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=150)
    try:
        connection.request("POST", request.path, request.body, request.headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, HTTPException):
        return "broken off"
    finally:
        connection.close()
    if response.status == 503 and response.headers["Retry-After"]:
        return "503 with Retry-After"
    if response.status != 200:
        return f"status {response.status}"
    if "stream" in request.path and b"event: caption" not in content:
        return "broken off"
    return "right" if same(request.read(content), request.expected) else "other than that of one process"


def main() -> None:
    """Runs the load and prints the counts."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="flickr8k")
    words.add_argument("--requests", type=int, default=400)
    words.add_argument("--clients", type=int, default=8)
    words.add_argument("--replicas", type=int, nargs="+", default=[2], help="0: one process without Ray")
    words.add_argument("--unhurt", action="store_true", help="no replica is killed")
    options = words.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    mixed = answered_by_one_process(options.model)
    for replicas in options.replicas:
        measure(options, mixed, replicas)


def measure(options: argparse.Namespace, mixed: list[Request], replicas: int) -> None:
    """One service under load."""
    kills = bool(replicas) and not options.unhurt
    began = time.perf_counter()
    with Served(options.model, 16, *(["--replicas", str(replicas)] if replicas else [])) as served:
        print(f"{replicas} replicas:", end=" ")
        print(f"ready after {time.perf_counter() - began:.1f} s, {memory_mib(served):.0f} MiB", flush=True)
        outcomes: Counter[str] = Counter()
        lock, seconds = Lock(), []

        def one(request: Request) -> None:
            sent = time.perf_counter()
            became = ask(served, request)
            with lock:
                seconds.append(time.perf_counter() - sent)
                outcomes[became] += 1
                kill = kills and sum(outcomes.values()) == options.requests // 3
            if kill:
                replicas_of(os.getuid())[0].kill()

        for request in mixed[:8]:  # what is loaded with the first requests
            ask(served, request)
        before, began = cpu_seconds(served), time.perf_counter()
        with ThreadPoolExecutor(options.clients) as threads:
            list(threads.map(one, itertools.islice(itertools.cycle(mixed), options.requests)))
        took, after = time.perf_counter() - began, cpu_seconds(served)
        cpu = sum(seconds - before.get(number, 0.0) for number, seconds in after.items())
        text = served.ask("GET", "/metrics")[1].decode()
        counted = {
            line.split('status="')[1].split('"')[0]: int(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith('patchword_requests_total{path="/caption"')
        }
        end = time.monotonic() + 120
        while len(replicas_of(os.getuid())) < replicas and time.monotonic() < end:
            time.sleep(0.2)
        print(json.dumps({"requests": sum(outcomes.values()), **outcomes}))
        print(
            f"{len(seconds) / took:.1f} captions a second, {1000 * cpu / len(seconds):.0f} ms of CPU each, "
            f"longest {max(seconds):.1f} s"
        )
        print(
            f"/metrics by status (8 requests before these): {counted}; replicas at the end: "
            f"{len(replicas_of(os.getuid()))}",
            flush=True,
        )


if __name__ == "__main__":
    main()
