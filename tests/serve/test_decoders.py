"""Pictures that are meant to hold up the service or to fill its memory: none does, and others are
answered."""

import asyncio
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
import uvicorn
from PIL import Image

from patchword.errors import PictureError
from patchword.serve.app import create_app
from patchword.serve.connections import bounded_protocol
from patchword.serve.decoders import Decoders
from patchword.serve.limits import Limits
from patchword.serve.numbers import Numbers

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def many_scans():
    """A valid progressive JPEG of 7,000 x 7,000 pixels and half a megabyte with 3,000 scans, each of which
    goes through all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (7_000, 7_000), 90).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 3_000 + content[-2:]


def icon(png):
    """An icon that says 64x64 of the PNG inside it."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 64, 64, 0, 0, 1, 32, len(png), 22) + png


def claiming(side):
    """A PNG of some bytes whose header says that it is a square of this size."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.fixture
def running():
    """A service in a thread of this process; gives its port."""
    servers = []

    def start(model, **limits):
        from threading import Thread

        bounds = Limits(**limits)
        app = create_app({"fake": model}, limits=bounds)
        options = {"http": bounded_protocol(bounds), "ws": "none", "log_level": "error", "access_log": False}
        server = uvicorn.Server(uvicorn.Config(app, port=0, **options))
        thread = Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        wait(lambda: server.started)
        return server.servers[0].sockets[0].getsockname()[1]

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(60)


def wait(until, seconds=60):
    ends = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(0.02)


def post(port, body, path="/caption"):
    connection = HTTPConnection("127.0.0.1", port, timeout=100)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def ended(port):
    connection = HTTPConnection("127.0.0.1", port, timeout=100)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return int(
        next(
            line.split()[1]
            for line in text.splitlines()
            if "decoders_ended_total " in line and line[0] != "#"
        )
    )


def test_a_jpeg_of_many_scans_is_refused_by_its_header(client_for, many_scans):
    answer = client_for().post("/caption", content=many_scans)
    assert answer.status_code == 413 and "more than 100 scans" in answer.json()["error"]["message"]


def test_pictures_that_take_too_long_are_given_up_and_others_are_answered(
    running, fake, many_scans, make_png
):
    port = running(fake, scans=5_000, deadline_seconds=10)
    with ThreadPoolExecutor(8) as threads:
        slow = [threads.submit(post, port, many_scans) for _ in range(2)]
        statuses = [status for status, _ in (job.result() for job in slow)]
        assert statuses == [504, 504]
        wait(lambda: ended(port) >= 1)  # one was decoded, the other one waited for its turn
        honest = [threads.submit(post, port, make_png((i, i, i))) for i in range(6)]
        assert [job.result()[1]["caption"] for job in honest] == [f"colour {i} {i} {i}" for i in range(6)]
    assert ended(port) <= 2


def is_decoding():
    """Whether a process has worked for longer than it takes to start and to read a header."""
    return any(child.cpu_times().user > 1.5 for child in psutil.Process().children())


def test_work_ends_when_the_client_has_left(running, fake, many_scans, make_png):
    port = running(fake, scans=5_000, decoders=1)
    head = f"POST /caption HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(many_scans)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + many_scans)
        wait(is_decoding)  # who leaves before costs no process
    wait(lambda: ended(port) == 1)
    assert post(port, make_png())[0] == 200


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import FakeModel
from patchword.serve.app import create_app
from patchword.serve.limits import Limits
from patchword.serve.run import serve, take_port
limits = Limits(scans=5_000, stop_seconds=1)
taken = take_port("127.0.0.1", int(sys.argv[2]))
serve(create_app({"fake": FakeModel()}, limits=limits), taken, limits, lambda: None)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_an_end_does_not_wait_for_pictures_that_take_too_long(many_scans):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(HERE), str(port)], stderr=subprocess.PIPE)
    try:

        def answers():
            try:
                return ended(port) == 0
            except OSError:
                assert process.poll() is None, process.stderr.read()
                return False

        wait(answers, 120)
        with ThreadPoolExecutor(2) as threads:
            jobs = [threads.submit(post, port, many_scans) for _ in range(2)]
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            assert [(status, body["error"]["code"]) for status, body in (job.result() for job in jobs)] == [
                (503, "stopping")
            ] * 2
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_floats_are_counted_by_their_bytes(client_for):
    """The same number of pixels, of one byte and of four."""
    client = client_for(limits=Limits(decoding_bytes=20 * 700 * 700))
    for mode, status in (("L", 200), ("F", 413)):
        buffer = io.BytesIO()
        Image.new(mode, (700, 700), 1).save(buffer, "TIFF", compression="tiff_deflate")
        answer = client.post("/caption", content=buffer.getvalue())
        assert answer.status_code == status, answer.text
    assert "MiB to decode" in answer.json()["error"]["message"]


def test_a_picture_inside_an_icon_is_judged_by_its_own_header(client_for, make_png):
    answer = client_for().post("/caption", content=icon(claiming(13_000)))
    assert answer.status_code == 413 and "13000x13000" in answer.json()["error"]["message"]
    small = client_for().post("/caption", content=icon(make_png(size=(64, 64))))
    assert small.status_code == 200 and (small.json()["width"], small.json()["height"]) == (64, 64)


def test_large_pictures_are_decoded_one_by_one_and_small_ones_do_not_wait(make_png):
    """Of both kinds more than there are processes: all are decoded, and never two large ones at a time."""
    large, small = make_png((9, 8, 7), size=(400, 300)), make_png((1, 2, 3), size=(30, 20))

    async def decode_all():
        decoders = Decoders(Limits(small_bytes=100 * 100 * 12, decoders=2), Numbers())
        most, order = 0, []
        try:
            loop = asyncio.get_running_loop()

            async def one(body):
                found = await decoders.decode(body, loop.time() + 60, ("a", 0))
                order.append(found.width)
                return found

            tasks = [asyncio.ensure_future(one(body)) for body in [large] * 12 + [small] * 4]
            while not all(task.done() for task in tasks):
                most = max(most, len(decoders._large.all))
                await asyncio.sleep(0.001)
            return most, order, [task.result() for task in tasks]
        finally:
            await decoders.close()

    most, order, found = asyncio.run(decode_all())
    assert most == 1 and set(order[-4:]) == {400}
    assert [(one.width, one.height, one.picture.getpixel((5, 5))) for one in found] == [
        (400, 300, (9, 8, 7))
    ] * 12 + [(30, 20, (1, 2, 3))] * 4


def test_a_decoder_that_breaks_down_is_replaced(make_png):
    body = make_png((9, 8, 7))

    async def decode_around_a_breakdown():
        numbers = Numbers()
        decoders = Decoders(Limits(decoders=1), numbers)
        try:
            loop = asyncio.get_running_loop()
            await decoders.decode(body, loop.time() + 60, ("a", 0))
            decoders._small.idle[0].kill()
            with pytest.raises(PictureError, match="its decoder broke down"):
                await decoders.decode(body, loop.time() + 60, ("a", 0))
            again = await decoders.decode(body, loop.time() + 60, ("a", 0))
            return numbers.decoders_ended, again.picture.getpixel((0, 0))
        finally:
            await decoders.close()

    assert asyncio.run(decode_around_a_breakdown()) == (1, (9, 8, 7))


def test_who_leaves_at_once_costs_no_process(make_png):
    """A process that has read the header, or only begun to, forgets the picture and takes the next one."""
    body = make_png((9, 8, 7), size=(400, 300))

    async def leave():
        numbers = Numbers()
        decoders = Decoders(Limits(decoders=1), numbers)
        try:
            loop = asyncio.get_running_loop()
            await decoders.decode(body, loop.time() + 60, ("a", 0))  # it is there
            for turns in (1, 2, 3, 4, 5):
                task = asyncio.ensure_future(decoders.decode(body, loop.time() + 60, ("a", 0)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                found = await decoders.decode(body, loop.time() + 60, ("a", 0))
                assert found.picture.getpixel((5, 5)) == (9, 8, 7)
            return numbers.decoders_ended
        finally:
            await decoders.close()

    assert asyncio.run(leave()) == 0


def test_a_small_picture_that_takes_long_goes_to_the_large_ones(make_png):
    """It is ended where it holds up small ones, and decoded where it holds up nobody."""
    body = make_png((9, 8, 7), size=(400, 300))

    async def decode():
        numbers = Numbers()
        decoders = Decoders(Limits(small_seconds=0.0), numbers)
        try:
            loop = asyncio.get_running_loop()
            return await decoders.decode(body, loop.time() + 60, ("a", 0)), numbers.decoders_ended
        finally:
            await decoders.close()

    found, ended_early = asyncio.run(decode())
    assert found.picture.getpixel((5, 5)) == (9, 8, 7) and ended_early == 1


def test_a_photograph_is_reduced_as_it_is_decoded_and_its_size_is_told(client_for, make_png):
    limits = Limits(whole_pixels=100 * 100, least_side=50)
    answer = client_for(limits=limits).post("/caption?trace=true", content=make_png(size=(400, 300)))
    assert answer.status_code == 200, answer.text
    assert (answer.json()["width"], answer.json()["height"]) == (400, 300)
