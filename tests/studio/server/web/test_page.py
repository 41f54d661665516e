"""The page in Chromium: make, watch, stop, pause, reload, several tabs, and a lost connection."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.studio.server.running_server import SECRET, RunningServer, until

pytestmark = pytest.mark.web


def use_painter(page: Any) -> None:
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Generator").select_option("painter")
    page.get_by_label("Strokes", exact=True).first.wait_for()


def start(server: RunningServer, prompt: str, **inputs: Any) -> str:
    body = {"generator": "painter", "inputs": {"prompt": prompt, **inputs}, "preview_every": 1}
    return str(httpx.post(f"{server.url}/api/jobs", json=body).json()["id"])


def job(server: RunningServer, id: str) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/api/jobs/{id}").json())


def card(page: Any, prompt: str) -> Any:
    return page.locator(".card", has_text=prompt).first


def step_of(page: Any, prompt: str) -> int:
    card(page, prompt).get_by_text("Step").wait_for()
    return int(card(page, prompt).locator(".state").inner_text().partition("Step ")[2].partition(" ")[0])


def test_a_picture_is_made_with_one_field_and_one_button(page: Any, painted: RunningServer) -> None:
    page.get_by_role("textbox", name="Prompt").fill("a red apple")
    page.get_by_role("button", name="Make").click()
    card(page, "a red apple").locator(".preview").wait_for()
    card(page, "a red apple").get_by_text("Done").wait_for()
    shown = card(page, "a red apple").locator("img")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128


def test_a_plugins_form_is_drawn_from_its_schema_and_sent(page: Any, painted: RunningServer, tmp_path: Any) -> None:
    use_painter(page)
    strokes = page.get_by_label("Strokes", exact=True)
    assert [each.get_attribute("type") for each in strokes.all()] == ["range", "number"]
    strokes.last.fill("7")
    page.get_by_label("Brush").select_option("flat")
    page.get_by_label("Notes").fill("sky\n\nsea")
    painted.studio.store.open(painted.studio.generate("painter", prompt="x", strokes=1).sha256).save(tmp_path / "c.png")
    page.get_by_label("Canvas").set_input_files(tmp_path / "c.png")
    page.get_by_role("button", name="Remove").wait_for()
    page.get_by_label("Number", exact=True).fill("2")
    page.get_by_label("Seed", exact=True).fill("41")
    page.get_by_role("textbox", name="Prompt").fill("all kinds")
    page.get_by_role("button", name="Make").click()
    until(lambda: page.locator(".card.done", has_text="all kinds").count() == 2)
    found = [each for each in httpx.get(f"{painted.url}/api/jobs").json()["jobs"]
             if each["work"]["inputs"]["prompt"] == "all kinds"]  # fmt: skip
    assert sorted(each["work"]["seed"] for each in found) == [41, 42]
    inputs = found[0]["work"]["inputs"]
    assert (inputs["strokes"], inputs["brush"], inputs["notes"], inputs["wet"]) == (7, "flat", ["sky", "sea"], None)
    assert inputs["canvas"]["media_type"] == "image/png"


def test_what_is_missing_is_said(page: Any) -> None:
    page.get_by_role("button", name="Make").click()
    assert page.get_by_role("alert").inner_text() == "Prompt is needed."


def test_a_job_stops_within_a_step(page: Any, painted: RunningServer) -> None:
    id = start(painted, "to be stopped", endless=True)
    step_of(page, "to be stopped")
    card(page, "to be stopped").get_by_role("button", name="Stop").click()
    card(page, "to be stopped").get_by_text("Stopped").wait_for()
    assert job(painted, id)["state"] == "cancelled"


def test_a_job_is_paused_and_resumed_where_it_was(page: Any, painted: RunningServer) -> None:
    id = start(painted, "to be paused", endless=True)
    card(page, "to be paused").locator(".preview").wait_for()
    card(page, "to be paused").get_by_role("button", name="Pause").click()
    card(page, "to be paused").get_by_role("button", name="Resume").wait_for()
    paused = job(painted, id)
    assert paused["state"] == "paused"
    card(page, "to be paused").get_by_role("button", name="Resume").click()
    card(page, "to be paused").get_by_role("button", name="Pause").wait_for()
    assert step_of(page, "to be paused") >= paused["progress"]["position"] > 0
    httpx.post(f"{painted.url}/api/jobs/{id}/cancel", json={})


def test_a_reload_and_a_second_tab_show_the_same_job(page: Any, context: Any, painted: RunningServer) -> None:
    id = start(painted, "to be seen twice", endless=True)
    page.get_by_role("textbox", name="Prompt").fill("half a thou")
    before = step_of(page, "to be seen twice")
    page.reload()
    assert step_of(page, "to be seen twice") >= before
    card(page, "to be seen twice").locator(".preview").wait_for()
    assert page.get_by_role("textbox", name="Prompt").input_value() == "half a thou"
    other = context.new_page()
    other.goto(painted.url)
    card(other, "to be seen twice").get_by_role("button", name="Stop").click()
    for each in (other, page):
        card(each, "to be seen twice").get_by_text("Stopped").wait_for()
    assert job(painted, id)["state"] == "cancelled"


def test_a_lost_connection_goes_on(page: Any, context: Any, painted: RunningServer) -> None:
    id = start(painted, "to be lost", endless=True)
    step_of(page, "to be lost")
    asked: list[str | None] = []
    page.on("request", lambda sent: asked.append(sent.headers.get("last-event-id")) if "/events" in sent.url else None)
    context.set_offline(True)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
                  "document.dispatchEvent(new Event('visibilitychange'))")  # fmt: skip
    page.evaluate("Object.defineProperty(document, 'hidden', {value: false});"
                  "document.dispatchEvent(new Event('visibilitychange'))")  # fmt: skip
    page.get_by_text("No connection to Studio").wait_for()
    context.set_offline(False)
    page.get_by_text("No connection to Studio").wait_for(state="detached")
    before = step_of(page, "to be lost")
    until(lambda: step_of(page, "to be lost") > before)
    assert any(each and each.startswith(f"{id}:") for each in asked)
    httpx.post(f"{painted.url}/api/jobs/{id}/cancel", json={})


def test_an_output_is_made_again_with_one_thing_changed(page: Any, painted: RunningServer) -> None:
    made = painted.studio.generate("painter", prompt="the first try", strokes=3, seed=77)
    page.goto(f"{painted.url}/#/artifact/{made.sha256}")
    assert page.locator("dl.facts").inner_text().split("\n")[:6] == [
        "Generator", "painter (Picture)", "Prompt", "the first try", "Strokes", "3"]  # fmt: skip
    page.get_by_label("What to change").select_option("strokes")
    page.get_by_label("Strokes", exact=True).last.fill("4")
    page.get_by_role("button", name="Make").click()
    card(page, "the first try").get_by_text("Done").wait_for()
    work = httpx.get(f"{painted.url}/api/jobs").json()["jobs"][0]["work"]
    assert (work["inputs"]["prompt"], work["inputs"]["strokes"], work["seed"]) == ("the first try", 4, 77)
    page.goto(f"{painted.url}/#/artifact/{made.sha256}")
    page.get_by_role("button", name="Use these settings").click()
    page.get_by_role("button", name="Make").wait_for()
    assert page.get_by_label("Seed", exact=True).input_value() == "77"
    assert page.get_by_label("Strokes", exact=True).last.input_value() == "3"


def test_waiting_jobs_are_moved(page: Any, painted: RunningServer) -> None:
    ids = [start(painted, f"place {at}", endless=True) for at in range(3)]
    for id in ids:
        httpx.post(f"{painted.url}/api/jobs/{id}/pause", json={})
    page.goto(f"{painted.url}/#/queue")

    def shown() -> list[str]:
        return [text for text in page.locator(".rows .title").all_inner_texts() if text.startswith("place")][:3]

    page.get_by_role("button", name="Move down: place 0").wait_for()
    until(lambda: page.get_by_role("button", name="Resume").count() == 3)
    page.get_by_role("button", name="Move down: place 0").click()
    until(lambda: shown() == ["place 1", "place 0", "place 2"])
    page.get_by_role("button", name="Move up: place 2").press("Enter")
    until(lambda: shown() == ["place 1", "place 2", "place 0"])
    page.locator(".rows li", has_text="place 0").drag_to(page.locator(".rows li", has_text="place 1"))
    until(lambda: shown() == ["place 0", "place 1", "place 2"])
    orders = [job(painted, id)["order"] for id in ids]
    assert orders == sorted(orders)
    for id in ids:
        httpx.post(f"{painted.url}/api/jobs/{id}/cancel", json={})


def test_a_token_opens_the_page_and_is_in_no_url(context: Any, locked: RunningServer) -> None:
    made = locked.studio.generate("painter", prompt="behind a lock", strokes=1)
    page, urls = context.new_page(), list[str]()
    page.on("request", lambda sent: urls.append(sent.url))
    page.goto(locked.url)
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    assert page.get_by_role("alert").inner_text() == "The token is wrong or was revoked."
    page.get_by_label("Token").fill(SECRET)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Gallery").click()
    image = page.locator(".tiles img").first
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    assert image.get_attribute("src").startswith("blob:")
    page.reload()
    page.locator(".tiles img").first.wait_for()
    page.goto(f"{locked.url}/#/artifact/{made.sha256}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Copy to share").click()
    assert b"behind a lock" not in download.value.path().read_bytes()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert all(SECRET not in url for url in urls)
