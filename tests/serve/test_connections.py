"""The service behind a real socket: slow and lost clients, too many of them, and an end under load."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from PIL import Image

from patchword.errors import ConfigError
from patchword.serve.app import create_app
from patchword.serve.connections import bounded_protocol
from patchword.serve.limits import Limits
from patchword.serve.run import check_address, take_port
from patchword.serve.streaming import streamed

HERE = Path(__file__).parent


@pytest.fixture
def serve():
    """Start a service in a thread of this process; gives its port."""
    running = []

    def start(model, **limits):
        bounds = Limits(**limits)
        app = create_app({"fake": model}, limits=bounds)
        config = uvicorn.Config(
            app, port=0, http=bounded_protocol(bounds), ws="none", log_level="error", access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((model, server, thread))
        wait(lambda: server.started)
        return server.servers[0].sockets[0].getsockname()[1]

    yield start
    for model, server, thread in running:
        model.gate.set()
        server.should_exit = True
        thread.join()


def wait(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def ask(port, method, path, body=None, headers=None):
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def opened(port, text=b""):
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(text)
    return client


def everything(client):
    """What the server sends until it closes the connection."""
    found = b""
    try:
        while part := client.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    client.close()
    return found


def metric(port, name):
    text = ask(port, "GET", "/metrics")[2].decode()
    return int(next(line for line in text.splitlines() if line.startswith(f"patchword_{name} ")).split()[-1])


HEAD = b"POST /caption HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"


def test_slow_clients_are_let_go(serve, fake):
    port = serve(fake, body_seconds=0.4)
    silent, half_a_head, half_a_body = opened(port), opened(port, HEAD[:30]), opened(port, HEAD + b"x")
    assert everything(silent) == everything(half_a_head) == b""
    answer = everything(half_a_body)
    assert (
        answer.startswith(b"HTTP/1.1 408 ")
        and b'"slow_body"' in answer
        and b"the body did not arrive within 0.4 seconds" in answer
    )
    assert ask(port, "GET", "/health")[0] == 200


def test_connections_are_capped(serve, fake):
    port = serve(fake, connections=2, body_seconds=20)
    held = [opened(port), opened(port)]
    answer = everything(opened(port))
    assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 2" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "queue_full"
    for client in held:
        client.close()

    def free():
        try:
            return ask(port, "GET", "/health")[0] == 200
        except OSError:
            return False

    wait(free)


def test_fifty_megabytes_are_refused_with_an_answer(serve, fake):
    port = serve(fake)
    status, _, body = ask(port, "POST", "/caption", b"x" * 50_000_000)
    assert status == 413 and json.loads(body)["error"]["message"] == "the body is larger than 20 MB"
    status, headers, _ = ask(port, "POST", "/caption", b"", {"Content-Length": str(10**12)})
    assert status == 413 and headers["connection"] == "close"


def test_a_client_that_leaves_cancels_its_work(serve, fake, make_png):
    fake.gate.clear()
    port = serve(fake)
    body = make_png()
    head = HEAD.replace(b"1000", str(len(body)).encode())

    running = opened(port, head + body)
    assert fake.entered.wait(60)
    leaving, streaming = (
        opened(port, head + body),
        opened(port, head.replace(b"/caption", b"/caption?stream=1") + body),
    )
    wait(lambda: metric(port, "waiting") == 2)
    leaving.close()
    streaming.close()
    wait(lambda: metric(port, "waiting") == 0)
    fake.gate.set()
    running.recv(100)
    running.close()
    assert fake.batches == [1] and metric(port, "cancelled_total") == 2


def test_words_arrive_while_the_model_still_runs(serve, streaming_fake, make_png):
    streaming_fake.gate.clear()
    port = serve(streaming_fake)
    body = make_png()
    reading = opened(
        port, HEAD.replace(b"/caption", b"/caption?stream=1").replace(b"1000", str(len(body)).encode()) + body
    )
    reading.settimeout(60)
    seen = b""
    while b'"colour"' not in seen:
        seen += reading.recv(1000)
    assert b'"200"' not in seen and not streaming_fake.stopped
    streaming_fake.gate.set()
    while b"event: caption" not in seen:
        seen += reading.recv(1000)
    assert b'"200"' in seen
    reading.close()


def test_a_stream_that_nobody_reads_ends_at_the_next_word(streaming_fake):
    words = SimpleNamespace(unwanted=False)
    words.put = lambda word: setattr(words, "unwanted", word == "200")
    assert streamed(streaming_fake, Image.new("RGB", (4, 4), (200, 10, 30)), False, words) is None
    assert streaming_fake.stopped and words.unwanted


def test_a_full_queue_says_when_to_come_back(serve, fake, make_png):
    fake.gate.clear()
    port = serve(fake, queue=1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask, port, "POST", "/caption", make_png())
        assert fake.entered.wait(60)
        second = threads.submit(ask, port, "POST", "/caption", make_png())
        wait(lambda: ask(port, "GET", "/ready")[0] == 503)
        status, headers, body = ask(port, "POST", "/caption", make_png())
        assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "2", "queue_full")
        fake.gate.set()
        assert first.result()[0] == second.result()[0] == 200
    assert ask(port, "GET", "/ready")[0] == 200


def test_a_late_answer_is_a_deadline(serve, fake, make_png):
    fake.gate.clear()
    port = serve(fake, deadline_seconds=0.3)
    status, _, body = ask(port, "POST", "/caption", make_png())
    assert status == 504 and "within 0.3 seconds" in json.loads(body)["error"]["message"]
    fake.gate.set()


def test_many_clients_get_their_own_answers(serve, fake, make_png):
    fake.seconds = 0.01
    port = serve(fake)
    colours = [(i, 255 - i, 7 * i % 256) for i in range(0, 250, 5)]
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda colour: ask(port, "POST", "/caption", make_png(colour)), colours))
    said = [json.loads(body)["caption"] for _, _, body in answers]
    assert said == [f"colour {red} {green} {blue}" for red, green, blue in colours]
    assert sum(fake.batches) == 50 and len(fake.batches) < 50, "requests shared batches"


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from conftest import FakeModel
from patchword.serve.app import create_app
from patchword.serve.limits import Limits
from patchword.serve.run import serve, take_port
limits = Limits(batch=2, stop_seconds=60)
with take_port("127.0.0.1", int(sys.argv[2])) as taken:
    app = create_app({"fake": FakeModel(1.0)}, limits=limits)
    serve(app, taken, limits, lambda: print("ready", flush=True))
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_kind_9_ready_is_said_when_requests_are_answered():
    """The first request after the word is answered, without a second try."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(HERE), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        assert ask(port, "GET", "/ready")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_kind_9_a_port_that_is_taken_is_refused_and_nothing_is_called_ready():
    with take_port("127.0.0.1", free_port()) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on .*--port {port + 1}"):
            take_port("127.0.0.1", port)
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(HERE), str(port)],
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert process.returncode != 0 and process.stdout == b""


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_kind_9_an_address_that_is_not_ours_is_refused(host):
    with pytest.raises(ConfigError, match=f"{host}:8321 cannot be listened on"):
        take_port(host, 8321)


def test_sigterm_finishes_what_was_taken(make_png):
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(HERE), str(port)], stderr=subprocess.PIPE)
    try:

        def answers():
            try:
                return ask(port, "GET", "/health")[0] == 200
            except OSError:
                assert process.poll() is None, process.stderr.read()
                return False

        wait(answers, 120)
        with ThreadPoolExecutor(12) as threads:
            jobs = [threads.submit(ask, port, "POST", "/caption", make_png((i, i, i))) for i in range(12)]
            wait(lambda: metric(port, "batches_total") and metric(port, "waiting") >= 3)
            process.send_signal(signal.SIGTERM)
            found = [job.result() for job in jobs]
        assert [json.loads(body)["caption"] for _, _, body in found] == [
            f"colour {i} {i} {i}" for i in range(12)
        ]
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stderr.read()
        with pytest.raises(OSError):
            ask(port, "GET", "/health")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    "host, token, message",
    [
        ("0.0.0.0", None, "--host 0.0.0.0 opens the service to other machines: give --token"),
        ("::", None, "give --token"),
        ("example.org", None, "give --token"),
        ("127.0.0.1", "short", "at least 16 printable ASCII characters"),
        ("0.0.0.0", "a token with spaces in it", "without spaces"),
    ],
)
def test_open_addresses_demand_a_good_token(host, token, message):
    with pytest.raises(ConfigError, match=message):
        check_address(host, token)


@pytest.mark.parametrize(
    "host, token",
    [("127.0.0.1", None), ("::1", None), ("localhost", None), ("0.0.0.0", "a-long-enough-secret")],
)
def test_addresses_that_may_be_served(host, token):
    assert check_address(host, token) is None
