import io
import threading
import time

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from patchword.checkpoints.facts import ModelFacts
from patchword.serve.app import create_app
from patchword.serve.limits import Limits
from patchword.tasks.caption.result import Caption


class FakeModel:
    """Says the mean colour of a picture, so that a swapped answer is seen; keeps the sizes of its batches."""

    def __init__(self, seconds=0.0):
        self.facts = ModelFacts(name="fake", description="says colours", limits="knows nothing else")
        self.seconds, self.batches, self.gate = seconds, [], threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def caption(self, pictures, beams=3, n_best=1, trace=False):
        self.entered.set()
        self.gate.wait(60)
        self.batches.append(len(pictures))
        time.sleep(self.seconds)
        return [self.one(picture, n_best, trace) for picture in pictures]

    def one(self, picture, n_best=1, trace=True):
        if picture.size == (13, 13):
            raise ValueError("secret detail of the model")
        red, green, blue = (int(value) for value in np.asarray(picture).mean((0, 1)))
        tokens = ("colour", str(red), str(green), str(blue))
        maps = np.zeros((4, 2, 3), np.float32)
        maps[np.arange(4), 0, [0, 1, 2, 0]] = 1
        memory = {
            "prototypes": (((3, 0.5), (4, 0.25), (5, 0.0)),) * 4,
            "contexts": {3: ("a red thing", "something red")},
        }
        traced = {
            "attention_Thw": maps,
            "sentinel": (0.1, 0.2, 0.3, 0.4),
            "concepts": ("sky", "sea", "sea") * 2,
            **memory,
        }
        others = tuple(Caption(f"other {k}", -3.0 - k, ("other", str(k))) for k in range(1, n_best))
        return Caption(" ".join(tokens), -2.0, tokens, alternatives=others, **(traced if trace else {}))


class StreamingModel(FakeModel):
    """Gives the first word at once, and each other when its gate is open."""

    stopped = False

    def stream(self, picture, trace=False):
        whole = self.one(picture, 1, trace)
        try:
            for word in whole.tokens:
                yield word
                self.gate.wait(60)
        finally:
            self.stopped = True
        return whole


def png(colour=(200, 10, 30), size=(30, 20), kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def make_png():
    return png


@pytest.fixture
def fake():
    return FakeModel()


@pytest.fixture
def streaming_fake():
    return StreamingModel()


@pytest.fixture
def client_for():
    """Start an application in this process: `client_for(model, limits=..., token=...)`; a client that is not
    told of errors of the server but through its answers.
    """
    open_clients = []

    def start(model=None, *, limits=None, models=None, **more):
        app = create_app(models or {"fake": model or FakeModel()}, limits=limits or Limits(), **more)
        client = TestClient(app, base_url="http://127.0.0.1:8321", raise_server_exceptions=False)
        open_clients.append(client.__enter__())
        return client

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)
