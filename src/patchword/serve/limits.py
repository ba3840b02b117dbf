"""What the service lets in, and for how long: every bound stands here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Everything that a request may cost, with the values that the service starts with."""

    body_bytes: int = 20 * 2**20
    """Largest request body with a picture."""
    held_bytes: int = 256 * 2**20
    """Bodies in memory at a time, all requests together."""
    json_bytes: int = 64 * 2**10
    """Largest JSON body."""
    pixels: int = 50_000_000
    """Largest picture, judged by its header before it is decoded."""
    queue: int = 64
    """Requests that may wait for the model; the next one is refused with 503."""
    queued_pixels: int = 200_000_000
    """Decoded pixels (3 bytes each) that may wait together, whatever their number."""
    batch: int = 16
    gather_seconds: float = 0.004
    """How long the first request of a batch waits for company while the model is idle."""
    deadline_seconds: float = 30.0
    """From the first byte of a request to its answer."""
    body_seconds: float = 15.0
    """For a client to send its whole body; also for the head of a request, and for an idle connection."""
    connections: int = 128
    """Open at a time; the next one gets 503 and is closed."""
    retry_seconds: int = 2
    """What Retry-After says when the service is full."""
