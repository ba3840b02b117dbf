"""Attacks the service on loopback while four honest clients have pictures captioned.

    python benchmarks/hostile.py --state hostile.jsonl --seconds 150     # again, until every attack is done
    python benchmarks/hostile.py --state hostile.jsonl --table           # what was measured

`patchword serve` runs in its own process with the shipped models, an index and a deadline of 10 s. For each
attack of hostile_attacks.py there is a time without and a time with it. Attackers run in a process of their
own at a lower priority, for real ones have machines of their own. Wanted: honest clients are answered
as before the attack and in at most twice the time (95th percentile), no answer of 500 or above but 503 and
504, memory of the service and its processes within 300 MiB of the start, every answer within the deadline, an
end within 5 s of SIGTERM under attack, and no traceback in the log. It needs the extras `serve` and `search`,
and Linux, because it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread

import numpy as np
from hostile_attacks import ATTACKS, Answer, encoded, many_scans, pictures
from serve import Served, labels_and_searches
from serve import pictures as blots

DEADLINE = 10.0
HONEST = 4


class Honest:
    """Clients that have their own picture captioned again and again, each on a connection that it keeps."""

    def __init__(self, port: int) -> None:
        self.port, self.bodies = port, [encoded(picture, "PNG") for picture in blots(HONEST)]
        self.said: dict[int, str] = {}
        self.answers: list[Answer] = []
        self.wrong = 0
        self._stop = Event()
        self._threads: list[Thread] = []

    def _client(self, number: int) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", "/caption?beams=1", self.bodies[number])
                answer = connection.getresponse()
                content, status = answer.read(), answer.status
            except (OSError, HTTPException):
                connection.close()
                content, status = b"", 0
            self.answers.append(Answer(status, time.monotonic() - began))
            if status == 200:
                caption = json.loads(content)["caption"]
                self.wrong += caption != self.said.setdefault(number, caption)
            else:
                time.sleep(0.2)
        connection.close()

    def during(self, seconds: float) -> list[Answer]:
        """What they saw in that time."""
        first = len(self.answers)
        time.sleep(seconds)
        return self.answers[first:]

    def __enter__(self) -> Honest:
        self._threads = [Thread(target=self._client, args=(number,)) for number in range(HONEST)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Costs:
    """The peak of what a process and its children hold (proportional set size), looked at ten times a second,
    and the processor time of both."""

    def __init__(self, process: int) -> None:
        self.process, self.peak, self.own = process, 0.0, 0.0
        self._times: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._begun = False
        self._stop = Event()
        self._thread = Thread(target=self._watch)

    def now(self) -> float:
        """MiB."""
        return self._look()[0]

    def _look(self) -> tuple[float, float]:
        """MiB of all, and of the service alone."""
        own, children = _held(self.process) / 1024, 0.0
        program = _program(self.process)
        for one in self._children():
            if _program(int(one)) != program:  # one that is being started still shares all of the service's
                children += _held(int(one)) / 1024
        return own + children, own

    def _children(self) -> set[str]:
        children: set[str] = set()
        for task in Path(f"/proc/{self.process}/task").iterdir():  # a child is that of a thread
            try:
                children.update((task / "children").read_text().split())
            except OSError:
                continue
        return children

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            total, own = self._look()
            if total > self.peak:
                self.peak, self.own = total, own
            self._clock()

    def _clock(self) -> None:
        for one in (str(self.process), *self._children()):
            try:
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended; what it took since the last look is not counted
                continue
            self._times[one] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            self._before.setdefault(one, 0.0 if self._begun else self._times[one])

    @property
    def seconds(self) -> tuple[float, float]:
        """Processor seconds of the service and of its decoders."""
        taken = {one: self._times[one] - self._before[one] for one in self._times}
        own = taken.pop(str(self.process), 0.0)
        return own, sum(taken.values())

    def __enter__(self) -> Costs:
        self._clock()
        self._begun = True  # who comes later is counted from its beginning
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _program(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def _held(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def p95(answers: list[Answer]) -> float:
    """95th percentile of the seconds until an answer came."""
    return float(np.percentile([answer.seconds for answer in answers], 95)) if answers else float("nan")


def attack(name: str, port: int, window: float, rounds: int, told: Connection) -> None:
    """In a process of its own: make the file, and as often as the word comes, attack and tell what became of
    it."""
    os.nice(10)
    ATTACKS[name](port, 0.0)
    told.send("ready")
    for _ in range(rounds):
        told.recv()
        told.send([tuple(answer) for answer in ATTACKS[name](port, time.monotonic() + window)])


def attacked(
    name: str, served: Served, honest: Honest, start: float, window: float, rounds: int
) -> dict[str, object]:
    """One attack, in rounds of a time without it and one with it."""
    ready, gave = multiprocessing.Pipe()
    attacker = multiprocessing.get_context("fork").Process(
        target=attack, args=(name, served.port, window, rounds, gave)
    )
    attacker.start()
    ready.recv()  # its file is made, and nothing is sent yet
    alone: list[Answer] = []
    seen: list[Answer] = []
    found: list[Answer] = []
    costs: list[Costs] = []
    lasted = 0.0
    for _ in range(rounds):
        alone += honest.during(window)
        with Costs(served.process.pid) as cost:
            first, began = len(honest.answers), time.monotonic()
            ready.send("go")
            found += [Answer(*answer) for answer in ready.recv()]
            seen += honest.answers[first:]
            lasted += time.monotonic() - began
        costs.append(cost)
        honest.during(1)  # what is left of it is done
    attacker.join()
    statuses = Counter(answer.status for answer in found)
    most = max(costs, key=lambda cost: cost.peak)
    return {
        "attack": name,
        "requests": len(found),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "longest": max((answer.seconds for answer in found), default=0.0),
        "honest": Counter(str(answer.status) for answer in seen),
        "alone_p95": p95(alone),
        "alone": [round(answer.seconds, 4) for answer in alone],
        "attacked": [round(answer.seconds, 4) for answer in seen],
        "p95": p95(seen),
        "mib": most.peak - start,
        "own_mib": most.own,
        "cores": [round(sum(cost.seconds[i] for cost in costs) / lasted, 3) for i in (0, 1)],
    }


def ended(served: Served) -> dict[str, object]:
    """SIGTERM while decoders and the model are busy."""
    slow = pictures(many_scans(85), 4)
    attacker = Thread(target=lambda: slow(served.port, time.monotonic() + 1))
    slow(served.port, 0.0)
    attacker.start()
    time.sleep(2)
    began = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    try:
        status = served.process.wait(60)
    except subprocess.TimeoutExpired:
        status = None
        served.process.kill()
    seconds = time.monotonic() - began
    attacker.join()
    return {"attack": "SIGTERM", "status": status, "longest": seconds}


def main() -> None:
    """Run the attacks that are not in the state file yet, or print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, required=True, help="file of what was measured, a line each")
    parser.add_argument("--seconds", type=float, default=150.0, help="no attack begins after so long")
    parser.add_argument("--window", type=float, default=4.0, help="seconds of an attack, and before it")
    parser.add_argument("--rounds", type=int, default=1, help="times without and with each attack")
    parser.add_argument("--only", default="", help="attacks whose name holds one of these, between commas")
    parser.add_argument("--model", default="flickr8k")
    parser.add_argument("--towers", default="two-towers", help="of the index that is searched")
    parser.add_argument("--table", action="store_true", help="print what was measured as a table")
    asked = parser.parse_args()
    if asked.table:
        print(table([json.loads(line) for line in asked.state.read_text().splitlines()]))
        return
    done = asked.state.read_text() if asked.state.exists() else ""
    left = [name for name in ATTACKS if json.dumps(name) not in done]
    left = [name for name in left if any(part in name for part in asked.only.split(","))]
    began = time.monotonic()
    place = asked.state.with_suffix(".index")
    if not place.exists():
        place.mkdir()
        labels_and_searches(blots(16), place, asked.towers)  # makes the index
    with open(asked.state.with_suffix(".log"), "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        more = ("--index", str(place / "index"), "--deadline", str(int(DEADLINE)))
        with Served(asked.model, 16, *more) as served, Honest(served.port) as honest:
            honest.during(6)
            start = Costs(served.process.pid).now()
            for name in left:
                if time.monotonic() - began > asked.seconds:
                    break
                found = attacked(name, served, honest, start, asked.window, asked.rounds)
                found["swapped"] = honest.wrong
                with open(asked.state, "a") as state:
                    state.write(json.dumps(found) + "\n")
                print(name, {k: v for k, v in found.items() if k not in ("alone", "attacked")}, flush=True)
            honest._stop.set()
            last = ended(served)
    last["tracebacks"] = asked.state.with_suffix(".log").read_text().count("Traceback")
    with open(asked.state, "a") as state:
        state.write(json.dumps(last) + "\n")
    print(last)


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| attack | its answers | longest | honest clients | p95 alone | p95 under attack | memory |"]
    lines.append("| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        if row["attack"] == "SIGTERM":
            continue
        told = ", ".join(f"{count} x {status}" for status, count in row["statuses"].items()) or "none read"
        fine = ", ".join(f"{count} x {status}" for status, count in row["honest"].items())
        times = f"{1000 * row['alone_p95']:.0f} ms | {1000 * row['p95']:.0f} ms"
        longest = f"{row['longest']:.1f} s"
        lines.append(f"| {row['attack']} | {told} | {longest} | {fine} | {times} | {row['mib']:+.0f} MiB |")
    alone = [seconds for row in rows for seconds in row.get("alone", ())]
    under = [seconds for row in rows for seconds in row.get("attacked", ())]
    first, second = (1000 * float(np.percentile(all_, 95)) for all_ in (alone, under))
    lines.append("")
    lines.append(
        f"All together: p95 {first:.0f} ms alone, {second:.0f} ms under attack, {second / first:.2f}"
    )
    ends = [row for row in rows if row["attack"] == "SIGTERM"]
    told = ", ".join(f"{row['longest']:.1f} s (status {row['status']})" for row in ends)
    lines.append(f"SIGTERM: {told}; tracebacks {max((row['tracebacks'] for row in ends), default=0)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
