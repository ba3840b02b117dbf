"""Measures the service under load from a second process on loopback.

    python benchmarks/serve.py --model NAME [--requests 2000] [--clients 16]
    python benchmarks/serve.py --model tests/kits/format1/caption --mixed-only --requests 10000 \
        --state mixed.json --seconds 120      # again, until all are done

It prints (1) the service's CPU seconds per caption with batches of up to 16 and with batches of one, at the
same number of clients, (2) latencies, (3) lost or swapped answers among mixed requests (captions by several
searches, whole and streamed, labels, searches of an index; each is compared with a direct call of the model),
and (4) the change of the service's resident memory from request 500 to the end. Each run is bounded by
--requests and --seconds; with --state the mixed requests go on where they stopped, with the service started
anew. It needs the extras `serve` and `search`, and Linux, because it reads /proc.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Lock
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np
from PIL import Image

import patchword
from patchword.search.index import open_index, update_index
from patchword.search.records import IndexModel
from patchword.tasks.retrieve.load import load_two_towers

LABELS = ("a dog", "two men", "a red shirt", "snow", "a street", "children playing")
BOUNDARY = "patchword-benchmark"


def pictures(count: int) -> list[Image.Image]:
    """Draws random blots of colour from a fixed seed.

    They differ enough that a swapped answer is noticed wherever the model distinguishes them.
    """
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (count, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(blots).resize((320, 240), Image.Resampling.BICUBIC) for blots in coarse]


class Request(NamedTuple):
    """One kind of request, with the answer of a direct call of the model."""

    path: str
    headers: dict[str, str]
    body: bytes
    read: Callable[[bytes], object]
    """Extracts the part of the response that is compared."""
    expected: object


def caption_in(content: bytes) -> object:
    """Reads the caption and its log-probability from a JSON response."""
    answer = json.loads(content)
    return answer["caption"], answer["log_probability"]


def caption_in_stream(content: bytes) -> object:
    """Reads the caption and its log-probability from the last event of a stream."""
    *_, last = content.decode().strip().split("\n\n")
    answer = json.loads(last.split("data: ", 1)[1])
    return answer.get("caption"), answer.get("log_probability")


def told(caption: object) -> object:
    """What `caption_in` reads, of a direct call."""
    return caption.text, caption.log_probability


def same(found: object, expected: object) -> bool:
    """Log-probabilities depend a little on what else is in a batch."""
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return found[0] == expected[0] and math.isclose(found[1], expected[1], rel_tol=1e-3)
    return found == expected


def captions(model: str, shots: list[Image.Image]) -> list[Request]:
    """Builds caption requests: searches of several widths, as raw bodies and as forms, and streams."""
    loaded, mixed = patchword.load(model), []
    for picture in shots:
        raw = png(picture)
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
        form = head.encode() + raw + f"\r\n--{BOUNDARY}--\r\n".encode()
        for beams, n_best, trace in ((3, 1, False), (1, 1, False), (3, 3, True)):
            expected = told(loaded.caption([picture], beams=beams, n_best=n_best, trace=trace)[0])
            path = f"/caption?beams={beams}&n_best={n_best}&trace={'true' if trace else 'false'}"
            mixed.append(Request(path, {"Content-Type": "image/png"}, raw, caption_in, expected))
            mixed.append(
                Request(
                    path,
                    {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
                    form,
                    caption_in,
                    expected,
                )
            )
        streamed = told(loaded.caption([picture], beams=1)[0])
        mixed.append(
            Request("/caption?stream=true", {"Content-Type": "image/png"}, raw, caption_in_stream, streamed)
        )
    return mixed


def labels_and_searches(shots: list[Image.Image], folder: Path, name: str = "two-towers") -> list[Request]:
    """Builds requests for labels, and for searches of an index that is made in `folder`."""
    towers, mixed = load_two_towers(name), []
    (folder / "pictures").mkdir()
    for number, picture in enumerate(shots):
        picture.save(folder / "pictures" / f"{number}.png")
    update_index(
        folder / "pictures", folder / "index", IndexModel(towers.embed_images, towers.identity, name=name)
    )
    for picture in shots:
        shares = towers.label([picture], LABELS)[0]
        expected = [LABELS[i] for i in np.argsort(-shares, kind="stable")]
        path = "/label?" + urlencode([("label", label) for label in LABELS])
        mixed.append(Request(path, {"Content-Type": "image/png"}, png(picture), answers_in, expected))
    with open_index(folder / "index", towers.identity) as index:
        for text in LABELS:
            expected = [Path(hit.path).name for hit in index.search(towers.embed_texts([text])[0], 3)]
            body = json.dumps({"text": text, "k": 3}).encode()
            mixed.append(Request("/search", {"Content-Type": "application/json"}, body, names_in, expected))
    return mixed


def answers_in(content: bytes) -> object:
    """Reads the ranked labels from a JSON response."""
    return [one["text"] for one in json.loads(content)["answers"]]


def names_in(content: bytes) -> object:
    """Reads the file names of the hits from a JSON response."""
    return [one["name"] for one in json.loads(content)["hits"]]


def png(picture: Image.Image) -> bytes:
    """Encodes a picture as PNG."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


class Served:
    """A service in its own process, whose CPU time and memory can be read."""

    def __init__(self, model: str, batch: int, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = "import sys; from patchword.cli import main; sys.argv[0] = 'patchword'; main()"
        words = [
            "serve",
            "--model",
            model,
            "--port",
            str(self.port),
            "--batch",
            str(batch),
            "--deadline",
            "120",
            *more,
        ]
        self.process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.DEVNULL)

    def __enter__(self) -> Served:
        end = time.monotonic() + 900
        while time.monotonic() < end:
            try:
                if self.ask("GET", "/ready")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.2)
        raise SystemExit("the service did not start within fifteen minutes")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Sends one request; returns the status and the body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=150)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """CPU seconds of the service so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        """Resident memory of the service, MiB."""
        return (
            int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            * os.sysconf("SC_PAGE_SIZE")
            / 2**20
        )


def load(
    served: Served, mixed: list[Request], count: int, clients: int, seconds: float, early: int | None = None
) -> dict[str, float]:
    """Sends `count` requests from `clients` threads, or as many as fit into `seconds`."""
    lock, seen = Lock(), {"lost": 0, "wrong": 0, "done": 0, "start_mib": 0.0}
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def one(request: Request) -> None:
        if time.monotonic() > end:
            return
        began = time.perf_counter()
        status, answer = served.ask("POST", request.path, request.body, request.headers)
        took = time.perf_counter() - began
        with lock:
            latencies.append(took)
            seen["done"] += 1
            seen["lost"] += status != 200
            seen["wrong"] += status == 200 and not same(request.read(answer), request.expected)
            if seen["done"] == early:
                seen["start_mib"] = served.resident_mib()

    for request in mixed[:: max(1, len(mixed) // 8)]:
        served.ask("POST", request.path, request.body, request.headers)
    before, began = served.cpu_seconds(), time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(one, itertools.islice(itertools.cycle(mixed), count)))
    done = max(seen["done"], 1)
    return {
        **seen,
        "cpu_ms": 1000 * (served.cpu_seconds() - before) / done,
        "per_second": done / (time.perf_counter() - began),
        "p50_ms": 1000 * float(np.percentile(latencies, 50)),
        "p95_ms": 1000 * float(np.percentile(latencies, 95)),
        "end_mib": served.resident_mib(),
    }


def main() -> None:
    """Runs the loads and prints the measurements."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="flickr8k")
    words.add_argument("--requests", type=int, default=2000)
    words.add_argument("--clients", type=int, default=16)
    words.add_argument("--towers", default="two-towers", help="for labels and searches")
    words.add_argument("--seconds", type=float, default=300.0, help="most seconds of each of the three runs")
    words.add_argument("--mixed-only", action="store_true", help="only the mixed requests")
    words.add_argument("--state", type=Path, help="file of the mixed requests that are done, to go on from")
    options = words.parse_args()
    shots = pictures(24)
    said = captions(options.model, shots)
    print(
        f"{len({str(request.expected) for request in said})} different captions of {len(shots)} pictures; "
        f"{options.clients} clients"
    )
    beams = [request for request in said if request.path.startswith("/caption?beams=3&n_best=1")]
    costs = {}
    for batch in () if options.mixed_only else (1, 16):
        with Served(options.model, batch) as served:
            found = load(served, beams, options.requests // 4, options.clients, options.seconds)
        costs[batch] = found["cpu_ms"]
        print(
            f"batches of up to {batch:2}: {found['cpu_ms']:.1f} CPU ms per caption, p50 "
            f"{found['p50_ms']:.0f} ms, "
            f"p95 {found['p95_ms']:.0f} ms, {found['per_second']:.1f} captions/s, {found['done']} requests"
        )
    if costs:
        print(f"CPU per caption with batching / without: {costs[16] / costs[1]:.2f}")
    before = json.loads(options.state.read_text()) if options.state and options.state.exists() else []
    left = options.requests - sum(part["done"] for part in before)
    with tempfile.TemporaryDirectory() as folder:
        mixed = said + labels_and_searches(shots, Path(folder), options.towers)
        np.random.default_rng(1).shuffle(mixed)
        more = ("--index", str(Path(folder) / "index"))
        with Served(options.model, 16, *more) as served:
            early = min(500, left // 4)
            found = load(served, mixed, left, options.clients, options.seconds, early=early)
    parts = [*before, found]
    if options.state:
        options.state.write_text(json.dumps(parts))
    done, lost, wrong = (sum(part[name] for part in parts) for name in ("done", "lost", "wrong"))
    print(
        f"mixed: {done} requests of {len(mixed)} kinds, {lost} lost, {wrong} other than the direct call; the "
        f"last {found['done']}: p50 {found['p50_ms']:.0f} ms, p95 {found['p95_ms']:.0f} ms"
    )
    for part in parts:
        print(
            f"resident {part['start_mib']:.0f} MiB at request {early}, {part['end_mib']:.0f} MiB at the end "
            f"of {part['done']}"
        )


if __name__ == "__main__":
    main()
