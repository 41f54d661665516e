"""Small models and the packages that hold them, made on the spot; a hub of one repository on this machine."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TENSORS = b'{"w":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}'
WEIGHTS = len(TENSORS).to_bytes(8, "little") + TENSORS + bytes(range(256)) * 16
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"\x80\x04.",
    "run.py": b"print()",
}
COMMIT = "c0ffee" + "0" * 34


def wheel(folder: Path, files: Mapping[str, bytes], name: str = "tiny_model", version: str = "1.0") -> Path:
    """A wheel that pip takes, with these files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    told = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/LICENSE.txt": b"MIT",
        f"{about}/top_level.txt": name.encode(),
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in {**files, **told}.items():
            archive.writestr(each, data)
    return path


def tgz(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as its client asks for. `cuts`: bytes after which the next answers break."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hub)
        self.files = dict(FILES)
        self.cuts: list[int | None] = []
        self.down = False  # every file is answered with an error
        self.ranges: list[str] = []
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Hub(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if path.startswith("/api/models/tiny/llama"):
            if path.partition("/revision/")[2] not in ("", "main", "v1", COMMIT):
                return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return self._answer(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/"):
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        name = path.removeprefix(f"/tiny/llama/resolve/{COMMIT}/")
        if self.server.down or name not in self.server.files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._file(self.server.files[name])

    def _info(self) -> dict[str, object]:
        siblings = []
        for name, data in self.server.files.items():
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            told: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith((".safetensors", ".bin")):
                told["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            siblings.append(told)
        return {"id": "tiny/llama", "sha": COMMIT, "siblings": siblings}

    def _file(self, data: bytes) -> None:
        begin, wanted = 0, self.headers.get("Range")
        if wanted:
            self.server.ranges.append(wanted)
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        told = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if wanted else {}
        self._answer(206 if wanted else 200, data[begin:], told, cut)

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])
        self.close_connection = cut is not None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, to which the client is pointed."""
    from huggingface_hub import constants

    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(
            constants, "ENDPOINT", server.url
        )  # what the client made of HF_ENDPOINT when it was imported
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        server.shutdown()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


class _Registry(BaseHTTPRequestHandler):
    """As much of npm's registry as holds one package."""

    tarball: bytes = b""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith(".tgz"):
            data, kind = self.tarball, "application/octet-stream"
        else:
            host, port = self.server.server_address[:2]
            url = f"http://{host!s}:{port}/@tiny/model/-/model-1.0.0.tgz"
            dist = {"tarball": url, "shasum": hashlib.sha1(self.tarball).hexdigest()}
            version = {"name": "@tiny/model", "version": "1.0.0", "dist": dist}
            told = {"name": "@tiny/model", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            data, kind = json.dumps(told).encode(), "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry with `@tiny/model` 1.0.0, to which npm is pointed; its address."""
    about = json.dumps({"name": "@tiny/model", "version": "1.0.0", "scripts": {"prepare": "exit 1"}}).encode()
    files = {**{f"package/{name}": data for name, data in FILES.items()}, "package/package.json": about}
    handler = type("Registry", (_Registry,), {"tarball": tgz(tmp_path / "model.tgz", files).read_bytes()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setenv("npm_config_registry", url)
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
        yield url
        server.shutdown()


class Redirecting(ThreadingHTTPServer):
    """A proxy through which a hub called `hub.example` is reached; every question for a file is sent to `location`."""

    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Redirecting)
        self.hub, self.location = hub, ""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Redirecting(BaseHTTPRequestHandler):
    server: Redirecting

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = "/" + self.path.split("/", 3)[3] if self.path.startswith("http") else self.path
        if path.startswith("/api/"):
            asking = http.client.HTTPConnection("127.0.0.1", self.server.hub.server_address[1])
            asking.request("GET", path)
            data = asking.getresponse().read()
            asking.close()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
        else:
            data = b""
            self.send_response(302)
            self.send_header("Location", self.server.location or self.server.hub.url + path)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def redirecting(hub: Hub) -> Iterator[Redirecting]:
    """A server that answers in place of the hub and sends questions for files elsewhere."""
    with Redirecting(hub) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()
