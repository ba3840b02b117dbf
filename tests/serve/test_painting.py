"""The route that paints: marked files in JSON, refusals in its one shape, and nothing where nobody named a painter."""

import base64
import io

import numpy as np
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.errors import ConfigError, DataError
from patchword.tasks.paint.marks import SOURCE_TYPE


class FakePainter:
    """Paints its seed as a grey."""

    facts = ModelFacts(name="grey", description="paints greys")
    identity, usual_steps = "none", 3

    def remarks(self, text):
        return ["it reads nothing"] if "read" in text else []

    def check(self, text):
        if "zebra" in text:
            raise DataError("'zebra' has no word that the model knows")

    def paint(self, prompt, seeds, guidance=None, steps=None, percentile=None, watch=None):
        if guidance == 9:
            raise ConfigError("guidance is 9")
        return np.stack([np.full((8, 8, 3), seed, np.uint8) for seed in seeds])


def test_pictures_come_as_marked_files_with_their_seeds(client_for):
    client = client_for(painter=FakePainter())
    answer = client.post("/paint", json={"prompt": "read this", "number": 2, "seed": 40}).json()
    assert [one["seed"] for one in answer["pictures"]] == [40, 41]
    assert answer["remarks"] == ["it reads nothing"]
    with Image.open(io.BytesIO(base64.b64decode(answer["pictures"][1]["png"]))) as picture:
        assert picture.getpixel((0, 0)) == (41, 41, 41)
        assert '"seed": 41' in picture.info["patchword"] and SOURCE_TYPE in picture.info["c2pa.actions"]
    facts = client.get("/models").json()
    assert facts["can"]["paint"] is True and facts["painter"]["name"] == "grey"


def test_what_cannot_be_painted_is_refused(client_for):
    client = client_for(painter=FakePainter())
    for body, message in (
        ({"prompt": "zebra"}, "'zebra' has no word that the model knows"),
        ({"prompt": "a star", "guidance": 9}, "guidance is 9"),
    ):
        refused = client.post("/paint", json=body)
        assert refused.status_code == 422 and refused.json()["error"]["message"] == message
    assert client.post("/paint", json={"prompt": "a star", "number": 9}).status_code == 422
    assert client.post("/paint", json={"prompt": ""}).status_code == 422
    silent = client_for()
    refused = silent.post("/paint", json={"prompt": "a star"})
    assert refused.status_code == 404 and "paint" in refused.json()["error"]["message"]
    assert silent.get("/models").json()["can"]["paint"] is False
