"""The console in a real Chromium: for everybody, by keyboard, on a phone, live through crashes, with hostile data."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from durable_swarm import DurableSwarm
from durable_swarm.server.ids import encode_id
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.console.browsing import (
    Chromium,
    apart,
    in_browser,
    path_of_chromium,
    program,
    serving,
    sign_in,
    stripping,
    telling,
)
from tests.console.shop import PATIENCE, answer, refunds, until
from tests.console.teller import RUN, STORY

PAGES = (
    "/runs", "/runs/order-0003", "/runs/order-0004", "/runs/order-0005", "/runs/order-0003/fork?turn=1",
    "/runs/order-0003/compare/order-0002", "/inbox",
    "/inbox/order-0005~2F1~2E0~2Fapproval", "/sessions", "/workers", "/health?check=1", "/runs/none",
)  # fmt: skip
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
CONTRAST = {"runOnly": ["color-contrast"]}
LOOKS: list[tuple[int, str, dict[str, Any]]] = [
    (1280, "light", {}), (1280, "dark", CONTRAST), (390, "dark", {}),
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One browser for all tests of a process."""
    browser = Chromium(path_of_chromium())
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def seen(shop_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a console that tests only look at."""
    with serving(f"sqlite:///{_copy(shop_file, tmp_path_factory.mktemp('seen') / 'shop.sqlite')}") as address:
        yield address


def _copy(source: Path, target: Path) -> Path:
    with sqlite3.connect(source) as here, sqlite3.connect(target) as there:
        here.backup(there)
    return target


@in_browser()
def test_everybody_can_use_every_page(page: Page, seen: str) -> None:
    """No page has a fault that axe finds, in light and in dark, wide and on a phone; none scrolls sideways."""
    sign_in(page, seen)
    faults = []
    for path in PAGES:
        page.goto(seen + path)
        page.evaluate(AXE)
        for width, scheme, options in LOOKS:
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found = page.evaluate("options => axe.run(options)", {"resultTypes": ["violations"], **options})
            faults += [f"{path} {width} {scheme}: {one['id']} {one['nodes'][0]['html']}" for one in found["violations"]]
            wide = page.evaluate("document.documentElement.scrollWidth")
            faults += [] if wide <= width else [f"{path} {width}: scrolls sideways, {wide}"]
    assert faults == []


@in_browser()
def test_names_and_regions(page: Page, seen: str) -> None:
    """The list and a run's page have the headings, tables, regions and links that people without sight go by."""
    sign_in(page, seen)
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
    for name in ("Run", "Status", "Agent", "Started"):
        expect(page.get_by_role("columnheader", name=name, exact=True)).to_be_visible()
    expect(page.locator("table caption")).to_have_text("Runs, newest first")
    page.get_by_role("combobox", name="Status").select_option("failed")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**status=failed**")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="order-0004").click()
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("link", name="Inbox")).to_contain_text("2")
    page.goto(f"{seen}/runs/order-0003#turn-2")
    for name in ("Timeline", "Transcript", "Requests"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.locator("#turn-2")).to_be_in_viewport()


@in_browser()
def test_by_keyboard_alone(page: Page, shop: str) -> None:
    """The list is walked and a request decided without a mouse; no key decides by itself."""
    with serving(shop) as address:
        sign_in(page, address)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("x")
        expect(page.get_by_role("checkbox", name="order-0005")).to_be_checked()
        page.keyboard.press("j")
        expect(page.get_by_role("link", name="order-0004")).to_be_focused()
        page.keyboard.press("k")
        page.keyboard.press("Enter")
        page.wait_for_url("**/runs/order-0005")
        page.keyboard.press("a")
        expect(page.get_by_role("button", name="Approve")).to_be_focused()
        page.get_by_text("Edit arguments").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_label("amount")).to_be_focused()
        page.keyboard.press("Control+a")
        page.keyboard.type("ninety")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("amount")
        page.get_by_label("amount").focus()
        page.keyboard.press("Control+a")
        page.keyboard.type("90")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status").first).to_contain_text("by ana")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog")).to_be_visible()
    with open_runs(shop) as runs:
        [request] = runs.show("order-0005").requests
        assert request.decision is not None
        assert request.decision.arguments == {"amount": 90, "customer": "Max"}


@in_browser(viewport={"width": 390, "height": 844}, java_script_enabled=False)
def test_on_a_phone_without_script(page: Page, shop: str) -> None:
    """One request on one page: read, approved, and the run goes on, on a small screen without any script."""
    with open_runs(shop) as runs:
        request = runs.inbox.list("order-0005")[0].id
    with serving(shop) as address:
        sign_in(page, address)
        page.goto(f"{address}/inbox/{encode_id(request)}")
        for text in ("Shop Refunds asks to call refund", "250", "Max"):
            expect(page.get_by_text(text, exact=True)).to_be_visible()
        page.get_by_role("button", name="Approve").click()
        expect(page.get_by_role("status")).to_contain_text("approved by ana")
    assert apart(lambda: _end_of(shop, "order-0005")) == "It is refunded."


def _end_of(url: str, run_id: str) -> Any:
    with DurableSwarm(ScriptedModel(answer), database=url) as swarm:
        return swarm.get(run_id).result(timeout=PATIENCE).messages[-1]["content"]


@in_browser()
def test_several_ticked_runs(page: Page, shop: str) -> None:
    """Runs are ticked by their names and cancelled together; a message tells what became of each."""
    with serving(shop) as address:
        sign_in(page, address)
        for name in ("order-0001", "order-0005", "order-0006"):
            page.get_by_role("checkbox", name=name).check()
        page.get_by_role("button", name="Cancel").click()
        status = page.get_by_role("status")
        for said in ("order-0001: was done already", "order-0005: cancelled", "order-0006: cancelled"):
            expect(status).to_contain_text(said)


@in_browser()
def test_the_list_is_live_and_does_not_move(page: Page, shop: str) -> None:
    """A row changes where it is, with what was ticked and focused; new runs are counted above the list."""
    with serving(shop) as address, open_runs(shop) as runs:
        sign_in(page, address)
        page.get_by_role("checkbox", name="order-0001").check()
        page.get_by_role("link", name="order-0002").focus()
        runs.cancel("order-0005", "bob")
        expect(page.get_by_role("row", name="order-0005")).to_contain_text("cancelled")
        expect(page.get_by_role("link", name="Inbox")).to_contain_text("1")
        runs.fork("order-0003", 1, new_id="order-0007")
        page.get_by_role("link", name="1 new run: show it").wait_for()
        expect(page.get_by_role("checkbox", name="order-0001")).to_be_checked()
        expect(page.get_by_role("link", name="order-0002")).to_be_focused()
        with page.expect_response(lambda answered: answered.status == 401):
            page.context.clear_cookies()
        expect(page.locator("tbody tr")).to_have_count(6)


@in_browser()
def test_a_fork_from_a_turn(page: Page, shop: str) -> None:
    """A button at a turn leads to a form, the form to the fork, and the fork to its source and a comparison."""
    with serving(shop) as address:
        sign_in(page, address)
        page.goto(f"{address}/runs/order-0003")
        page.get_by_role("button", name="Fork from turn 2").click()
        page.get_by_label("Say first").fill("Tea will do.")
        page.get_by_role("button", name="Fork", exact=True).click()
        expect(page.get_by_role("link", name="order-0003")).to_be_visible()
        page.get_by_role("link", name="compare").click()
        expect(page.get_by_role("status")).to_contain_text("differ")


@in_browser()
def test_a_reply_appears_as_it_is_said(page: Page, tmp_path: Path, fresh_sqlite: Callable[[Path], str]) -> None:
    """Text grows on the page while it is said, through a crash of the console and one of the run, and ends exact."""
    url = fresh_sqlite(tmp_path / "story.sqlite")
    with program(url) as console:
        with telling(url, 0.08) as teller:
            sign_in(page, console.address)
            until(lambda: page.goto(f"{console.address}/runs/{RUN}").status == 200)  # type: ignore[union-attr]
            text = page.locator("#saying")
            expect(text).to_contain_text("word-9 ")
            page.get_by_label("Say something to it").focus()
            said = len(text.inner_text().split())
            assert said < len(STORY.split())
            console.restart()
            expect(text).to_contain_text(f"word-{said + 5} ")
            teller.kill()
            teller.wait()
        expect(page.locator("#head .status")).to_contain_text("interrupted")
        with telling(url, 0.005):
            expect(page.locator("#head .status")).to_contain_text("done")
        expect(page.locator("#turn-0 .text")).to_have_text(STORY)
        expect(page.get_by_label("Say something to it")).to_be_focused()


@in_browser()
def test_under_a_path_behind_a_proxy(page: Page, shop: str) -> None:
    """Everything works under a path that a proxy strips: links, forms, what scripts ask for, deciding."""
    with serving(shop, root_path="/ops/swarm") as upstream, stripping("/ops/swarm", upstream) as address:
        sign_in(page, address)
        expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
        page.get_by_role("link", name="Inbox").click()
        page.get_by_role("link", name="order-0005").click()
        page.get_by_role("button", name="Reject").click()
        expect(page.get_by_role("region", name="Requests")).to_contain_text("rejected by ana")
        assert page.url.startswith(f"{address}/runs/order-0005")
        page.get_by_role("button", name="Fork from turn 1").click()
        page.get_by_role("button", name="Fork", exact=True).click()
        expect(page.get_by_role("link", name="order-0005")).to_be_visible()


@in_browser()
def test_hostile_data(page: Page, tmp_path: Path, fresh_sqlite: Callable[[Path], str]) -> None:
    """Whatever a run is called and says is text: nothing runs, nothing is loaded, no page is left."""
    url = fresh_sqlite(tmp_path / "hostile.sqlite")
    with DurableSwarm(ScriptedModel(_parrot), database=url) as swarm:
        for number, text in enumerate(HOSTILE):
            swarm.start(refunds, [{"role": "user", "content": text}], run_id=f"{number}{text}".rstrip())
        until(lambda: all(run.status not in ("queued", "running") for run in swarm.runs()))
    with serving(url) as address:
        sign_in(page, address)
        with open_runs(url) as runs:
            requests = runs.inbox.list()
        for path in ["/runs", "/inbox", *(f"/runs/{encode_id(one.run_id)}" for one in requests)]:
            page.goto(address + path)
            expect(page.locator("h1").first).to_be_attached()
            assert page.evaluate("typeof window.hacked") == "undefined"
            assert page.url == address + path
            assert page.locator("main script, main img, main iframe, main style").count() == 0


def _parrot(request: dict[str, Any]) -> Any:
    """Return calls with what the user said in them, then the same as text."""
    said = [message["content"] for message in request["messages"] if message["role"] == "user"]
    if request["messages"][-1]["role"] == "tool":
        return said[0]
    return [call("refund", customer=said[0], amount=250), call("nothing", x=said[0])]


HOSTILE = [
    "<script>window.hacked=1</script>",
    '"><img src=//evil.example/x onerror=window.hacked=1>',
    "</textarea></template></svg><svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "{{ 7*7 }}{% include 'x' %}",
    "<hx-partial hx-target='body' hx-swap='innerHTML'>gone</hx-partial>",
    "../../..//evil.example/?a=b&c#d",
    "\u202e\u200e\u200b\ufeffevil",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "data: x\n\nevent: end\ndata: \n\n<base href=//evil.example>",
]
