"""The hub: one commit for a name, models that go there and come back, and one sentence where there is no network.

`Hub` is a stand-in on this machine that answers the requests of huggingface_hub by HTTP: repositories are made, files uploaded in commits,
resolved and downloaded.
"""

import base64
import hashlib
import json
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from patchword import hub
from patchword.errors import ModelError
from patchword.tasks.retrieve.load import load_two_towers


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a list of commits: the files by name."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repository: str, revision: str | None) -> str | None:
        commits = self.repositories.get(repository, {})
        return list(commits)[-1] if commits and revision in (None, "main") else revision


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Nothing: a test prints what it wants to say."""

    def reply(self, content=b"", status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code):
        self.reply({"error": code}, 404, X_Error_Code=code)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "validate-yaml"]:
            self.reply({"errors": [], "warnings": []})
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = bool(asked.get("private", asked.get("visibility") == "private"))
            self.reply({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif parts[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            self.reply(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files
                    ]
                }
            )
        elif parts[4:5] == ["commit"]:
            rows = [json.loads(line) for line in body.splitlines()]
            files = {
                row["value"]["path"]: base64.b64decode(row["value"]["content"])
                for row in rows
                if row["key"] == "file"
            }
            name, sha = "/".join(parts[2:4]), hashlib.sha1(body).hexdigest()
            self.server.repositories[name][sha] = files
            self.reply(
                {"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha, "success": True}
            )
        else:
            self.missing("EntryNotFound")

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        commits = self.server.repositories.get(name)
        if not commits:
            self.missing("RepoNotFound")
            return
        sha = self.server.commit(name, rest[1] if len(rest) > 1 else None)
        if sha not in commits:
            self.missing("RevisionNotFound")
        elif api and rest[:1] == ["tree"]:
            self.reply(
                [
                    {"type": "file", "path": path, "size": len(data), "oid": sha}
                    for path, data in commits[sha].items()
                ]
            )
        elif api:
            siblings = [{"rfilename": path} for path in commits[sha]]
            self.reply(
                {"id": name, "sha": sha, "private": False, "siblings": siblings, "tags": [], "downloads": 0}
            )
        elif rest[0] == "resolve" and "/".join(rest[2:]) in commits[sha]:
            data = commits[sha]["/".join(rest[2:])]
            self.reply(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)
        else:
            self.missing("EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Sends huggingface_hub to an address, with a cache of its own."""
    from huggingface_hub import constants

    def move(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    return move


@pytest.fixture
def server(at):
    with Hub() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        at(running.address)
        yield running
        running.shutdown()


NOWHERE = "http://127.0.0.1:9"


def test_a_model_goes_to_the_hub_and_comes_back_by_its_commit(server, at, patchword, towers):
    status, out, err = patchword("push", towers, "someone/towers")
    assert status == 0, err
    (commit,) = server.repositories["someone/towers"]
    assert out.strip() == f"{server.address}/someone/towers/commit/{commit}"
    files = server.repositories["someone/towers"][commit]
    assert set(files) == {"README.md", "config.json", "model.safetensors", "vocab.json"}
    assert server.private["someone/towers"]
    server.repositories["someone/towers"]["f" * 40] = {**files, "config.json": b"newer, and broken"}
    mine, named = load_two_towers(towers, "cpu"), load_two_towers(f"someone/towers@{commit}", "cpu")
    assert named.identity == mine.identity and named.facts.sources == {"someone/towers": commit}
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        load_two_towers("someone/towers", "cpu")
    at(NOWHERE)
    again = load_two_towers(f"someone/towers@{commit}", "cpu")
    assert again.identity == mine.identity, "what was downloaded is used without a network"


def test_a_damaged_model_is_not_uploaded(server, patchword, towers, tmp_path):
    folder = shutil.copytree(towers, tmp_path / "towers")
    (folder / "vocab.json").write_text("{}")
    status, _, err = patchword("push", folder, "someone/towers")
    assert status == 2 and "vocab.json is not the file that was written" in err
    assert not server.repositories


def test_what_the_hub_has_not_is_one_line(server, patchword, towers):
    status, _, err = patchword("label", "a.png", "red", "blue", "--model", "someone/nothing")
    assert status == 2 and err.count("\n") == 1 and "the hub has no model 'someone/nothing'" in err
    assert patchword("push", towers, "someone/towers")[0] == 0
    with pytest.raises(ModelError, match="someone/towers has no revision 'v7'"):
        load_two_towers("someone/towers@v7", "cpu")


@pytest.mark.parametrize("model", ["hub:someone/blip@v1", "someone/captions"])
def test_without_a_network_there_is_one_line(at, patchword, tmp_path, model):
    at(NOWHERE)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    status, out, err = patchword("caption", tmp_path / "red.png", "--model", model)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "the hub cannot be reached" in err and "give a folder" in err


def test_a_hub_that_does_not_answer_is_given_up_in_time(at):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(ModelError, match="the hub cannot be reached"):
            hub.find_published("someone/thing")
        assert time.monotonic() - began < 10 * hub.SECONDS


def test_names_of_the_hub_have_parts(tmp_path):
    assert hub.hub_name("hub:openai/clip@v1") == ("openai/clip", "v1")
    assert hub.hub_name("hub:openai/clip") == ("openai/clip", None)
    with pytest.raises(ModelError, match="nothing stands behind the @"):
        hub.hub_name("hub:openai/clip@")
    for nothing in ("hub:", "hub:@main"):
        with pytest.raises(ModelError, match="no model is named"):
            hub.hub_name(nothing)
    folder = tmp_path / "mine@home"
    folder.mkdir()
    assert hub.hub_name(f"hub:{folder}") == (str(folder), None)
    assert hub.find_published(str(folder)) == (str(folder), None, True)
    with pytest.raises(ModelError, match="no id of the hub looks like that"):
        hub.find_published("no folder, no id")


def test_a_snapshot_knows_its_commit(tmp_path):
    folder = tmp_path / "hub" / "models--someone--towers" / "snapshots" / "abc123"
    assert hub.snapshot_of(folder) == {"someone/towers": "abc123"}
    assert hub.snapshot_of(tmp_path / "runs" / "best") == {}
