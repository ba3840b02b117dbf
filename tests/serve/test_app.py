import json
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from patchword.checkpoints.facts import ModelFacts
from patchword.data.pictures import Preprocessing
from patchword.errors import DataError
from patchword.html.pictures import small_jpeg
from patchword.serve.abilities import Hit, Query, caption_answer
from patchword.serve.asking import AskOptions
from patchword.serve.batching import Call
from patchword.serve.refusals import Refusal
from patchword.tasks.answer.result import Answer, Answers
from patchword.tasks.caption.result import Caption


class Everything:
    def read(self, texts):
        return [Query(text, ("the model does not know: zebra",) * ("zebra" in text)) for text in texts]

    def nearest(self, query, k):
        return [Hit(f"{query.vector_E}-{i}.jpg", 1.0 - i / 10, f"{i:064x}") for i in range(k)]

    def thumbnail(self, key):
        return small_jpeg(Image.new("RGB", (9, 9))) if key == f"{0:064x}" else None

    facts = ModelFacts(name="able", example="why?")

    def ask_each(self, pictures, questions, n_best=1, *, anyway=False):
        return [
            list(self.explain(*pair, n_best, anyway).answers)
            for pair in zip(pictures, questions, strict=True)
        ]

    def explain(self, picture, question, n_best=3, anyway=False):
        if question == "zzz" and not anyway:
            raise DataError("'zzz' has no word that the model knows")
        answers = (Answer(f"{question} {picture.size[0]}", 0.9), Answer("no", 0.1))
        return Answers(
            question, answers, (question,), np.full((1, 2), 0.5), np.array([[[0.25, 0.75]]]), ("sky", "sea")
        )

    def label(self, picture, labels):
        return [(label, 1 / len(labels)) for label in reversed(labels)]


def test_a_picture_as_body_and_as_form_give_the_same(client_for, make_png):
    client = client_for()
    body = make_png((200, 10, 30))
    answers = [
        client.post("/caption", content=body).json(),
        client.post("/caption", content=body, headers={"Content-Type": "image/png"}).json(),
        client.post("/caption", files={"image": ("x.png", body, "image/png")}).json(),
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["caption"] == "colour 200 10 30" and answers[0]["tokens"] == [
        "colour",
        "200",
        "10",
        "30",
    ]
    assert answers[0]["attention"] is None and answers[0]["width"] == 30


def test_the_map_of_each_word_is_sent_with_its_name():
    maps_Thw = np.array([[[0.75, 0.25]], [[0.0, 1.0]]], np.float32)
    attention_Thw = np.full((2, 1, 2), 0.5, np.float32)
    caption = Caption("a dog", -1.0, ("a", "dog"), attention_Thw=attention_Thw)
    mapped = replace(caption, maps_Thw=maps_Thw, map_names=("attention", "class_activation"))
    picture = Image.new("RGB", (4, 4))
    sent = caption_answer("m", None, mapped, picture, trace=True).attention
    assert sent.weights == [[0.75, 0.25], [0, 1]] and sent.maps == ["attention", "class_activation"]
    sent = caption_answer("m", None, caption, picture, trace=True).attention
    assert sent.weights == [[0.5, 0.5]] * 2 and sent.maps == [], "attention for all"


def test_trace_and_hypotheses(client_for, make_png):
    found = client_for().post("/caption?trace=true&n_best=3", content=make_png()).json()
    assert [one["caption"] for one in found["hypotheses"]] == ["colour 200 10 30", "other 1", "other 2"]
    assert sum(one["share"] for one in found["hypotheses"]) == pytest.approx(1)
    attention = found["attention"]
    assert (attention["rows"], attention["columns"], attention["box"]) == (2, 3, [0, 0, 1, 1])
    assert attention["weights"][1] == [0, 1, 0, 0, 0, 0]
    assert found["sentinel"] == [0.1, 0.2, 0.3, 0.4] and found["concepts"] == ["sky", "sea", "sea"] * 2
    assert found["prototypes"][0] == [
        {"index": 3, "weight": 0.5, "captions": ["a red thing", "something red"]},
        {"index": 4, "weight": 0.25, "captions": []},
    ], "a prototype without a part in the word is left out"


def test_words_are_streamed_when_asked(client_for, make_png):
    client = client_for()
    for response in (
        client.post("/caption?stream=true", content=make_png()),
        client.post("/caption", content=make_png(), headers={"Accept": "text/event-stream"}),
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", response.text)
        assert [kind for kind, _ in events] == ["queued", "word", "word", "word", "word", "caption"]
        assert [json.loads(data)["token"] for kind, data in events if kind == "word"] == [
            "colour",
            "200",
            "10",
            "30",
        ]
        assert json.loads(events[-1][1])["caption"] == "colour 200 10 30"


def test_words_of_greedy_search_are_streamed(client_for, streaming_fake, make_png):
    model = streaming_fake
    client = client_for(model)
    response = client.post("/caption?stream=true&trace=true", content=make_png())
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", response.text)
    assert [kind for kind, _ in events] == ["queued", "word", "word", "word", "word", "caption"]
    assert [json.loads(data) for kind, data in events if kind == "word"][2] == {"position": 2, "token": "10"}
    whole = json.loads(events[-1][1])
    assert whole["caption"] == "colour 200 10 30" and whole["attention"]["rows"] == 2
    assert model.batches == [], "no batch of searches ran"
    client.post("/caption", content=make_png())
    assert model.batches == [1], "where nothing is streamed, a search runs"
    refused = client.post("/caption?stream=true", content=make_png(size=(13, 13))).text
    assert "event: error" in refused and "secret" not in refused


def test_a_search_sends_a_draft_before_its_words(client_for, streaming_fake, make_png):
    response = client_for(streaming_fake).post(
        "/caption?stream=true&beams=3&n_best=2&trace=true", content=make_png()
    )
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", response.text)
    assert [kind for kind, _ in events] == ["queued", *["draft"] * 4, *["word"] * 4, "caption"]
    assert [json.loads(data)["token"] for kind, data in events if kind == "draft"] == [
        "colour",
        "200",
        "10",
        "30",
    ]
    whole = json.loads(events[-1][1])
    assert [one["caption"] for one in whole["hypotheses"]] == ["colour 200 10 30", "other 1"] and whole[
        "attention"
    ] is not None
    assert streaming_fake.batches == [1], "the search ran once, behind the draft"


def test_a_search_that_is_refused_after_its_draft_ends_the_stream_with_an_error(
    client_for, streaming_fake, make_png
):
    client = client_for(streaming_fake)
    batcher, entered = client.app.state.service.batcher, []
    first = batcher.enter

    def once(*arguments):
        entered.append(arguments)
        if len(entered) > 1:
            raise Refusal(
                503, "queue_full", "as many requests as allowed are waiting already", "try again in 2 seconds"
            )
        return first(*arguments)

    batcher.enter = once
    events = re.findall(
        r"event: (\w+)\n", client.post("/caption?stream=true&beams=3", content=make_png()).text
    )
    assert events == ["queued", *["draft"] * 4, "error"]


def test_the_middle_cut_of_the_preprocessing_is_told(client_for, fake, make_png):
    prescribed = Preprocessing(size=224, fit="short_side_center_crop")
    fake.settings = type("Settings", (), {"preprocessing": prescribed})
    found = client_for(fake).post("/caption?trace=1", content=make_png(size=(40, 20))).json()
    assert found["attention"]["box"] == [0.25, 0, 0.75, 1]


def test_models_are_listed_and_chosen(client_for, fake, make_png):
    other = type(fake)()
    other.facts = ModelFacts(name="other")
    client = client_for(models={"fake": fake, "other": other})
    facts = client.get("/models").json()
    assert facts["models"][0] == {
        "name": "fake",
        "description": "says colours",
        "limits": "knows nothing else",
        "example": "",
    }
    assert [model["name"] for model in facts["models"]] == ["fake", "other"]
    assert facts["can"] == {"caption": True, "search": False, "ask": False, "label": False, "paint": False}
    client.post("/caption?model=other", content=make_png())
    assert (fake.batches, other.batches) == ([], [1])
    refused = client.post("/caption?model=third", content=make_png())
    assert refused.status_code == 404 and "choose one of: fake, other" in refused.json()["error"]["do"]


def test_search_ask_and_label(client_for, make_png):
    able = Everything()
    client = client_for(index=able, answers=able, labels=able)
    hits = client.post("/search", json={"text": "dog", "k": 2}).json()["hits"]
    assert [(hit["name"], hit["score"]) for hit in hits] == [("dog-0.jpg", 1.0), ("dog-1.jpg", 0.9)]
    assert [hit["picture"] for hit in hits] == [f"/thumbnails/{i:064x}" for i in range(2)]
    assert client.post("/ask?question=why", content=make_png()).json()["answers"][0] == {
        "text": "why 30",
        "probability": 0.9,
    }
    refused = client.post("/ask?question=zzz", content=make_png())
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "not_answered"
    assert (
        client.post("/ask?question=zzz&anyway=true", content=make_png()).json()["answers"][0]["text"]
        == "zzz 30"
    )
    answers = client.post("/label?label=a&label=b", content=make_png()).json()["answers"]
    assert [one["text"] for one in answers] == ["b", "a"]
    can = client.get("/models").json()["can"]
    assert all(can[name] for name in ("caption", "search", "ask", "label"))


def test_different_questions_share_a_batch(client_for):
    service = client_for(answers=Everything()).app.state.service
    asked = [(Image.new("RGB", (width, 9)), question) for width, question in ((5, "a"), (6, "b"))]
    assert [found.answers[0].text for found in service.run(Call("ask", AskOptions(False, False)), asked)] == [
        "a 5",
        "b 6",
    ]


def test_where_a_question_looked(client_for, make_png):
    client = client_for(answers=Everything())
    found = client.post("/ask?question=why&trace=true", content=make_png()).json()
    assert (
        found["tokens"] == ["why"]
        and found["attention"]["weights"] == [[0.25, 0.75]]
        and found["looked"] == [0.5, 0.5]
    )
    assert found["concepts"] == ["sky", "sea"] and found["attention"]["columns"] == 2
    assert client.post("/ask?question=why", content=make_png()).json()["tokens"] is None
    assert client.get("/models").json()["answerer"]["example"] == "why?"


@pytest.mark.parametrize(
    "path, what",
    [
        ("/search", "an index"),
        ("/ask?question=x", "a question model"),
        ("/label?label=x", "a labelling model"),
    ],
)
def test_what_is_not_configured_says_so(path, what, client_for, make_png):
    refused = client_for().post(path, content=make_png())
    assert refused.status_code == 404
    assert refused.json()["error"] == {
        "code": "not_configured",
        "message": f"this service was started without {what}",
        "do": refused.json()["error"]["do"],
    }


@pytest.mark.parametrize(
    "body, where",
    [
        (b'{"text": ', "Invalid JSON"),
        (b"[]", "body: Input should be an object"),
        (b'{"text": ""}', "text: String should have at least 1 character"),
        (b'{"text": "a", "k": 1e9}', "k: Input should be less than or equal to 100"),
        (b'{"text": "\\ud800"}', "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 50_000, "JSON"),
    ],
)
def test_malformed_json(body, where, client_for):
    refused = client_for(index=Everything()).post(
        "/search", content=body, headers={"Content-Type": "application/json"}
    )
    assert refused.status_code == 422 and where in refused.json()["error"]["message"]


def test_large_json_is_refused(client_for):
    client = client_for(index=Everything())
    assert client.post("/search", content=b" " * 70_000).json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("query", ["beams=0", "beams=11", "n_best=x", "trace=maybe", "model=" + "x" * 201])
def test_options_out_of_range(query, client_for, make_png):
    refused = client_for().post(f"/caption?{query}", content=make_png())
    assert refused.status_code == 422 and refused.json()["error"]["message"].startswith(
        "query." + query.partition("=")[0]
    )


def test_every_answer_carries_the_security_headers(client_for, make_png):
    client = client_for()
    for response in (
        client.get("/"),
        client.get("/page.js"),
        client.get("/nowhere"),
        client.post("/caption", content=make_png()),
        client.post("/caption", content=b"x"),
        client.get("/", headers={"Host": "evil.example"}),
    ):
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers


def test_the_page_is_whole_and_from_here(client_for):
    client = client_for()
    page, script, words, style = (
        client.get(path).text for path in ("/", "/page.js", "/words.js", "/page.css")
    )
    icon, *files = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert icon.startswith("data:image/svg+xml,") and files == ["/page.css", "/page.js"]
    assert re.findall(r'from "(.*)"', script + words) == ["./words.js"]
    assert "<style" not in page and " style=" not in page and not re.search(r"\son\w+=", page)
    assert "prefers-color-scheme: dark" in style
    for text in (script, words, style):
        assert "innerHTML" not in text and "eval(" not in text
        assert not re.search(r"(?:https?:)?//[a-z]+\.", text), "nothing comes from elsewhere"
    assert client.get("/docs").status_code == 404


def test_other_sites_are_refused(client_for):
    client = client_for()
    assert (
        client.get("/health", headers={"Host": "evil.example:8321"}).json()["error"]["code"] == "wrong_host"
    )
    assert (
        client.get("/health", headers={"Origin": "https://evil.example"}).json()["error"]["code"]
        == "other_site"
    )
    assert client.get("/health", headers={"Origin": "null"}).status_code == 403
    assert client.get("/health", headers={"Origin": "http://127.0.0.1:8321"}).status_code == 200
    for host in ("localhost", "localhost:8321", "[::1]:8321", "127.0.0.1"):
        assert client.get("/health", headers={"Host": host}).status_code == 200


def test_a_token_is_demanded(client_for, make_png):
    client = client_for(token="a-long-enough-secret")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "a-long-enough-secret"},
        {"Authorization": b"Bearer \xff"},
    ):
        refused = client.post("/caption", content=make_png(), headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    told = {"Authorization": "Bearer a-long-enough-secret", "Host": "my.machine:80"}
    assert client.post("/caption", content=make_png(), headers=told).status_code == 200
    assert client.get("/models").status_code == 401 and client.get("/metrics").status_code == 401
    assert client.get("/health").status_code == client.get("/").status_code == 200


def test_metrics_count_what_happened(client_for, make_png):
    client = client_for()
    client.post("/caption", content=make_png())
    client.post("/caption", content=b"no picture")
    for i in range(3):
        client.get(f"/invented/{i}")
    text = client.get("/metrics").text
    for line in (
        'patchword_requests_total{path="/caption",status="200"} 1',
        'patchword_requests_total{path="/caption",status="415"} 1',
        'patchword_requests_total{path="other",status="404"} 3',
        "patchword_batches_total 1",
        "patchword_batched_requests_total 1",
        "patchword_waiting 0",
    ):
        assert line in text.splitlines()


def test_remarks_on_a_query_are_told(client_for):
    client = client_for(index=Everything())
    assert client.post("/search", json={"text": "dog"}).json()["remarks"] == []
    assert client.post("/search", json={"text": "zebra"}).json()["remarks"] == [
        "the model does not know: zebra"
    ]


def test_a_small_copy_is_kept_by_the_browser_that_asked(client_for):
    client = client_for(index=Everything())
    found = client.get(f"/thumbnails/{0:064x}")
    assert (found.headers["content-type"], found.content[:2]) == ("image/jpeg", b"\xff\xd8")
    assert found.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = client.get(f"/thumbnails/{0:064x}", headers={"If-None-Match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.post("/search", json={"text": "dog"}).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("key", [f"{9:064x}", "0", "..%2f..%2fetc%2fpasswd", "x" * 64, "A" * 64])
def test_a_copy_that_is_not_there_is_refused_and_not_kept(client_for, key):
    refused = client_for(index=Everything()).get(f"/thumbnails/{key}")
    assert (refused.status_code, refused.headers["cache-control"]) == (404, "no-store")
    assert client_for().get(f"/thumbnails/{key}").status_code == 404


def test_copies_ask_for_the_token(client_for):
    client = client_for(index=Everything(), token="0123456789abcdef")
    assert client.get(f"/thumbnails/{0:064x}").status_code == 401
    told = {"Authorization": "Bearer 0123456789abcdef"}
    assert client.get(f"/thumbnails/{0:064x}", headers=told).status_code == 200


def test_copies_are_sent_while_the_model_is_busy(client_for, fake, make_png):
    fake.gate.clear()
    client = client_for(fake, index=Everything())
    waiting = threading.Thread(target=client.post, args=("/caption",), kwargs={"content": make_png()})
    waiting.start()
    assert fake.entered.wait(10)
    assert client.get(f"/thumbnails/{0:064x}").status_code == 200
    fake.gate.set()
    waiting.join()


def test_openapi_names_all_paths_and_the_error(client_for):
    document = client_for().get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/caption",
        "/search",
        "/paint",
        "/thumbnails/{key}",
        "/ask",
        "/label",
        "/models",
        "/health",
        "/ready",
        "/metrics",
    }
    caption = document["paths"]["/caption"]["post"]
    assert "multipart/form-data" in caption["requestBody"]["content"] and "503" in caption["responses"]
    assert caption["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "CaptionAnswer"
    )


def test_numbers_that_json_cannot_hold(client_for, fake, make_png):
    fake.one = lambda picture, n_best, trace: Caption("x", -np.inf, ("x",), False, np.full((1, 1, 1), np.nan))
    found = client_for(fake).post("/caption?trace=1", content=make_png()).json()
    assert found["log_probability"] is None and found["attention"]["weights"] == [[0.0]]
