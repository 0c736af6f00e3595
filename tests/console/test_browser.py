"""The console in a real Chromium: for everybody, by keyboard, on a phone, live through crashes, with hostile data."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from durable_swarm import Agent, DurableSwarm
from durable_swarm.display import harmless
from durable_swarm.server.ids import encode_id
from durable_swarm.service import Query, open_runs
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
from tests.console.shop import PATIENCE, answer, refund, until
from tests.console.teller import RUN, STORY

PAGES = (
    "/runs", "/runs/order-0003", "/runs/order-0004", "/runs/order-0005", "/runs/order-0003/fork?turn=1",
    "/runs/order-0003/compare/order-0002", "/inbox", "/inbox?state=decided",
    "/inbox/order-0005~2F1~2E0~2Fapproval", "/sessions", "/workers", "/health?check=1", "/runs/none",
)  # fmt: skip
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
CONTRAST = {"runOnly": ["color-contrast"]}
SIDEWAYS = """() => {
  for (const link of document.querySelectorAll("td.id a")) link.textContent += "-0123456789abcdef".repeat(4)
  const wide = [...document.querySelectorAll("html, .scroll")].filter(one => one.scrollWidth > one.clientWidth)
  return wide.map(one => `${one.scrollWidth} of ${one.clientWidth} in ${one.outerHTML.slice(0, 80)}`)
}"""
"""The parts of a page that scroll sideways, also with long ids."""
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
            faults += [f"{path} {width}: scrolls sideways: {one}" for one in page.evaluate(SIDEWAYS)]
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
    """Whatever anything is called, says or gives is text on each page: nothing runs or loads, no page is left."""
    url = fresh_sqlite(tmp_path / "hostile.sqlite")
    apart(lambda: _leave_hostile(url))
    with serving(url) as address, open_runs(url) as runs:
        sign_in(page, address)
        asked, made = runs.inbox.list(), runs.list(Query())
        assert len(asked) == len(GROUPS)
        pages = ["/runs", "/inbox", "/sessions", "/workers", f"/runs?agent={quote(GROUPS[0])}", "/runs/%3Cscript%3E"]
        pages += [f"/runs/{encode_id(one.id)}" for one in made]
        pages += [f"/inbox/{encode_id(one.id)}" for one in asked[:3]]
        pages += [f"/sessions/{encode_id(GROUPS[0])}", f"/runs/{encode_id(made[1].id)}/compare/{encode_id(made[2].id)}"]
        for path in pages:
            page.goto(address + path)
            expect(page.locator("h1").first).to_be_attached()
            assert page.evaluate(FOREIGN, address) == [], path
            assert page.url.startswith(address), path
        page.goto(f"{address}/runs")
        said = " ".join((page.locator("main").text_content() or "").split())
        assert [text for text in GROUPS if " ".join(harmless(text).split()) not in said] == []


def _leave_hostile(url: str) -> None:
    """Leave runs with all hostile texts as ids, names, arguments, results, errors, sessions."""

    def echo(text: str) -> str:
        return text

    def fail(text: str) -> str:
        raise RuntimeError(text)

    everything = " ".join(HOSTILE)
    with DurableSwarm(ScriptedModel(_parrot), database=url, name=GROUPS[-2]) as swarm:
        for text in GROUPS:
            swarm.start(Agent(name=text, functions=[refund]), [{"role": "user", "content": text}], run_id=text)
        until(lambda: all(run.status not in ("queued", "running") for run in swarm.runs()))
        swarm.session(GROUPS[0], Agent(name="Echo", functions=[])).run(everything)
        failing = Agent(name="Failing", functions=[echo, fail])
        with contextlib.suppress(RuntimeError):
            swarm.run(failing, [{"role": "user", "content": everything}], run_id="failed")


def _parrot(request: dict[str, Any]) -> Any:
    """Return calls with what the user said in them, then the same as text; a tool named by it does not exist."""
    said = next(message["content"] for message in reversed(request["messages"]) if message["role"] == "user")
    offered = [one["function"]["name"] for one in request.get("tools") or []]
    heard = sum(message["role"] == "tool" for message in request["messages"])
    if "refund" in offered:
        return [call("refund", customer=said, amount=250), call(said, x=said)]
    return [call(offered[heard], text=said)] if heard < len(offered) else said


LONGEST_NAME = 500  # Bytes of a name.
HOSTILE = [
    *(
        way_out + attack
        for way_out in (
            "", '">', "'>", "-->", "</script>", "</textarea>", "</title>", "</svg>", "</select></option>", "]]>",
            "</pre></code></template>", "\n\n", "` ", "</a></td></tr></table>",
        )
        for attack in (
            "<script>window.hacked=1</script>",
            "<img src=//evil.example/x onerror=window.hacked=1>",
            "<svg/onload=window.hacked=1>",
            "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
            "<a href=javascript:window.hacked=1 autofocus onfocus=window.hacked=1>x</a>",
            "<form action=//evil.example><button autofocus>Approve</button></form>",
            "<meta http-equiv=refresh content=0;url=//evil.example>",
            "<base href=//evil.example/><link rel=stylesheet href=//evil.example/x.css>",
            "<div hx-get=/runs hx-trigger=load hx-target=body></div>",
            "<hx-partial hx-target='body' hx-swap='innerHTML'>gone</hx-partial>",
        )
    ),
    *(f'" {name}=window.hacked=1 x="' for name in ("onmouseover", "onfocus autofocus", "style", "hx-on:load")),
    "javascript:window.hacked=1", "data:text/html,<script>window.hacked=1</script>", "//evil.example/",
    "&lt;b&gt;&#60;",
    "{{ 7*7 }}{% include 'x' %}${7*7}<%= 7 %>", "../../..//evil.example/?a=b&c#d", "%2e%2e/%00%0d%0aSet-Cookie: x=1",
    "\u202e\u200e\u200b\ufeffevil", "\x1b[2J\x07\x08", "data: x\n\nevent: end\ndata: \n\n<base href=//evil.example>",
    "id: 9\r\rretry: 1", "\ud7ff\uffff\U0010ffff", "\u0130\u017f\u212a<\u017fcript>", "a" * 300,
    "'; DROP TABLE runs; --",
]  # fmt: skip
"""Each way out of a place in a page, with each attack behind it; texts that mean something elsewhere than in HTML."""
GROUPS = [""]
"""The same in few texts, each as long as a name may be."""
for _text in HOSTILE:
    _joined = f"{GROUPS[-1]} {_text}".strip()
    GROUPS = [*GROUPS[:-1], _joined] if len(_joined.encode()) <= LONGEST_NAME else [*GROUPS, _text.strip()]
FOREIGN = """address => [
    ...(window.hacked ? ["something ran"] : []),
    ...[...document.querySelectorAll("*")].flatMap(one => [...one.attributes].filter(({name, value}) =>
        /^(on|hx-on|style|srcdoc)/.test(name)
        || (/^(href|src|action|hx-get|hx-post)$/.test(name) && !/^([/](?![/])|#|[?])/.test(value))
    ).map(({name, value}) => `${one.tagName} ${name}=${value}`)),
    ...[...document.querySelectorAll("main :is(script, img, iframe, style, meta, base, link, hx-partial)")]
        .map(one => one.outerHTML),
]"""
"""What of a page is none of the console's own."""
