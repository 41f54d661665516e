"""The page's files: served to everybody by a fixed list of names, small, and with a strict policy."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest

from studio.server.web.routes import POLICY, files
from tests.studio.server.running_server import RunningServer


def test_the_page_needs_no_token_and_shows_nothing(guarded: RunningServer) -> None:
    page = httpx.get(f"{guarded.url}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["x-content-type-options"] == "nosniff"
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) == 3
    for path in named:
        found = httpx.get(guarded.url + path)
        assert (found.status_code, found.headers["content-security-policy"]) == (200, POLICY)
        assert "immutable" in found.headers["cache-control"]
    assert httpx.get(f"{guarded.url}/api/jobs").status_code == 401


def test_links_from_other_sites_open_the_page_only(server: RunningServer) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(f"{server.url}/", headers=headers).status_code == 200
    assert httpx.get(f"{server.url}/api/jobs", headers=headers).status_code == 403
    for more in ({"Host": "evil.example"}, {"Origin": "null"}, {"Origin": "http://evil.example"}):
        assert httpx.get(f"{server.url}/", headers=more).status_code in (403, 421)


@pytest.mark.parametrize("name", ["../routes.py", "..%2froutes.py", "%2e%2e/routes.py", "index.html/", "", "main.js"])
def test_other_names_are_no_files(server: RunningServer, guarded: RunningServer, name: str) -> None:
    assert httpx.get(f"{server.url}/static/{name}").status_code == 404
    assert httpx.get(f"{guarded.url}/static/{name}").status_code == 401
    assert httpx.post(f"{guarded.url}/", json={}).status_code == 401


def test_the_policy_allows_no_inline_code() -> None:
    assert "default-src 'self'" in POLICY
    assert "unsafe" not in POLICY
    page = files()["index.html"].decode()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", page)


def test_the_first_load_is_small() -> None:
    assert sum(len(gzip.compress(content)) for content in files().values()) < 200_000
