"""Checkpoints from the hub, against a stand-in of its HTTP API on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
from nvila_model import NVILA
from nvila_model.checkpoint import CheckpointError, locate
from nvila_model.cli import app
from typer.testing import CliRunner

MAIN, OLD = sha1(b"main").hexdigest(), sha1(b"old").hexdigest()


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked.

    Attributes:
        files: of each commit, by path.
        requests: method, path and Range header of each request.
        cut: paths whose first download breaks off in the middle.
        failing: status that every request gets, if any.
    """

    files: dict[str, dict[str, bytes]]
    token: str | None = None
    gated: bool = False
    cut: set[str] = field(default_factory=set)
    failing: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""

    def asked(self, method: str) -> list[str]:
        return [path for used, path, _ in self.requests if used == method]


REVISIONS = {"main": MAIN, "v1": OLD, MAIN: MAIN, OLD: OLD}


class Handler(BaseHTTPRequestHandler):
    """The part of the hub's API that fetching a snapshot uses."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.failing:
            return self.send(self.hub.failing, b"")
        if not path.startswith(("/api/models/owner/model/", "/owner/model/resolve/")):
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            code = "GatedRepo" if self.hub.gated else "RepoNotFound"
            return self.send(403 if self.hub.gated else 401, b"{}", {"X-Error-Code": code})
        if path.startswith("/api/models/owner/model/"):
            kind, revision = path.removeprefix("/api/models/owner/model/").split("/")[:2]
            return self.describe(kind, REVISIONS.get(revision))
        revision, _, name = path.removeprefix("/owner/model/resolve/").partition("/")
        return self.give(name, REVISIONS.get(revision))

    def describe(self, kind: str, commit: str | None) -> None:
        if commit is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.hub.files[commit]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            content = {"id": "owner/model", "modelId": "owner/model", "sha": commit, "siblings": siblings}
        else:
            content = [
                {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        return self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def give(self, name: str, commit: str | None) -> None:
        data = self.hub.files.get(commit or "", {}).get(name)
        if data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": str(commit), "Accept-Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and name in self.hub.cut:
            self.hub.cut.discard(name)
            self.send(200, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
            self.close_connection = True
            return None
        return self.send(206 if start else 200, data[start:], headers)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def tiny(make_model: Callable[..., NVILA], tmp_path: Path) -> Path:
    """The folder of a small checkpoint."""
    make_model().save_pretrained(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that holds the tiny checkpoint twice: now, and at ``v1`` with another number of frames."""
    files = {str(path.relative_to(tiny)): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    files |= {"pytorch_model.bin": b"pickled", "llm/training_args.bin": b"pickled", "README.md": b"# Model"}
    config = json.loads(files["config.json"])
    old = {**files, "config.json": json.dumps({**config, "num_video_frames": 3}).encode()}
    hub = Hub(files={MAIN: files, OLD: old})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetches_and_loads(hub: Hub, tiny: Path) -> None:
    folder = locate("owner/model")
    assert (folder / "llm" / "model.safetensors").read_bytes() == (tiny / "llm" / "model.safetensors").read_bytes()
    assert NVILA.from_pretrained("owner/model").config.num_video_frames == 4


def test_command_line_fetches_and_answers(hub: Hub) -> None:
    words = ["ask", "Hello?", "--model", "owner/model", "--revision", "v1", "--max-new-tokens", "2", "--json"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.stderr
    assert json.loads(first.stdout)["model"] == "owner/model"
    assert first.stderr == ""
    hub.requests.clear()
    assert CliRunner().invoke(app, [*words, "--offline"]).exit_code == 0
    assert hub.requests == []
    refused = CliRunner().invoke(app, ["ask", "Hello?", "--model", "owner/other"])
    assert refused.exit_code == 2
    assert "neither a folder nor a repository" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_pickled_files_are_never_asked_for(hub: Hub) -> None:
    folder = locate("owner/model")
    assert not [path for _, path, _ in hub.requests if path.endswith(".bin")]
    assert not list(folder.rglob("*.bin"))


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_revision(hub: Hub, revision: str) -> None:
    assert NVILA.from_pretrained("owner/model", revision=revision).config.num_video_frames == 3


def test_offline_after_a_fetch_asks_for_nothing(hub: Hub) -> None:
    fetched = locate("owner/model")
    hub.requests.clear()
    assert locate("owner/model", offline=True) == fetched
    assert hub.requests == []


def test_second_fetch_downloads_nothing(hub: Hub) -> None:
    locate("owner/model")
    hub.requests.clear()
    locate("owner/model")
    assert not [path for path in hub.asked("GET") if "/resolve/" in path]


def test_offline_before_a_fetch(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="not on this machine and it was not fetched before"):
        locate("owner/model", offline=True)
    assert hub.requests == []


def test_revision_not_fetched_is_refused_offline(hub: Hub) -> None:
    locate("owner/model")
    with pytest.raises(CheckpointError, match="not fetched before"):
        locate("owner/model", revision="v1", offline=True)


def test_unreachable_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        locate("owner/model")


def test_unreachable_hub_with_a_fetched_model_uses_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = locate("owner/model")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert locate("owner/model") == fetched


def test_missing_repository(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="owner/other is neither a folder nor a repository that can be seen"):
        locate("owner/other")


def test_missing_revision(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="owner/model has no revision 'v9'"):
        locate("owner/model", revision="v9")


def test_private_repository_needs_the_token(hub: Hub) -> None:
    hub.token = "secret"
    with pytest.raises(CheckpointError, match="neither a folder nor a repository that can be seen"):
        locate("owner/model")
    with pytest.raises(CheckpointError) as refused:
        locate("owner/model", token="wrong")
    assert "wrong" not in str(refused.value)
    assert (locate("owner/model", token="secret") / "config.json").is_file()


def test_token_from_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert (locate("owner/model") / "config.json").is_file()


def test_gated_repository_names_the_remedy(hub: Hub) -> None:
    hub.token, hub.gated = "secret", True
    with pytest.raises(CheckpointError, match="asks for access: accept its terms on the hub and pass a token"):
        locate("owner/model")


def test_broken_download_goes_on_where_it_stopped(hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = {"llm/model.safetensors"}
    folder = locate("owner/model")
    name = "llm/model.safetensors"
    assert (folder / name).read_bytes() == (tiny / name).read_bytes()
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(name)]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert ranges[1] is not None
    assert ranges[1] != "bytes=0-"


def test_failing_hub_is_one_sentence(hub: Hub) -> None:
    hub.failing = 400
    with pytest.raises(CheckpointError) as refused:
        locate("owner/model")
    assert "\n" not in str(refused.value)


def test_interrupted_snapshot_is_not_taken_for_whole(hub: Hub) -> None:
    folder = locate("owner/model")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError):
        NVILA.from_pretrained("owner/model", offline=True)
    assert NVILA.from_pretrained("owner/model").config.num_video_frames == 4


@pytest.mark.parametrize("name", ["nowhere", "NVILA-8B", "a/b/c", "owner/na me", "../owner/model", ""])
def test_names_that_are_no_model(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        locate(name)


def test_preset_name_leads_to_its_repository() -> None:
    with pytest.raises(CheckpointError, match="its weights are Efficient-Large-Model/NVILA-8B"):
        locate("NVILA-8B")


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        locate(tmp_path / "config.json")
