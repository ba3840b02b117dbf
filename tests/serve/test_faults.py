"""What people and programs send by mistake or on purpose: each is one JSON error with what to do, and the
service goes on."""

import asyncio
import io
import struct
import zlib
from types import SimpleNamespace

import pytest
from PIL import Image

from patchword.serve.limits import Limits
from patchword.serve.uploads import BodyBudget


def huge_png(width, height):
    """A valid head of some bytes that claims a huge picture."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def gif(frames):
    pictures = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(frames)]
    pictures[0] = Image.new("RGB", (16, 16), (0, 0, 250))
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


@pytest.fixture
def client(client_for):
    return client_for()


def refused(response, status, code):
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "do"} and error["message"] and error["do"]
    assert (
        "Traceback" not in response.text
        and "site-packages" not in response.text
        and "/work" not in response.text
    )
    return error


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="http://127.0.0.1/x"/></svg>'


@pytest.mark.parametrize(
    "name, body, kind, status, code",
    [
        ("nothing.jpg", b"", "image/jpeg", 422, "empty_upload"),
        ("text.jpg", b"this is no picture", "image/jpeg", 415, "not_a_picture"),
        ("drawing.svg", SVG, "image/svg+xml", 415, "not_a_picture"),
        ("page.png", b"<html><script>alert(1)</script></html>", "image/png", 415, "not_a_picture"),
        ("pickle.png", b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", "image/png", 415, "not_a_picture"),
        (
            "script.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "image/png",
            415,
            "not_a_picture",
        ),
        ("bomb.png", huge_png(20_000, 20_000), "image/png", 413, "too_many_pixels"),
        ("short.png", huge_png(40, 40), "image/png", 422, "damaged_picture"),
    ],
)
def test_bad_pictures(client, name, body, kind, status, code):
    refused(client.post("/caption", content=body, headers={"Content-Type": kind}), status, code)
    refused(client.post("/caption", files={"image": (name, body, kind)}), status, code)
    assert client.get("/health").status_code == 200


def test_truncated_uploads(client, make_png):
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        whole = make_png(size=(200, 150), kind=kind)
        refused(client.post("/caption", content=whole[: len(whole) // 2]), 422, "damaged_picture")


def test_the_kind_is_told_by_content(client, make_png):
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        found = client.post(
            "/caption", files={"image": ("notes.txt", make_png((255, 255, 255), kind=kind), "text/plain")}
        )
        assert found.status_code == 200 and found.json()["caption"] == "colour 255 255 255"


def test_two_hundred_frames_are_one_picture(client):
    found = client.post("/caption", content=gif(200))
    assert found.status_code == 200 and found.json()["caption"] == "colour 0 0 250"


FORM = "application/x-www-form-urlencoded"
DECLARED = [FORM, "application/json", "text/plain", "multipart/form-data", "nonsense", ""]


@pytest.mark.parametrize("kind", DECLARED)
def test_kind_8_content_decides_whatever_is_declared(client, make_png, kind):
    """curl --data-binary and Python's urllib declare a form, whatever they send."""
    found = client.post("/caption", content=make_png(), headers={"Content-Type": kind})
    assert found.status_code == 200 and found.json()["caption"] == "colour 200 10 30"
    words = b'{"image": "http://example.com/x.jpg"}'
    answer = client.post("/caption", content=words, headers={"Content-Type": kind})
    assert "multipart/form-data" in answer.json()["error"]["do"]
    if kind != "multipart/form-data":
        refused(answer, 415, "not_a_picture")


def test_kind_8_a_picture_that_curl_cut_says_how_to_send_it(client, make_png):
    """`curl --data @photo` leaves the line breaks out of the bytes."""
    cut = make_png(kind="JPEG", size=(200, 200))[:-100]
    error = refused(
        client.post("/caption", content=cut, headers={"Content-Type": FORM}), 422, "damaged_picture"
    )
    assert "use --data-binary" in error["do"]


def test_large_bodies(client_for, make_png):
    client = client_for(limits=Limits(body_bytes=1000))
    refused(client.post("/caption", content=b"x" * 1001), 413, "body_too_large")
    refused(client.post("/caption", content=b"x" * 50_000), 413, "body_too_large")
    refused(client.post("/caption", content=iter([b"x" * 400] * 5)), 413, "body_too_large")
    assert client.post("/caption", content=make_png()).status_code == 200
    crowded = client_for(limits=Limits(held_bytes=100))
    answer = crowded.post("/caption", content=b"x" * 101)
    refused(answer, 503, "queue_full")
    assert answer.headers["retry-after"] == "2"
    assert crowded.app.state.service.held.bytes == client.app.state.service.held.bytes == 0


@pytest.mark.parametrize(
    "name",
    ["../../../../etc/passwd", "/etc/passwd", "C:\\windows\\x", "a\x00b", "x" * 500, "%2e%2e%2f", 'a"b'],
)
def test_names_are_never_used(client, make_png, name):
    assert (
        client.post("/caption", files={"image": (name, make_png(), "image/png")}).json()["caption"]
        == "colour 200 10 30"
    )


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js/../../app.py", "/page.html", "/static/x"],
)
def test_paths_never_reach_the_disk(client, path):
    refused(client.get(path), 404, "no_such_path")


@pytest.mark.parametrize(
    "kind, body, status, code",
    [
        ("multipart/form-data", b"x", 400, "malformed_multipart"),
        ("multipart/form-data; boundary=B", b"no boundary at all", 400, "malformed_multipart"),
        (
            "multipart/form-data; boundary=B",
            b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--\r\n",
            422,
            "no_file",
        ),
        (
            "multipart/form-data; boundary=B",
            b'--B\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--B--\r\n',
            422,
            "no_file",
        ),
        ("multipart/form-data; boundary=B", b"--B--\r\n", 422, "no_file"),
        ("multipart/form-data; boundary=B", b"", 422, "no_file"),
    ],
)
def test_malformed_forms(client, kind, body, status, code):
    refused(client.post("/caption", content=body, headers={"Content-Type": kind}), status, code)


def test_a_form_that_ends_too_early(client, make_png):
    body = b'--B\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n\r\n' + make_png()
    for end in (b"", b"\r\n--"):
        response = client.post(
            "/caption", content=body + end, headers={"Content-Type": "multipart/form-data; boundary=B"}
        )
        refused(response, 422, "no_file")


def test_two_files_are_too_many(client, make_png):
    files = [("image", ("a.png", make_png())), ("image", ("b.png", make_png()))]
    assert (
        "2 files, expected one" in refused(client.post("/caption", files=files), 422, "many_files")["message"]
    )
    assert (
        "parts" in refused(client.post("/caption", files=files * 10), 400, "malformed_multipart")["message"]
    )
    fields = client.post("/caption", files=files[:1], data={"note": "x", "image": "y"})
    assert fields.status_code == 200, "fields beside the file are passed over"


def test_uploads_stay_in_memory(client, make_png, monkeypatch):
    """Form parsers commonly spool files of more than a megabyte to disk."""

    def written(*arguments, **named):
        raise AssertionError("a temporary file was made")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.__init__", written)
    monkeypatch.setattr("tempfile.mkstemp", written)
    body = make_png(size=(1200, 1000), kind="BMP")
    assert client.post("/caption", files={"image": ("x.bmp", body)}).status_code == 200


def test_errors_of_the_model_are_not_told(client, make_png):
    response = client.post("/caption", content=make_png(size=(13, 13)))
    refused(response, 500, "internal")
    assert "secret" not in response.text
    streamed = client.post("/caption?stream=1", content=make_png(size=(13, 13)))
    assert "event: error" in streamed.text and "secret" not in streamed.text and '"internal"' in streamed.text
    assert client.post("/caption", content=make_png()).status_code == 200


@pytest.mark.parametrize(
    "method, path, status",
    [("GET", "/caption", 405), ("PUT", "/ask", 405), ("POST", "/", 405), ("GET", "/x", 404)],
)
def test_wrong_methods_and_paths(client, method, path, status):
    refused(client.request(method, path), status, "no_such_path")


def test_who_is_refused_again_and_again_waits(client_for, make_png, monkeypatch):
    """Two refusals at once, then one every ten seconds, none later than 25; and nobody else waits."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    client = client_for(limits=Limits(refusals_at_once=2, refusals_per_second=0.1, refusal_seconds=25))
    monkeypatch.setattr("patchword.serve.guards.asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    for _ in range(6):
        refused(client.post("/caption", content=b"no picture"), 415, "not_a_picture")
    assert slept[:3] == [0, 0, 0]
    assert 0 < slept[3] <= 10 < slept[4] <= 20 and slept[5] == pytest.approx(25)
    assert client.post("/caption", content=make_png()).status_code == 200
    assert len(slept) == 6
    assert client.get("/nothing").status_code == 404
    assert slept[6:] == [0], "what reads has turns of its own"


def test_long_bodies_come_in_at_a_rate(client_for, make_png, monkeypatch):
    """Ten kB a second after the first thousand bytes of a body, whoever sends it; short ones do not wait."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    limits = Limits(short_bytes=1000, intake_bytes=10_000)
    client = client_for(limits=limits)
    apart = SimpleNamespace(**vars(asyncio) | {"sleep": sleep})
    monkeypatch.setattr("patchword.serve.uploads.asyncio", apart)
    assert client.post("/caption", content=make_png()).status_code == 200
    assert slept == []
    for _ in range(2):
        refused(client.post("/caption", content=b"x" * 6000), 415, "not_a_picture")
    assert len(slept) == 2 and slept[0] == pytest.approx(0.6) and 0.6 < slept[1] <= 1.2
    assert client.app.state.service.held.bytes == 0


def test_a_body_is_forgotten_at_once_whatever_still_refers_to_it():
    held, body = BodyBudget(Limits()), bytearray(b"x" * 100)
    held.bytes = 150
    held.release(body)
    assert (held.bytes, len(body)) == (50, 0)
    told = bytearray(b"x" * 10)
    with memoryview(told):  # a decoder is being told of it
        held.release(told)
    assert held.bytes == 40
