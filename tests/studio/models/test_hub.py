"""A hub on this machine and the real client: resolved to a commit, checked by hash, resumed where it broke off."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from studio.errors import ModelError, UnknownName
from studio.models import Models
from studio.models.source import parse

from .conftest import COMMIT, WEIGHTS, Hub, Redirecting
from .test_library import SAFE, contents, everything

NAME = "hf:tiny/llama"


@pytest.fixture
def models(own_home: Path) -> Models:
    return Models(own_home)


def test_a_repository(models: Models, hub: Hub) -> None:
    entry = models.pull(NAME)
    assert entry.revision == COMMIT
    assert contents(models.path(NAME)) == SAFE
    asked = len(hub.asked)
    assert models.pull(NAME) == entry
    assert models.path(NAME)
    assert len(hub.asked) == asked, "what is here asks nobody"
    assert not any(each.endswith((".bin", ".py")) for each in hub.asked)


def test_one_file_of_a_revision(models: Models, hub: Hub) -> None:
    name = f"{NAME}@v1/model.safetensors"
    models.pull(name)
    assert models.path(name).read_bytes() == WEIGHTS
    assert hub.asked == ["/api/models/tiny/llama/revision/v1", f"/tiny/llama/resolve/{COMMIT}/model.safetensors"]
    with pytest.raises(UnknownName, match=r"`model\.gguf`"):
        models.pull(f"{NAME}/model.gguf")
    with pytest.raises(ModelError, match=r"`pytorch_model\.bin` is refused"):
        models.pull(f"{NAME}/pytorch_model.bin")


LARGE = WEIGHTS + bytes(12 << 20)


def test_a_cut_connection_is_taken_up(models: Models, hub: Hub) -> None:
    hub.files["model.safetensors"], hub.cuts = LARGE, [11 << 20]
    name = f"{NAME}/model.safetensors"
    models.pull(name)
    assert hub.ranges == [f"bytes={11 << 20}-"]
    assert models.path(name).read_bytes() == LARGE


def test_the_next_pull_goes_on(models: Models, hub: Hub) -> None:
    """The first one ends with a part of a file and whole files: both are used by the next."""
    hub.files["model.safetensors"] = LARGE

    def stop(what: str, done: int, total: int | None) -> None:
        if what == "model.safetensors" and done == 10 << 20:
            hub.down, hub.cuts = True, []

    hub.cuts = [None, 11 << 20]  # config.json comes before it
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        models.pull(NAME, report=stop)
    assert "resumes the download" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="is not downloaded"):
        models.path(NAME)
    hub.down = False
    hub.asked.clear()
    hub.ranges.clear()
    models.pull(NAME)
    assert hub.ranges == [f"bytes={11 << 20}-"]
    assert contents(models.path(NAME)) == {**SAFE, "model.safetensors": LARGE}
    assert f"/tiny/llama/resolve/{COMMIT}/config.json" not in hub.asked, "it had come"
    assert not list(models.root.rglob("*.part"))


def test_a_failed_pull_keeps_what_came_until_it_is_removed(models: Models, hub: Hub) -> None:
    hub.down = True
    with pytest.raises(ModelError, match="could not be downloaded"):
        models.pull(NAME)
    assert not models.entries()
    models.remove(NAME)
    assert everything(models) == {"models", "models/.parts"}


def test_wrong_bytes_are_refused(models: Models, hub: Hub, own_home: Path) -> None:
    class Lying(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            return super().__getitem__(name)[::-1]

    hub.files = Lying(hub.files)
    with pytest.raises(ModelError, match="does not match the hash published by the hub"):
        models.pull(f"{NAME}/model.safetensors")
    assert not [each for each in own_home.rglob("*") if each.is_file() and not each.name.endswith(".lock")]


def test_more_bytes_than_announced_are_refused_as_they_come(models: Models, hub: Hub, own_home: Path) -> None:
    class Endless(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            return super().__getitem__(name) + bytes(40 << 20)

    hub.files = Endless(hub.files)
    told: list[int] = []
    with pytest.raises(ModelError, match=r"the hub sends more than the announced [\d,]+ bytes of `model\.safetensors`"):
        models.pull(f"{NAME}/model.safetensors", report=lambda name, done, total: told.append(done))
    assert not told
    assert sum(each.stat().st_size for each in own_home.rglob("*") if each.is_file()) == 0


def test_damage_costs_one_file(models: Models, hub: Hub) -> None:
    models.pull(NAME)
    (models.path(NAME) / "model.safetensors").write_bytes(b"x" * len(WEIGHTS))
    assert models.damaged(parse(NAME)) == ["model.safetensors"]
    hub.asked.clear()
    models.pull(NAME)
    assert [each.rpartition("/")[2] for each in hub.asked] == [COMMIT, "model.safetensors"]
    assert contents(models.path(NAME)) == SAFE


def test_what_is_pinned_is_fetched_whatever_the_branch_says(models: Models, hub: Hub) -> None:
    models.pull(NAME)
    (models.path(NAME) / "config.json").unlink()
    models.pull(NAME)
    assert f"/api/models/tiny/llama/revision/{COMMIT}" in hub.asked


@pytest.mark.parametrize(
    ("name", "reason"),
    [("hf:tiny/nothing", "has no model `tiny/nothing`"), (f"{NAME}@v9", "has no revision `v9`")],
)
def test_what_is_not_there(models: Models, hub: Hub, name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        models.pull(name)
    assert everything(models) == {"models", "models/.parts"}


def test_hostile_names(models: Models, hub: Hub) -> None:
    hub.files["../../evil.json"] = b"{}"
    with pytest.raises(ModelError, match="must be a plain path"):
        models.pull(NAME)


def test_the_command_line(hub: Hub, own_home: Path) -> None:
    def studio(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, "-m", "studio", *words], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    pulled = Path(studio("models", "pull", NAME).stdout.strip())
    assert contents(pulled) == SAFE
    told = json.loads(studio("models", "show", NAME, "--verify", "--json").stdout)
    assert (told["state"], told["damaged"], told["path"]) == ("ready", [], str(pulled))
    assert told["files"]["model.safetensors"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    (pulled / "model.safetensors").write_bytes(b"x" * len(WEIGHTS))
    failed = studio("models", "show", NAME, "--verify", code=1)
    assert "damaged or missing: `model.safetensors`" in failed.stderr
    assert "`studio models pull hf:tiny/llama`" in failed.stderr
    studio("models", "pull")
    assert {each["name"]: each["state"] for each in json.loads(studio("models", "list", "--json").stdout)} == {
        "smollm2": "absent",
        NAME: "ready",
    }
    studio("models", "rm", NAME)
    assert not pulled.exists()


def points_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("", "to `127.0.0.1`, a private address"),
        ("http://localhost:1/x", "to `localhost`, a private address"),
        ("//127.1/x", "to `127.1`, a private address"),
        ("http://[::1]/x", "to `::1`, a private address"),
        ("http://[::ffff:10.0.0.1]/x", "a private address"),
        ("http://0.0.0.0/x", "a private address"),
        ("http://192.168.0.1/x", "a private address"),
        ("http://169.254.169.254/latest/meta-data", "a link-local address"),
        ("http://[fe80::1]/x", "a link-local address"),
        ("file:///etc/passwd", "from http to file"),
        ("ftp://hub.example/x", "from http to ftp"),
    ],
)
def test_a_public_hub_does_not_lead_to_this_machine(
    models: Models, redirecting: Redirecting, monkeypatch: pytest.MonkeyPatch, location: str, reason: str
) -> None:
    """The hub's name is not known to any name server: it is reached through a proxy."""
    monkeypatch.setenv("HTTP_PROXY", redirecting.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    points_to(monkeypatch, "http://hub.example")
    huggingface_hub.close_session()  # proxies are read when a client is made
    redirecting.location = location
    with pytest.raises(ModelError, match=re.escape(reason)):
        models.pull(NAME)
    assert not any("/resolve/" in each for each in redirecting.hub.asked), "nothing was asked for there"
    huggingface_hub.close_session()


def test_a_hub_on_this_machine_may_lead_to_another_port_of_it(
    models: Models, redirecting: Redirecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    points_to(monkeypatch, redirecting.url)
    models.pull(NAME)
    assert contents(models.path(NAME)) == SAFE
    redirecting.location = "http://169.254.169.254/latest/meta-data"
    with pytest.raises(ModelError, match="a link-local address"):
        models.pull(f"{NAME}@v1")
