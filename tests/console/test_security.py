"""The console is closed: no page without the token, none under a foreign name, no change from a foreign page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import durable_swarm.server.web as package
from durable_swarm.server import console as mounted
from durable_swarm.server.guard import cookie_name, cookie_value
from durable_swarm.server.ids import decode_id, encode_id
from durable_swarm.server.web.app import CHANGES, FORMS, PAGES
from durable_swarm.service import open_runs
from tests.console.asking import BEARER, OWN, TOKEN, ask

Make = Callable[..., Any]
PATHS = [path.replace("{id}", "order-0003").replace("{number:int}", "1").replace("{other}", "order-0001")
         for path in (*PAGES, *FORMS)]  # fmt: skip
COOKIE = {"cookie": f"{cookie_name(TOKEN)}={cookie_value(TOKEN)}"}


@pytest.mark.parametrize("path", PATHS)
def test_no_page_without_the_token(shop: str, console: Make, path: str) -> None:
    """Without the token, or with a wrong one, each page is a way to sign in, with nothing about runs in it."""
    app = console(shop)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"{cookie_name(TOKEN)}=wrong"}):
        answer = ask(app, path, headers=headers)
        assert answer.status == 401
        assert "Shop" not in answer.text
    assert ask(app, path + "?token=wrong", headers={}).status == 401


@pytest.mark.parametrize("path", [*PATHS, "/healthz", "/login"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:80@evil.example"])
def test_no_page_under_a_foreign_name(shop: str, console: Make, path: str, host: str) -> None:
    """A name that leads here, and is none of the console's, is refused, with the token too: DNS can be rebound."""
    assert ask(console(shop), path, headers={**BEARER, "host": host}).status == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({}, 403),
        ({"origin": "http://127.0.0.1"}, 303),
        ({"sec-fetch-site": "same-origin"}, 303),
    ],
)
def test_a_change_comes_from_a_page_of_the_console(
    shop: str, console: Make, headers: dict[str, str], status: int
) -> None:
    """A change with a cookie must come from the console's own origin; what comes from elsewhere changes nothing."""
    app = console(shop)
    assert ask(app, "/runs/order-0005/cancel", {}, headers={**COOKIE, **headers}).status == status
    with open_runs(shop) as runs:
        assert runs.view("order-0005").status == ("waiting" if status == 403 else "cancelled")


def test_a_script_shows_the_token_itself(shop: str, console: Make) -> None:
    """Without a browser's headers a change needs the token in the request, where no other page can put it."""
    assert ask(console(shop), "/runs/order-0005/cancel", {}, headers=BEARER).status == 303


def test_the_token_leaves_the_address_bar(shop: str, console: Make) -> None:
    """An address with the token leads to the same page without it, and to a cookie that only the console gets."""
    app = console(shop)
    answer = ask(app, f"/runs?status=done&token={TOKEN}", headers={}, root_path="/ops")
    assert (answer.status, answer.headers["location"]) == (303, "/ops/runs?status=done")
    cookie = answer.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ops"))
    assert TOKEN not in cookie
    assert ask(app, "/runs", headers=COOKIE).status == 200


def test_the_token_typed(shop: str, console: Make) -> None:
    """The sign-in page takes the token, and says when it was a wrong one."""
    app = console(shop)
    assert "is not the token" in ask(app, "/login", {"token": "wrong"}, headers=OWN).text
    answer = ask(app, "/login", {"token": TOKEN}, headers=OWN)
    assert (answer.status, answer.headers["location"]) == (303, "/runs")
    assert "set-cookie" in answer.headers


def test_no_get_changes_a_row(shop: str, console: Make) -> None:
    """Reading every page leaves the database as it was."""
    app = console(shop)
    with open_runs(shop) as runs:
        before = [runs.show(view.id) for view in runs.list(_all())]
    for path in [*PATHS, *CHANGES]:
        ask(app, path.replace("{id}", "order-0005"))
    with open_runs(shop) as runs:
        assert [runs.show(view.id) for view in runs.list(_all())] == before


def test_read_only(shop: str, console: Make) -> None:
    """A read-only console has no route that changes anything, and no button that would ask for it."""
    app = console(shop, read_only=True)
    for path in (*CHANGES, *FORMS):
        assert ask(app, path.replace("{id}", "order-0005"), {}).status in (404, 405)
    for path in ("/runs", "/inbox", "/runs/order-0005", "/runs/order-0003"):
        page = ask(app, path).text
        assert "<button" in page
        assert not re.search(r'<form method="post"|>(Approve|Reject|Cancel|Resume|Fork from turn \d+)<', page)


def test_every_answer_carries_the_policy(shop: str, console: Make) -> None:
    """No answer lets a browser run, load or frame anything but what this server sends."""
    app = console(shop)
    for path, headers in (("/runs", BEARER), ("/runs", {}), ("/nowhere", BEARER), ("/healthz", {"host": "evil"})):
        answer = ask(app, path, headers=headers)
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_templates_keep_to_the_policy() -> None:
    """No template has inline script or style, an attribute that htmx evaluates, or text that is not escaped."""
    for path in (Path(package.__file__).parent / "templates").iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"<script(?! src)|<style|\sstyle=|\son\w+=|hx-on|js:|javascript:|\[\w+\]\"|\|\s*safe", text
        )
        assert "http://" not in text
        assert "https://" not in text


def test_mounted_in_an_application(shop: str) -> None:
    """Mounted, the application says who asks, or refuses; a foreign page changes nothing there either."""
    app = mounted(shop, user=lambda request: request.headers.get("x-user"))
    try:
        assert ask(app, "/runs", headers={}, root_path="/ops/swarm").status == 401
        page = ask(app, "/runs", headers={"x-user": "eva"}, root_path="/ops/swarm")
        assert (page.status, 'href="/ops/swarm/runs/order-0003"' in page.text) == (200, True)
        assert re.findall(r'(?:href|src|action|hx-get)="(?!/ops/swarm/|#)[^"]*"', page.text) == []
        evil = {"x-user": "eva", "origin": "https://evil.example"}
        assert ask(app, "/runs/order-0005/cancel", {}, headers=evil, root_path="/ops/swarm").status == 403
    finally:
        app.close()


def test_who_decides_behind_a_proxy(shop: str, console: Make) -> None:
    """A header names who decides if it comes from the proxy that is trusted; from anybody else it names nobody."""
    believed = console(shop, header="x-user", proxies=["127.0.0.1"])
    doubted = console(shop, header="x-user", proxies=["10.0.0.1"])
    headers = {**BEARER, "x-user": "eva"}
    assert '<span class="note who">eva</span>' in ask(believed, "/runs", headers=headers).text
    assert '<span class="note who">ana</span>' in ask(doubted, "/runs", headers=headers).text


@pytest.mark.parametrize("text", ["a", "a/b", "..", "~", "%2F", "<script>", "naïve 🚲", "a b", "\n", "x" * 200])
def test_any_id_is_a_segment_of_a_path(text: str) -> None:
    """An id of any characters is written with letters, digits, - and _ and ~, and read back."""
    assert re.fullmatch(r"[A-Za-z0-9_~-]+", encode_id(text))
    assert decode_id(encode_id(text)) == text


@pytest.mark.parametrize("segment", ["", "a.b", "~ZZ", "~F", "~FF", "a b", "%41"])
def test_what_is_no_encoded_id(segment: str) -> None:
    """What no id is written as names nothing."""
    assert decode_id(segment) is None


def _all() -> Any:
    from durable_swarm.service import Query

    return Query()
