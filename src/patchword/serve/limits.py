"""All limits of the service: what it accepts, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The maximum cost of a request, with the service's defaults."""

    body_bytes: int = 20 * 2**20
    """Largest request body with a picture."""
    held_bytes: int = 64 * 2**20
    """Bytes of all bodies in memory at a time."""
    short_bytes: int = 2**20
    """Bodies of up to so many bytes are taken as fast as they come."""
    intake_bytes: int = 32 * 2**20
    """Bytes of longer bodies that are taken in a second, of all requests together."""
    json_bytes: int = 64 * 2**10
    """Largest JSON body."""
    pixels: int = 50_000_000
    """Largest picture, judged by its header before decoding."""
    scans: int = 100
    """Most scans of one JPEG; encoders write a dozen."""
    decoders: int = 2
    """Processes that decode pictures beside the model's thread; one more decodes large ones."""
    small_bytes: int = 64 * 2**20
    """What decoding may hold that does not wait for its turn among large pictures."""
    small_seconds: float = 1.0
    """What decoding may take before it is put among the large pictures, and begun anew."""
    whole_pixels: int = 6_000_000
    """A picture of more pixels is reduced as it is decoded, by a power of two."""
    least_side: int = 1024
    """Pixels that stay on the shorter side of a reduced picture: no model looks at more than half of that."""
    decoding_bytes: int = 192 * 2**20
    """Memory of a picture while it is decoded, judged by its header; large ones are decoded one at a time."""
    queue: int = 64
    """Requests that may wait for the model; the next one is refused with 503."""
    queued_pixels: int = 50_000_000
    """Decoded pixels (3 bytes each) of all waiting requests together."""
    batch: int = 16
    beside_others: int = 4
    """Largest batch while requests of another kind wait, so that neither waits long for the other."""
    beside_seconds: float = 0.1
    """How long the requests of one client in a batch may take, by what its last ones took, while others are
    about; one always passes."""
    about_seconds: float = 1.0
    """A client is about that waits, or was answered so long ago at most: who has just been answered may ask
    again at once."""
    gather_seconds: float = 0.004
    """How long the first request of a batch waits for others while the model is idle."""
    deadline_seconds: float = 30.0
    """Time from the first byte of a request to its answer."""
    body_seconds: float = 15.0
    """Time for a client to send its whole body; also for the head of a request, and for an idle
    connection."""
    stop_seconds: float = 3.5
    """Time after SIGTERM or Ctrl+C in which accepted requests may still be answered; the others get 503."""
    connections: int = 128
    """Open connections; the next one gets 503 and is closed."""
    reads_per_second: float = 50.0
    """Requests without a picture or a text (facts, the page, small copies) that are answered in a second; the
    others wait for their turn."""
    reads_at_once: int = 200
    """Such requests that do not wait, after a time without any."""
    read_seconds: float = 0.5
    """Longest time that one of them waits for its turn."""
    refusals_per_second: float = 20.0
    """Refused requests that are answered in a second; the others wait for their turn."""
    refusals_at_once: int = 40
    """Refusals that do not wait, after a time without any."""
    refusal_seconds: float = 2.0
    """Longest time that a refusal waits for its turn."""
    retry_seconds: int = 2
    """Value of Retry-After when the service is full."""
