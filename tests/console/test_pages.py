"""The pages of the console, without a browser: what they show, what their forms change, what they cost."""

from __future__ import annotations

import html
import math
import os
import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, Block, Blocked, DurableSwarm
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.server.ids import encode_id
from durable_swarm.server.web import live
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel
from tests.console.asking import BEARER, Answer, ask
from tests.console.browsing import telling
from tests.console.shop import STORY, answer, refunds, run_shop, triage, until
from tests.support.patience import PATIENCE

Make = Callable[..., Any]


def seen(page: Answer) -> str:
    """Return the text of a page as people read it."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.text))


def form_at(app: Any, path: str) -> dict[str, str]:
    """Return the hidden fields and the arguments in the form of a request."""
    page = ask(app, path).text
    found = re.findall(r'<input [^>]*name="([^"]+)" value="([^"]*)"', page)
    return {html.unescape(name): html.unescape(value) for name, value in found}


def request_of(url: str, run_id: str) -> str:
    with open_runs(url) as runs:
        return runs.inbox.list(run_id)[0].id


def test_a_fresh_database_says_what_to_do(tmp_path: Path, console: Make) -> None:
    """Where nothing has run yet, each page says how to get a first run; the database is looked for again each time."""
    url = f"sqlite:///{tmp_path}/none.sqlite"
    app = console(url)
    for path in ("/runs", "/inbox", "/workers"):
        page = ask(app, path)
        assert (page.status, "durable-swarm demo refund" in page.text) == (200, True)
    with DurableSwarm(ScriptedModel(["Hi."]), database=url) as swarm:
        swarm.run(triage, [{"role": "user", "content": "Hi"}])
    assert "Shop Triage" in ask(app, "/runs").text


def test_runs_by_status(shop: str, console: Make) -> None:
    """The list shows each run with a link named by its id; a filter is part of the address."""
    app = console(shop)
    page = ask(app, "/runs")
    assert re.findall(r">(order-\d+)</a></td>", page.text) == [f"order-000{n}" for n in (6, 5, 4, 3, 2, 1)]
    assert re.findall(r">(order-\d+)</a></td>", ask(app, "/runs?status=failed").text) == ["order-0004"]
    assert "No run fits" in ask(app, "/runs?status=queued").text


def test_page_by_page(tmp_path: Path, fresh_sqlite: Callable[[Path], str], console: Make) -> None:
    """The link to older runs leads to the last one; none is twice or missing, also while runs are added."""
    url, found = fresh_sqlite(tmp_path / "many.sqlite"), []
    _add(url, range(110))
    app, path = console(url), "/runs?agent=Shop+Triage"
    while path:
        page = ask(app, path)
        found += re.findall(r">(run-\d+)</a></td>", page.text)
        _add(url, [200 + len(found)])
        older = re.search(r'rel="next" href="([^"]+)"', page.text)
        path = html.unescape(older[1]) if older else ""
    assert found == [f"run-{number}" for number in reversed(range(110))]


def _add(url: str, numbers: Iterable[int]) -> None:
    with DurableSwarm(ScriptedModel(lambda _: "Hi."), database=url) as swarm:
        for number in numbers:
            swarm.run(triage, [{"role": "user", "content": "Hi"}], run_id=f"run-{number}")


def test_every_step_and_message_of_a_run(shop: str, console: Make) -> None:
    """A run's page has a row for each of its steps, and each message's text in order, with the turns as places."""
    page = ask(console(shop), "/runs/order-0003")
    with open_runs(shop) as runs:
        run = runs.show("order-0003")
    rows = re.findall(r'<tr id="step-(\d+)".*?</tr>', page.text, re.DOTALL)
    assert [int(number) for number in rows] == [step.number for step in run.steps]
    transcript = seen(page).partition("Transcript")[2]
    places = [transcript.index(str(one["content"])) for one in (*run.asked, *run.messages) if one.get("content")]
    assert places == sorted(places)
    assert re.findall(r'id="turn-(\d+)"', page.text) == ["0", "1", "2", "3"]


def test_a_failed_run_says_why(shop: str, console: Make) -> None:
    """A failed run leads with its error, and keeps the traceback folded."""
    page = seen(ask(console(shop), "/runs/order-0004"))
    assert "RuntimeError: bank is down" in page
    assert "Traceback" in page


def test_an_approval_with_other_arguments(shop: str, console: Make) -> None:
    """An approver changes one argument; the tool gets it, and the page says who approved what."""
    app, request = console(shop), request_of(shop, "order-0005")
    path = f"/inbox/{encode_id(request)}"
    form = form_at(app, path)
    assert ask(app, path, {**form, "verdict": "approve", "field.amount": "90"}).status == 303
    assert 'approved with {"amount": 90, "customer": "Max"} by ana' in seen(ask(app, path))
    with DurableSwarm(ScriptedModel(answer), database=shop) as swarm:
        assert swarm.get("order-0005").result(timeout=PATIENCE).messages[-1]["content"] == STORY["order-0005"][-1]
    assert "refunded 90 to Max" in seen(ask(app, "/runs/order-0005"))
    assert refunds.name in ask(app, "/runs/order-0005").text


def test_an_approval_that_does_not_fit(shop: str, console: Make) -> None:
    """A value against the schema decides nothing: the page says what is wrong, and keeps what was typed."""
    app, path = console(shop), "/inbox/" + encode_id(request_of(shop, "order-0005"))
    form = form_at(app, path)
    answered = ask(app, path, {**form, "verdict": "approve", "field.amount": "plenty"})
    assert (answered.status, 'role="alert"' in answered.text, 'value="plenty"' in answered.text) == (422, True, True)
    assert ask(app, path, {**form, "verdict": "approve", "field.amount": "[" * 100_000}).status == 422
    assert request_of(shop, "order-0005")


def test_a_decision_is_taken_once(shop: str, console: Make) -> None:
    """The second of two who decide is told who was quicker, and changes nothing."""
    app, other = console(shop), console(shop, name="bob")
    path = "/inbox/" + encode_id(request_of(shop, "order-0005"))
    form = form_at(app, path)
    assert ask(other, path, {**form, "verdict": "reject", "reason": "too much"}).status == 303
    late = ask(app, path, {**form, "verdict": "approve"})
    assert late.status == 409
    assert "rejected: too much by bob" in seen(late)


def test_a_decision_is_about_what_was_shown(shop: str, console: Make) -> None:
    """A form that showed something else than what is asked now decides nothing, and shows what is asked now."""
    app, path = console(shop), "/inbox/" + encode_id(request_of(shop, "order-0005"))
    for digest in ("", "0" * 64):
        answered = ask(app, path, {**form_at(app, path), "verdict": "approve", "seen": digest})
        assert (answered.status, "nothing was decided" in seen(answered)) == (409, True)
    assert request_of(shop, "order-0005")


def test_a_question_is_answered_on_its_runs_page(shop: str, console: Make) -> None:
    """The run's page has the form of what it asks, and an answer leads back to that page."""
    app, path = console(shop), "/inbox/" + encode_id(request_of(shop, "order-0006"))
    form = form_at(app, "/runs/order-0006")
    answered = ask(app, path, {"seen": form["seen"], "at": "run", "verdict": "answer", "answer": "tea"})
    assert answered.headers["location"] == "/runs/order-0006"
    assert ask(app, path, {**form, "verdict": "answer", "answer": "a car"}).status == 409


def test_who_decided_what(shop: str, console: Make) -> None:
    """The decided requests are listed, the last one first, page by page, with the decision, the person and the run."""
    app, bob = console(shop), console(shop, name="bob")
    first, last = request_of(shop, "order-0005"), request_of(shop, "order-0006")
    assert "Nothing was decided yet" in ask(app, "/inbox?state=decided").text
    path = f"/inbox/{encode_id(first)}"
    ask(app, path, {**form_at(app, path), "verdict": "reject", "reason": "too much"})
    path = f"/inbox/{encode_id(last)}"
    ask(bob, path, {**form_at(app, path), "verdict": "answer", "answer": "tea"})
    page = ask(app, "/inbox?state=decided")
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in page.text.split("<tr>")[2:]]
    told = [[seen(Answer(200, {}, cell)).strip() for cell in row] for row in cells]
    assert [(row[1], row[2], row[3]) for row in told] == [
        ("order-0006", "answered tea", "bob"),
        ("order-0005", "rejected: too much", "ana"),
    ]
    behind = ask(app, f"/inbox?state=decided&before={encode_id(last).replace('~', '%')}").text
    assert ("order-0005" in behind, "order-0006" in behind) == (True, False)
    assert ask(app, "/inbox?state=decided&before=none").status == 404


def test_several_runs_at_once(shop: str, console: Make) -> None:
    """One change of several runs tells what became of each, also of one that is not there."""
    app = console(shop)
    ids = [("id", run_id) for run_id in ("order-0001", "order-0005", "order-0006", "order-9999")]
    page = seen(ask(app, "/runs/bulk", [*ids, ("change", "cancel")]))
    for said in ("order-0001: was done already", "order-0005: cancelled", "order-0006: cancelled", "order-9999: there"):
        assert said in page


def test_a_fork_and_its_source(shop: str, console: Make) -> None:
    """A fork is asked for by a form, and its page leads to its source and to a comparison with it."""
    app = console(shop)
    assert "Fork from turn 2" in seen(ask(app, "/runs/order-0003"))
    assert "Fork from turn 2" in seen(ask(app, "/runs/order-0003/fork?turn=2"))
    made = ask(app, "/runs/order-0003/fork", {"turn": "2", "run_id": "order-0003-b", "message": "Take tea instead."})
    assert made.headers["location"] == "/runs/order-0003-b"
    page = ask(app, "/runs/order-0003-b")
    assert 'href="/runs/order-0003"' in page.text
    assert 'href="/runs/order-0003/compare/order-0003-b"' in page.text
    assert "differ" in seen(ask(app, "/runs/order-0003/compare/order-0003-b"))
    assert "same" in seen(ask(app, "/runs/order-0003/compare/order-0003"))
    assert ask(app, "/runs/order-0003/fork", {"turn": "2", "run_id": "order-0003-b"}).status in (303, 409)


def test_an_address_names_one_run_for_ever(shop: str, console: Make) -> None:
    """A prefix, which commands take, is no address: another run may begin with it tomorrow."""
    app = console(shop)
    assert ask(app, "/runs/order-000").status == 404
    assert ask(app, "/runs/order-000/cancel", {}).status == 404
    assert ask(app, "/runs/order%2F").status == 404


def test_a_long_value_is_cut_and_whole_elsewhere(shop: str, console: Make) -> None:
    """A page stays small whatever a run holds; what it cuts has an address of its own."""
    long = "abc " * 500_000
    with DurableSwarm(ScriptedModel([long]), database=shop) as swarm:
        swarm.run(triage, [{"role": "user", "content": long}], run_id="long")
    app = console(shop)
    page = ask(app, "/runs/long")
    assert len(page.text) < 50_000
    assert ask(app, "/runs/long/message/1").text == long
    assert ask(app, "/runs/long/message/2").status == 404


def test_a_run_of_many_messages(shop: str, console: Make) -> None:
    """Of very many messages that a run was given its page has the last ones, and a link to all of them."""
    with DurableSwarm(ScriptedModel(["Hi."]), database=shop) as swarm:
        said = [{"role": "user", "content": f"message {number}"} for number in range(5000)]
        swarm.run(triage, said, run_id="many")
    page = ask(console(shop), "/runs/many")
    assert len(page.text) < 100_000
    assert "message 4999" in page.text
    assert "message 4899" not in page.text
    assert "4,900 earlier messages" in page.text
    assert 'href="/runs/many/export"' in page.text


def test_who_did_what_to_a_run(shop: str, console: Make) -> None:
    """A run's page says who cancelled, resumed or forked it."""
    app = console(shop)
    ask(app, "/runs/order-0005/cancel", {})
    ask(console(shop, name="bob"), "/runs/order-0005/resume", {})
    page = seen(ask(app, "/runs/order-0005"))
    assert "cancelled by ana" in page
    assert "resumed by bob" in page
    ask(app, "/runs/order-0003/fork", {"turn": "1", "run_id": "order-0003-b"})
    assert 'href="/runs/order-0003-b"' in ask(app, "/runs/order-0003").text


def test_a_blocked_run_leads_to_its_fork(shop: str, console: Make) -> None:
    """A failed run's page names what helps: another page to fork it, where a resume would end as it did."""

    def stop(messages: list[dict[str, Any]]) -> Block:
        return Block("rude")

    with DurableSwarm(ScriptedModel(["Hi."]), database=shop) as swarm, pytest.raises(Blocked):
        swarm.run(Agent(name="Shop Guard", input_guardrails=[stop]), [{"role": "user", "content": "?"}], run_id="rude")
    assert 'href="/runs/rude/fork">fork from turn 0</a>' in ask(console(shop), "/runs/rude").text
    assert "fork from turn 0" not in ask(console(shop), "/runs/order-0004").text


def test_schedules(shop: str, console: Make) -> None:
    """The page of workers lists the schedules with their times."""
    with DurableSwarm(ScriptedModel(answer), database=shop) as swarm:
        swarm.schedule("nightly", triage, [{"role": "user", "content": "Hi"}], cron="0 3 * * *")
    page = seen(ask(console(shop), "/workers"))
    assert "nightly" in page
    assert "0 3 * * * (UTC)" in page


def test_who_works_on_the_database(shop: str, console: Make) -> None:
    """The page of workers shows a living process with its runs, by host and number."""
    app = console(shop)
    with DurableSwarm(ScriptedModel(answer), database=shop) as swarm:
        swarm.runs(limit=1)
        until(lambda: str(os.getpid()) in (page := seen(ask(app, "/workers"))) and "alive" in page)


@pytest.mark.parametrize("number", ["9" * 5000, "99", "-1", "x", "٣", "01"])
@pytest.mark.parametrize("part", ["step", "message"])
def test_what_numbers_no_part_of_a_run(shop: str, console: Make, part: str, number: str) -> None:
    """A number that a run has no step or message of, or that is none, is not found."""
    assert ask(console(shop), f"/runs/order-0003/{part}/{number}").status == 404


def test_a_death_shows_on_the_page_of_workers(
    tmp_path: Path, fresh_sqlite: Callable[[Path], str], console: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open page of workers tells of a killed process by itself, though the process leaves no mark."""
    monkeypatch.setattr(live, "STILL", math.inf)
    url = fresh_sqlite(tmp_path / "told.sqlite")
    app = console(url)
    with telling(url, 1) as teller:
        until(lambda: str(teller.pid) in (page := ask(app, "/workers").text) and "alive" in page)
        asks = html.unescape(re.search(r'hx-get="([^"]+)"', ask(app, "/workers").text)[1])  # type: ignore[index]
        teller.kill()
        until(lambda: "dead" in ask(app, asks).text)


@pytest.mark.parametrize("damage", ["{", '"x"', '{"v": 1}', '{"v": 99, "reply": []}'])
def test_a_damaged_run_says_so(shop: str, console: Make, damage: str) -> None:
    """A run with a record that cannot be read has a page with a sentence; the other pages are as ever."""
    with sqlite3.connect(shop.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE operation_outputs SET output = ? WHERE workflow_uuid = 'order-0003'", [damage])
    app = console(shop)
    page = ask(app, "/runs/order-0003")
    assert page.status == 200
    assert "order-0003" in seen(page)
    assert ask(app, "/runs").status == 200
    assert ask(app, "/runs/order-0001").status == 200


def test_a_database_that_goes_and_comes_back(shop: str, console: Make) -> None:
    """While the database cannot be used, each page says so with a status that means it; then they are as ever."""
    app, file = console(shop), Path(shop.removeprefix("sqlite:///"))
    paths = ("/runs", "/runs/order-0003", "/inbox", "/inbox?state=decided", "/sessions", "/workers")
    assert {ask(app, path).status for path in paths} == {200}
    whole = file.read_bytes()
    file.write_bytes(b"rubbish " * 10_000)
    for path in paths:
        page = ask(app, path)
        assert (page.status, "cannot be used" in page.text) == (503, True), path
    file.write_bytes(whole)
    assert {ask(app, path).status for path in paths} == {200}


def test_on_either_database(database_url: str, console: Make) -> None:
    """The pages are the same on SQLite and on PostgreSQL."""
    run_shop(database_url)
    app = console(database_url)
    for path in ("/runs?status=waiting&since=1h&q=order", "/runs/order-0003", "/inbox", "/workers", "/sessions"):
        page = ask(app, path)
        assert page.status == 200
        for asks in re.findall(r'hx-get="([^"]+)"', page.text):
            assert ask(app, html.unescape(asks)).status in (200, 204)
    form = form_at(app, path := "/inbox/" + encode_id(request_of(database_url, "order-0006")))
    assert ask(app, path, {**form, "verdict": "answer", "answer": "tea"}).status == 303


def test_an_encrypted_run_says_so(shop: str, console: Make) -> None:
    """A run that cannot be read here has a page with a sentence, and no error."""
    with DurableSwarm(ScriptedModel(["Secret."]), database=shop, codec=EncryptionCodec(new_key())) as swarm:
        swarm.run(triage, [{"role": "user", "content": "Secret?"}], run_id="hidden")
    page = ask(console(shop), "/runs/hidden")
    assert page.status == 200
    assert "(encrypted)" in page.text
    assert "Secret" not in page.text


def test_nothing_new_is_no_answer(shop: str, console: Make) -> None:
    """A page that asks for changes is answered with nothing unless there are some, and new runs are only counted."""
    app = console(shop)
    asks = html.unescape(re.search(r'hx-get="([^"]+)"', ask(app, "/runs?status=done").text)[1])  # type: ignore[index]
    assert ask(app, asks).status == 204
    with DurableSwarm(ScriptedModel(["Hi."]), database=shop) as swarm:
        swarm.run(triage, [{"role": "user", "content": "Hi"}], run_id="newest")
    answered = ask(app, asks)
    assert (answered.status, "1 new run: show it" in answered.text, ">newest<" in answered.text) == (200, True, False)


def test_first_load_is_small(shop: str, console: Make) -> None:
    """A page and all that it loads take at most 60 kB and six requests."""
    app, total = console(shop), 0
    headers = {**BEARER, "accept-encoding": "gzip"}
    page = ask(app, "/runs/order-0003").text
    loaded = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    for path in ["/runs/order-0003", *loaded]:
        total += int(ask(app, path, headers=headers).headers["content-length"])
    assert len(loaded) <= 5
    assert total < 60_000


def test_what_is_said_to_a_run(shop: str, console: Make) -> None:
    """A text typed on a run's page reaches the run before its next model call."""
    app = console(shop)
    assert ask(app, "/runs/order-0006/say", {"text": "And quickly.\r\nThanks."}).status == 303
    assert ask(app, "/runs/order-0001/say", {"text": "Too late."}).status == 422
    form = form_at(app, "/runs/order-0006")
    path = "/inbox/" + encode_id(request_of(shop, "order-0006"))
    ask(app, path, {**form, "verdict": "answer", "answer": "tea"})
    with DurableSwarm(ScriptedModel(answer), database=shop) as swarm:
        run = swarm.get("order-0006")
        until(lambda: run.status == "done")
        assert {"role": "user", "content": "And quickly.\nThanks."} in run.messages()
