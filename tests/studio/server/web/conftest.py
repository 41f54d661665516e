"""Chromium for the page's tests, driven by Playwright, and a server with a plugin that paints."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.studio.server.running_server import RunningServer, running

PLUGIN = Path(__file__).parent / "page_plugin.py"
DOCS = Path(__file__).parents[4] / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LACKING = [name for name, found in (("the package playwright", importlib.util.find_spec("playwright")),
                                    ("Chromium in the PATH", CHROMIUM)) if not found]  # fmt: skip


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the plugin that paints."""
    with running(tmp_path_factory.mktemp("painted"), plugin=PLUGIN) as found:
        yield found


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The same, which needs a token."""
    with running(tmp_path_factory.mktemp("locked"), plugin=PLUGIN, exposed=True) as found:
        yield found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if LACKING and not os.environ.get("CI"):
        pytest.skip(f"the page's tests need {' and '.join(LACKING)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        words = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    """A fresh profile. A test fails if a page of it has an error, or runs or loads what its policy forbids."""
    found = chromium.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB", color_scheme="light")
    found.set_default_timeout(30_000)
    problems: list[str] = []

    def watch(page: Any) -> None:
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: _note(message, problems))

    found.on("page", watch)
    yield found
    found.close()
    assert problems == []


def _note(message: Any, problems: list[str]) -> None:
    """Chromium reports answers of the server with an error as errors too; they are part of the tests."""
    if message.type == "error" and not re.search(r"Failed to load resource", message.text):
        problems.append(message.text)


@pytest.fixture
def page(context: Any, painted: RunningServer) -> Any:
    """The page, ready for a prompt."""
    found = context.new_page()
    found.goto(painted.url)
    found.wait_for_selector("button[type=submit]:enabled")
    return found


@pytest.fixture
def picture_for_docs() -> Callable[[Any, str], None]:
    """Save what is seen as a picture of docs/web.md, if STUDIO_DOCS_PICTURES is set."""

    def save(page: Any, name: str) -> None:
        page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
        if os.environ.get("STUDIO_DOCS_PICTURES"):
            page.screenshot(path=DOCS / f"web-{name}.png")

    return save
