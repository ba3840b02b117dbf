"""What the service counts about itself, in the text form that Prometheus reads."""

from __future__ import annotations

from collections import Counter


class Numbers:
    """Changed by the event loop only, so that it needs no lock. Paths are those of our routes: a client cannot make new lines."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: Counter[str] = Counter()
        self.batches = 0
        self.batched = 0
        self.model_seconds = 0.0
        self.cancelled = 0

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        self.seconds[path] += seconds

    def ran(self, size: int, seconds: float) -> None:
        self.batches += 1
        self.batched += size
        self.model_seconds += seconds

    def text(self, waiting: int) -> str:
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
        ):
            lines += [f"# TYPE patchword_{name} counter", f"patchword_{name} {value}"]
        return "\n".join([*lines, "# TYPE patchword_waiting gauge", f"patchword_waiting {waiting}"]) + "\n"
