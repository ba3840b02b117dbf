"""What Python programs and the command line hand over as a picture: bytes, open files, addresses where they
are allowed, and what is none."""

import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchword
from patchword.data.network import fetch
from patchword.data.pictures import open_picture
from patchword.errors import PictureError, PictureTooLarge

RED = (200, 10, 30)


@pytest.fixture(scope="module")
def png():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), RED).save(buffer, "PNG")
    return buffer.getvalue()


def test_bytes_and_open_files_are_pictures(png, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(png)
    expected = Image.new("RGB", (40, 30), RED)
    with open(path, "rb") as file:
        given = [
            png,
            bytearray(png),
            memoryview(png),
            io.BytesIO(png),
            file,
            path,
            str(path),
            Image.open(io.BytesIO(png)),
        ]
        assert all(open_picture(one) == expected for one in given)
    with (
        open(path, encoding="latin-1") as file,
        pytest.raises(PictureError, match="photo.png: it is open as text"),
    ):
        open_picture(file)


def test_models_take_them_alone_and_in_lists(png, tmp_path):
    model = patchword.load("flickr8k", "cpu")
    array = np.asarray(open_picture(png))
    alone = [model.caption(one, beams=1, trace=False) for one in (png, io.BytesIO(png), array)]
    listed = model.caption([png, io.BytesIO(png), array], beams=1, trace=False)
    assert len({one.text for one in (*alone, *listed)}) == 1 and len(listed) == 3
    answerer = patchword.load("easy-vqa", "cpu")
    question = "what shape is in the image?"
    assert (
        answerer.ask(png, question, anyway=True)[0].text
        == answerer.ask([array], [question], anyway=True)[0][0].text
    )


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "found None"),
        (7, "found int"),
        (torch.zeros(3, 4, 5), r"found torch.Tensor of shape \(3, 4, 5\)"),
        ({"image": 1}, "found dict"),
    ],
)
def test_what_is_no_picture_gets_one_message(given, found):
    model = patchword.load("flickr8k", "cpu")
    for call in (open_picture, model.caption, lambda one: model.caption([one])):
        with pytest.raises(
            PictureError, match=f"this is no picture: {found}.*give a path, the bytes of a picture file"
        ):
            call(given)


class Web(BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    content = b""

    def do_GET(self):
        if self.path == "/gone":
            self.send_error(404)
            return
        if self.path in ("/moved", "/away"):
            self.send_response(302)
            self.send_header("Location", "/photo" if self.path == "/moved" else "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content) + (1000 if self.path == "/short" else 0)))
        self.end_headers()
        if self.path == "/slow":
            time.sleep(2)
        self.wfile.write(self.content)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def web(png):
    """The address of a server on this machine."""
    Web.content = png
    server = HTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses_are_fetched_where_that_is_allowed(web):
    for path in ("/photo", "/moved"):
        assert open_picture(web + path, allow_urls=True).getpixel((0, 0)) == RED
    with pytest.raises(PictureError, match="only where that is allowed: --allow-urls"):
        open_picture(web + "/photo")


@pytest.mark.parametrize(
    ("path", "message"),
    [("/gone", "answered 404"), ("/away", "not allowed"), ("/short", "1,000 bytes too early")],
)
def test_what_cannot_be_fetched_is_told(web, path, message):
    with pytest.raises(PictureError, match=message):
        fetch(web + path)


def test_size_and_time_are_bounded(web):
    with pytest.raises(PictureTooLarge, match="more than .* MiB"):
        fetch(web + "/photo", most_bytes=50)
    with pytest.raises(PictureError, match="within 0.2 seconds"):
        fetch(web + "/slow", seconds=0.2)
    with pytest.raises(PictureError, match="cannot be fetched"):
        fetch("http://127.0.0.1:1/photo")


def test_commands_fetch_addresses_only_with_the_option(patchword, web, towers):
    address = f"{web}/photo"
    label = ("label", address, "--labels", "a dog,a cat", "--model", towers, "--device", "cpu", "--json")
    caption = ("caption", address, "--beam", 1, "--device", "cpu", "--json")
    shape = ("what shape is in the image?", "--model", "easy-vqa", "--anyway")
    ask = ("ask", address, *shape, "--device", "cpu", "--json")
    pair = ("pair", address, "a dog", "--device", "cpu", "--json")
    for command in (label, caption, ask, pair):
        status, out, err = patchword(*command)
        assert status == 2 and out == "" and "--allow-urls" in err and len(err.splitlines()) == 1
        status, out, err = patchword(*command, "--allow-urls")
        assert status == 0 and json.loads(out)["image"] == address, err
    status, _, err = patchword(*caption, "--allow-urls", "--sidecar")
    assert status == 2 and "is an address: use --out" in err


def test_an_address_that_fails_is_one_line_and_others_go_on(patchword, web, tmp_path, png):
    (tmp_path / "photo.png").write_bytes(png)
    command = ("caption", f"{web}/gone", tmp_path / "photo.png", "--beam", 1, "--device", "cpu")
    status, out, err = patchword(*command, "--allow-urls")
    assert status == 1 and len(out.splitlines()) == 1 and "answered 404" in err


def test_nothing_in_a_service_fetches(png):
    """The worker that decodes for the service is given bytes only, and no module of it knows how to fetch."""
    import patchword.data.worker as worker

    source = Path(worker.__file__).parents[1]
    files = [*source.glob("serve/*.py"), source / "data" / "worker.py", source / "data" / "decoding.py"]
    assert not [
        file.name for file in files if "allow_urls" in file.read_text() or "network" in file.read_text()
    ]


@pytest.mark.parametrize("wrap", [io.BytesIO, lambda content: io.BufferedReader(io.BytesIO(content))])
def test_kind_10_a_file_that_was_read_to_its_end_is_not_called_empty(wrap):
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, "PNG")
    source = wrap(buffer.getvalue())
    assert open_picture(source).size == (9, 9)
    with pytest.raises(PictureError, match=r"read to its end before: go back with seek\(0\)"):
        open_picture(source)
    source.seek(0)
    assert open_picture(source).size == (9, 9)
    with pytest.raises(PictureError, match="the file is empty"):
        open_picture(wrap(b""))
