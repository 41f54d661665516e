"""A host with the generators of `plugin.py`, and its jobs: in SQLite, and with `make test-all` in PostgreSQL too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import studio
from studio.jobs import Jobs

PLUGIN = Path(__file__).parent / "plugin.py"
KINDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.slow))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PostgreSQL server of the installed version, which listens on a socket in this folder only."""
    pytest.importorskip("psycopg")
    commands = [shutil.which(name) or shutil.which(name, path=_installed()) for name in ("initdb", "postgres")]
    if None in commands:
        pytest.skip("PostgreSQL is not installed")
    initdb, postgres = (str(each) for each in commands)
    folder = Path(tmp_path_factory.mktemp("pg"))
    user = {"user": "postgres"} if os.geteuid() == 0 else {}  # PostgreSQL refuses to run as root
    if user:
        for each in (folder, folder.parent, folder.parent.parent):
            each.chmod(0o755)
        shutil.chown(folder, "postgres")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **user}
    subprocess.run([initdb, "-D", folder / "data", "-A", "trust", "-U", "studio", "-N"], check=True, **quiet)
    options = ["-c", "listen_addresses=", "-k", str(folder)]
    running = subprocess.Popen([postgres, "-D", folder / "data", *options], **quiet)
    try:
        wait_for(folder)
        yield folder
    finally:
        running.terminate()
        running.wait()


def _installed() -> str:
    return os.pathsep.join(str(each) for each in Path("/usr/lib/postgresql").glob("*/bin"))


def wait_for(folder: Path) -> None:
    """Return when the server answers."""
    import psycopg

    while True:
        try:
            psycopg.connect(host=str(folder), user="studio", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            continue


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str | None:
    """Of a fresh PostgreSQL database, or None for SQLite."""
    if request.param == "sqlite":
        return None
    import psycopg

    folder = request.getfixturevalue("server")
    name = f"jobs{os.urandom(6).hex()}"
    with psycopg.connect(host=str(folder), user="studio", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return f"postgresql+psycopg://studio@/{name}?host={folder}"


@pytest.fixture
def opened(tmp_path: Path, url: str | None) -> Iterator[Callable[..., Jobs]]:
    """Opens the jobs of one data folder; what a test leaves open is closed."""
    made: list[Jobs] = []

    def make(**options: object) -> Jobs:
        jobs = Jobs(studio.Studio(home=tmp_path / "home", device="cpu", plugins=[PLUGIN]), url, **options)
        made.append(jobs)
        return jobs

    yield make
    for jobs in made:
        jobs.studio.generator("gate").permits.release(100_000)
        jobs.close()
        jobs.studio.close()


@pytest.fixture
def jobs(opened: Callable[..., Jobs]) -> Jobs:
    return opened()
