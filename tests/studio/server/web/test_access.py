"""The page for everybody: by keyboard, on a phone, in both languages and themes, and with hostile texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.server.web import routes
from tests.studio.server.running_server import RunningServer, running, until

pytestmark = pytest.mark.web
AXE = Path(routes.__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = (
    "<img src=x onerror=alert(1)></textarea><script>alert(2)</script>{{7*7}}"
    "\" onmouseover='alert(3)' \u202e javascript:alert(4)"
)


@pytest.fixture
def jobs(painted: RunningServer) -> Iterator[str]:
    """One finished picture and one running job; the picture's id."""
    made = painted.studio.generate("painter", prompt="a quiet sea", strokes=2)
    painted.studio.generate("text", prompt="Once", max_tokens=20)
    body = {"generator": "painter", "inputs": {"prompt": "a long work", "endless": True}, "preview_every": 1}
    running = httpx.post(f"{painted.url}/api/jobs", json=body).json()["id"]
    body["inputs"] = {"prompt": "a waiting work", "endless": True}
    waiting = httpx.post(f"{painted.url}/api/jobs", json=body).json()["id"]
    httpx.post(f"{painted.url}/api/jobs/{waiting}/pause", json={})
    yield made.sha256
    for id in (running, waiting):
        httpx.post(f"{painted.url}/api/jobs/{id}/cancel", json={})


def every_view(page: Any, server: RunningServer, picture: str) -> Iterator[str]:
    for view, ready in (("make", ".card .preview"), ("gallery", ".tiles img"), ("queue", ".rows .title"),
                        (f"artifact/{picture}", "dl.facts"), ("nothing", "h1")):  # fmt: skip
        page.goto(f"{server.url}/#/{view}")
        page.locator(ready).first.wait_for()
        if view == "make" and not page.locator("details.settings").get_attribute("open"):
            page.locator("details.settings > summary").click()
            page.locator("details.more > summary").click()
        yield view.partition("/")[0]


def violations(page: Any) -> list[str]:
    page.evaluate(AXE.read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)["violations"]
    return [f"{each['id']}: {node['html'][:200]} {node['failureSummary']}" for each in found for node in each["nodes"]]


@pytest.mark.skipif(not AXE.is_file(), reason="needs `npm ci` in studio/server/web; `make test-web` does that")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("chinese", [False, True])
def test_axe_finds_nothing(page: Any, painted: RunningServer, jobs: str, dark: bool, chinese: bool) -> None:
    if dark:
        page.get_by_role("button", name="Dark").click()
    if chinese:
        page.get_by_role("button", name="中文").click()
        page.get_by_role("button", name="生成", exact=True).wait_for()
    assert page.locator("html").get_attribute("lang") == ("zh-Hans" if chinese else "en")
    for view in every_view(page, painted, jobs):
        assert violations(page) == [], view


@pytest.mark.skipif(not AXE.is_file(), reason="needs `npm ci` in studio/server/web; `make test-web` does that")
def test_axe_finds_nothing_at_the_door(context: Any, locked: RunningServer) -> None:
    page = context.new_page()
    page.goto(locked.url)
    page.get_by_label("Token").wait_for()
    assert violations(page) == []


def test_a_phone_needs_no_sideways_scrolling(page: Any, painted: RunningServer, jobs: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for view in every_view(page, painted, jobs):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view


def test_everything_is_done_by_keyboard(page: Any, painted: RunningServer) -> None:
    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.innerText"))

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if focused() == name:
                outline = "getComputedStyle(document.activeElement).outlineStyle"
                assert page.evaluate(outline) == "solid", name
                return
        raise AssertionError(f"`{name}` is not reached")

    page.locator("body").press("Tab")
    assert focused() == "Skip to the content"
    page.keyboard.press("Enter")
    tab_to("prompt")
    page.keyboard.type("by keyboard")
    tab_to("Settings")
    page.keyboard.press("Enter")
    tab_to("generator")
    page.keyboard.type("painter")
    page.get_by_label("Strokes", exact=True).last.wait_for()
    page.get_by_label("Endless").focus()
    page.keyboard.press("Space")
    page.get_by_role("textbox", name="Prompt").focus()
    page.keyboard.press("Enter")
    page.locator(".card", has_text="by keyboard").get_by_role("button", name="Stop").wait_for()
    tab_to("Stop")
    page.keyboard.press("Enter")
    page.locator(".card", has_text="by keyboard").get_by_text("Stopped").wait_for()


def test_hostile_texts_are_shown_and_run_nothing(page: Any, painted: RunningServer) -> None:
    page.get_by_role("textbox", name="Prompt").fill(HOSTILE)
    body = {"generator": "painter", "inputs": {"prompt": HOSTILE, "strokes": 1, "notes": [HOSTILE]}, "label": HOSTILE}
    id = httpx.post(f"{painted.url}/api/jobs", json=body).json()["id"]
    until(lambda: httpx.get(f"{painted.url}/api/jobs/{id}").json()["state"] == "done")
    made = httpx.get(f"{painted.url}/api/jobs/{id}").json()["artifacts"][0]["sha256"]
    text = painted.studio.store.put(painted.studio.generate("text", prompt=HOSTILE, max_tokens=1)).sha256
    for view, place in (
        ("make", ".title"),
        ("queue", ".title"),
        (f"artifact/{made}", "h1"),
        (f"artifact/{text}", "h1"),
    ):
        page.goto(f"{painted.url}/#/{view}")
        page.locator(place, has_text="<img src=x").first.wait_for()
    page.goto(f"{painted.url}/#/gallery")
    page.locator(".tiles a").first.wait_for()
    assert page.locator("img[src='x'], script:not([src]), [onmouseover]").count() == 0
    for path in (f"artifact/{'<svg onload=alert(1)>'}", "<script>alert(1)</script>"):
        page.goto(f"{painted.url}/#/{path}")
        page.locator("h1").wait_for()
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    sent = httpx.post(f"{painted.url}/api/artifacts", files={"file": ("a.svg", svg)})
    assert sent.status_code == 400


def test_a_script_that_got_into_the_page_would_not_run(chromium: Any, painted: RunningServer) -> None:
    page = chromium.new_page()
    page.goto(painted.url)
    refused = page.evaluate(
        """() => new Promise(resolve => {
            addEventListener("securitypolicyviolation", event => resolve(event.effectiveDirective), {once: true});
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            setTimeout(() => resolve("nothing"), 2000);
        })"""
    )
    assert refused == "script-src-elem"
    assert page.evaluate("window.ran") is None
    page.close()


def test_a_long_gallery_keeps_few_tiles(page: Any, painted: RunningServer) -> None:
    made = painted.studio.generate("painter", prompt="one of many", strokes=1, seed=5)
    path = painted.studio.store.path(made.sha256)
    assert path is not None
    count = 600
    for at in range(count):
        name = f"{at:064x}"
        folder = path.parent.parent / name[:2]
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").write_bytes(path.read_bytes())
        (folder / f"{name}.json").write_bytes(path.with_suffix(".json").read_bytes())
    page.goto(f"{painted.url}/#/gallery")
    page.locator(".tiles img").first.wait_for()

    def last() -> int:
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        assert page.locator(".tiles li").count() < 100
        return max(int(each.get_attribute("data-at")) for each in page.locator(".tiles a").all())

    until(lambda: last() >= count)
    page.locator(".tiles a").last.focus()
    at = int(page.evaluate("document.activeElement.dataset.at"))
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.at") == str(at - 1)
    for at in range(count):
        for suffix in (".png", ".json"):
            (path.parent.parent / f"{at:064x}"[:2] / f"{at:064x}{suffix}").unlink()


def test_pictures_for_the_docs(context: Any, tmp_path: Path, picture_for_docs: Callable[[Any, str], None]) -> None:
    with running(tmp_path) as server:
        draw_for_docs(context.new_page(), server, picture_for_docs)


def draw_for_docs(page: Any, server: RunningServer, save: Callable[[Any, str], None]) -> None:
    page.goto(server.url)
    for seed, prompt in enumerate(("a yellow pear", "an orange", "a blue cup", "a green pear", "a red apple")):
        server.studio.generate("image", prompt=prompt, seed=seed + 7)
    page.get_by_role("textbox", name="Prompt").fill("a red apple")
    page.locator("details.settings > summary").click()
    page.get_by_label("Number", exact=True).fill("3")
    page.locator("details.settings > summary").click()
    page.get_by_role("button", name="Make").click()
    page.locator(".card .preview").nth(2).wait_for()
    save(page, "make")
    until(lambda: page.locator(".card.done").count() == 3)
    page.get_by_role("link", name="Gallery").click()
    page.locator(".tiles img").nth(7).wait_for()
    save(page, "gallery")
    page.get_by_role("button", name="Dark").click()
    page.get_by_role("button", name="中文").click()
    page.locator(".tiles a").nth(1).click()
    page.locator("dl.facts").wait_for()
    save(page, "artifact")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{server.url}/#/make")
    page.locator(".card.done img").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    save(page, "phone")
