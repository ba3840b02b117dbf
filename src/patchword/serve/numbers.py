"""Counters of the service, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter, defaultdict


class Numbers:
    """The counters. Only the event loop changes them, so they need no lock.

    Paths are those of our routes, so a client cannot create new lines.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.batches = 0
        self.batched = 0
        self.model_seconds = 0.0
        self.cancelled = 0
        self.decoders_ended = 0
        """Processes that were ended because their picture took too long, or that broke down on it."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request and its time."""
        self.requests[path, status] += 1
        self.seconds[path] += seconds

    def ran(self, size: int, seconds: float) -> None:
        """Counts a batch of `size` requests and its time in the model."""
        self.batches += 1
        self.batched += size
        self.model_seconds += seconds

    def text(self, waiting: int) -> str:
        """Formats all counters; `waiting` is the current length of the queue."""
        lines = ["# TYPE patchword_requests_total counter"]
        lines += [
            f'patchword_requests_total{{path="{path}",status="{status}"}} {n}'
            for (path, status), n in sorted(self.requests.items())
        ]
        lines.append("# TYPE patchword_request_seconds_total counter")
        lines += [
            f'patchword_request_seconds_total{{path="{path}"}} {seconds:.6f}'
            for path, seconds in sorted(self.seconds.items())
        ]
        for name, value in (
            ("batches_total", self.batches),
            ("batched_requests_total", self.batched),
            ("model_seconds_total", f"{self.model_seconds:.6f}"),
            ("cancelled_total", self.cancelled),
            ("decoders_ended_total", self.decoders_ended),
        ):
            lines += [f"# TYPE patchword_{name} counter", f"patchword_{name} {value}"]
        return "\n".join([*lines, "# TYPE patchword_waiting gauge", f"patchword_waiting {waiting}"]) + "\n"
