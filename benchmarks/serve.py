"""The service under load, from a second process on loopback: `python benchmarks/serve.py --model NAME [--requests 2000] [--clients 16]`.

Prints (1) the service's CPU seconds per caption with batches of up to 16 beside those with batches of one, at the same number of clients,
(2) latencies, (3) lost or swapped answers among mixed requests (each is compared with a direct call of the model), and (4) how far the
resident memory of the service moved from request 500 to the end. Each run is bounded by --requests and --seconds. Linux: it reads /proc.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

import patchword

BOUNDARY = "patchword-benchmark"


def pictures(count: int) -> list[Image.Image]:
    """Seeded blots of colour: different enough that a swapped answer is seen wherever the model tells them apart."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (count, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(blots).resize((320, 240), Image.Resampling.BICUBIC) for blots in coarse]


def requests_and_answers(model: str) -> list[tuple[str, dict[str, str], bytes, str]]:
    """(path, headers, body, expected caption) of each kind of request: options x bodies x pictures, answered by direct calls."""
    loaded = patchword.load(model)
    mixed = []
    for picture in pictures(24):
        content = io.BytesIO()
        picture.save(content, "PNG")
        raw = content.getvalue()
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n'
        form = head.encode() + raw + f"\r\n--{BOUNDARY}--\r\n".encode()
        for beams, n_best, trace in ((3, 1, False), (1, 1, False), (3, 3, True)):
            expected = loaded.caption([picture], beams=beams, n_best=n_best, trace=trace)[0].text
            path = f"/caption?beams={beams}&n_best={n_best}&trace={'true' if trace else 'false'}"
            mixed.append((path, {"Content-Type": "image/png"}, raw, expected))
            mixed.append((path, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, form, expected))
    return mixed


class Served:
    """A service in a process of its own, of which CPU time and memory are read."""

    def __init__(self, model: str, batch: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        program = "import sys; from patchword.cli import main; sys.argv[0] = 'patchword'; main()"
        words = ["serve", "--model", model, "--port", str(self.port), "--batch", str(batch), "--deadline", "120"]
        self.process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.DEVNULL)

    def __enter__(self) -> Served:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            try:
                if self.ask("GET", "/ready")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.2)
        raise SystemExit("the service did not start within three minutes")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=150)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def load(served: Served, mixed: list, count: int, clients: int, seconds: float, memory_from: int | None = None) -> dict[str, float]:
    """Send `count` requests from `clients` threads, or as many as `seconds` allow."""
    lock, seen = Lock(), {"lost": 0, "wrong": 0, "done": 0, "start_mib": 0.0}
    latencies: list[float] = []
    end = time.monotonic() + seconds

    def one(request: tuple) -> None:
        if time.monotonic() > end:
            return
        path, headers, body, expected = request
        began = time.perf_counter()
        status, answer = served.ask("POST", path, body, headers)
        took = time.perf_counter() - began
        with lock:
            latencies.append(took)
            seen["done"] += 1
            seen["lost"] += status != 200
            seen["wrong"] += status == 200 and json.loads(answer)["caption"] != expected
            if seen["done"] == memory_from:
                seen["start_mib"] = served.resident_mib()

    for request in mixed[:: max(1, len(mixed) // 8)]:
        served.ask("POST", request[0], request[2], request[1])
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
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="flickr8k")
    words.add_argument("--requests", type=int, default=2000)
    words.add_argument("--clients", type=int, default=16)
    words.add_argument("--seconds", type=float, default=300.0, help="most seconds of each of the three runs")
    options = words.parse_args()
    mixed = requests_and_answers(options.model)
    print(f"{len(mixed)} kinds of requests, {len({expected for *_, expected in mixed})} different captions; {options.clients} clients")
    same = [request for request in mixed if request[0].startswith("/caption?beams=3&n_best=1")]
    costs = {}
    for batch in (1, 16):
        with Served(options.model, batch) as served:
            found = load(served, same, options.requests // 4, options.clients, options.seconds)
        costs[batch] = found["cpu_ms"]
        print(
            f"batches of up to {batch:2}: {found['cpu_ms']:.1f} CPU ms per caption, p50 {found['p50_ms']:.0f} ms, "
            f"p95 {found['p95_ms']:.0f} ms, {found['per_second']:.1f} captions/s, {found['done']} requests"
        )
    print(f"CPU per caption with batching / without: {costs[16] / costs[1]:.2f}")
    with Served(options.model, 16) as served:
        found = load(served, mixed, options.requests, options.clients, options.seconds, memory_from=min(500, options.requests // 4))
    print(
        f"mixed: {found['done']} requests, {found['lost']} lost, {found['wrong']} other than the direct call, "
        f"p50 {found['p50_ms']:.0f} ms, p95 {found['p95_ms']:.0f} ms; "
        f"resident {found['start_mib']:.0f} MiB early, {found['end_mib']:.0f} MiB at the end"
    )


if __name__ == "__main__":
    main()
