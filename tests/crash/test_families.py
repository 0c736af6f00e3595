"""Child runs in processes that are killed: nothing that finished is repeated, and the family comes to its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Response, tool
from durable_swarm.cli.app import main
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel, call, crash_test, effect, when
from tests.crash.lives import Lives, hear, say
from tests.crash.matrix import LONG
from tests.engine.helpers import wait_until

HI = [{"role": "user", "content": "Hi"}]
SCOUTS = ("north", "east", "south")


class Log:
    """A file to which several processes write what they do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, line: str) -> None:
        """Add a line."""
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    def count(self) -> Counter[str]:
        """Return how often each line is there."""
        return Counter(self._path.read_text().splitlines() if self._path.exists() else ())


def scripted(log: Log, asks: list[dict[str, Any]]) -> ScriptedModel:
    """Return a model with which the chief makes the calls and a scout calls `look`; each request is logged."""

    def said(reply: Any) -> Callable[[dict[str, Any]], Any]:
        def answer(request: dict[str, Any]) -> Any:
            log.add(f"model {request['messages'][1]['content']}")
            return reply

        return answer

    def over(request: dict[str, Any]) -> bool:
        return bool(request["messages"][-1]["role"] == "tool")

    return ScriptedModel(
        [
            when(system="lead", where=over, reply=said("All is seen.")),
            when(system="lead", reply=said(asks)),
            when(system="look", where=over, reply=said("Seen.")),
            *(when(system="look", said=where, reply=said([call("look", where=where)])) for where in SCOUTS),
        ]
    )


def family(look: Any, *, at_once: bool) -> tuple[Agent, list[dict[str, Any]]]:
    """Return a chief with scouts, and the calls of its reply: one for each scout, or one whose tool asks them all."""
    ask = Agent(name="Crash Scout", instructions="You look.", functions=[look]).as_tool("ask")

    async def ask_all(context_variables: dict[str, Any]) -> str:
        asked = [ask(message=f"Go {where}", context_variables=context_variables) for where in SCOUTS]
        return " ".join(await asyncio.gather(*asked))

    chief = Agent(name="Crash Chief", instructions="You lead.", functions=[ask, ask_all])
    return chief, [call("ask_all")] if at_once else [call("ask", message=f"Go {where}") for where in SCOUTS]


def three(url: str, path: Path, at_once: bool, *, holds: bool) -> Response:
    """Run the family; with `holds`, say when only the third scout's tool has not ended, and wait to be killed."""
    log = Log(path)

    async def look(where: str) -> str:
        log.add(f"look {where}")
        while holds and where == "south":
            await asyncio.sleep(0.01)
        return f"{where} is clear"

    chief, asks = family(look, at_once=at_once)
    with DurableSwarm(scripted(log, asks), database=url) as swarm:
        run = swarm.start(chief, HI, run_id="chief")
        if holds:
            wait_until(lambda: [child.status for child in run.children()] == ["done", "done", "running"])
            say("held")
        return run.result()


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.parametrize("at_once", [False, True], ids=["calls", "gather"])
def test_three_children_killed_in_the_third(database_url: str, lives: Lives, tmp_path: Path, at_once: bool) -> None:
    """Children that ended are not asked again; of the third only the call in progress is repeated."""
    log, ledger = tmp_path / "log", tmp_path / "ledger"
    life = lives.start(_held, database_url, log, at_once, ledger=ledger)
    assert life.hear() == "held"
    life.kill()
    told = lives.live(_told, database_url, log, at_once, ledger=ledger).value
    assert told["answer"] == "All is seen."
    assert told["tools"] == (["Seen. Seen. Seen."] if at_once else ["Seen."] * 3)
    expected = (
        [f"chief/0.0/{number}" for number in range(3)] if at_once else [f"chief/0.{index}/0" for index in range(3)]
    )
    assert told["children"] == expected
    assert Log(log).count() == {
        "model Hi": 2,
        **{f"model Go {where}": 2 for where in SCOUTS},
        "look north": 1,
        "look east": 1,
        "look south": 2,
    }


def _held(url: str, path: Path, at_once: bool) -> None:
    three(url, path, at_once, holds=True)


def _told(url: str, path: Path, at_once: bool) -> dict[str, Any]:
    response = three(url, path, at_once, holds=False)
    with open_runs(url) as runs:
        children = runs.view("chief").children
    return {
        "answer": response.messages[-1]["content"],
        "tools": [message["content"] for message in response.messages if message["role"] == "tool"],
        "children": children,
    }


@tool(approval=True)
async def look(where: str) -> str:
    """Look somewhere, once a person has approved it."""
    return f"{where} is clear"


def approved(url: str, path: Path) -> str:
    """Run a chief that asks one scout, whose tool needs an approval; say when it waits."""
    chief, asks = family(look, at_once=False)
    with DurableSwarm(scripted(Log(path), asks[:1]), database=url) as swarm:
        run = swarm.start(chief, HI, run_id="chief")
        wait_until(lambda: run.requests() or run.status == "done")
        say(run.status)
        return str(run.result().messages[-1]["content"])


def test_an_approval_in_a_child_outlives_the_process(
    database_url: str, lives: Lives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed while a child waits, the family is approved through the parent on the command line, and then ends."""
    log, ledger = tmp_path / "log", tmp_path / "ledger"
    life = lives.start(approved, database_url, log, ledger=ledger)
    assert life.hear() == "waiting"
    life.kill()
    assert main(["inbox", "--database", database_url]) == 0
    assert "asked by chief (Crash Chief)" in " ".join(capsys.readouterr().out.split())
    assert main(["approve", "chief", "--database", database_url]) == 0
    assert lives.live(approved, database_url, log, ledger=ledger).value == "All is seen."
    assert Log(log).count() == {"model Hi": 2, "model Go north": 2}


def waiting_for_good(url: str, path: Path) -> list[str]:
    """Run a chief whose scout waits; once a word has come from the test, tell the states of the family."""
    chief, asks = family(look, at_once=False)
    with DurableSwarm(scripted(Log(path), asks), database=url) as swarm:
        run = swarm.start(chief, HI, run_id="chief")
        wait_until(lambda: len(run.requests()) == 3)
        say("waits")
        hear()
        return [one.status for one in (run, *run.children())]


def test_cancelled_from_another_process(database_url: str, lives: Lives, tmp_path: Path) -> None:
    """Whoever cancels a parent, from any process, ends the runs below it."""
    life = lives.start(waiting_for_good, database_url, tmp_path / "log", ledger=tmp_path / "ledger")
    assert life.hear() == "waits"
    with open_runs(database_url) as runs:
        assert runs.cancel("chief").status == "cancelled"
        assert runs.inbox.list() == []
    life.say("look")
    assert life.end().value == ["cancelled"] * 4


def serving(url: str, path: Path) -> None:
    """Be a worker that executes scouts; say when a scout's tool is entered, and end it at the test's word."""
    log = Log(path)

    def look(where: str) -> str:
        log.add(f"look {where}")
        say("entered")
        hear()
        return f"{where} is clear"

    scout = Agent(name="Queued Scout", instructions="You look.", functions=[look])
    with DurableSwarm(scripted(log, []), database=url) as swarm:
        swarm.serve(concurrency=1)
        wait_until(lambda: swarm.get("chief/0.0/0").status == "done" if log.count()["look north"] else False)
        say(scout.name)


def chief_of_workers(url: str, path: Path) -> str:
    """Run a chief whose tool has a worker execute a scout."""
    with DurableSwarm(scripted(Log(path), [call("send")]), database=url) as swarm:

        async def send() -> str:
            messages = [{"role": "user", "content": "Go north"}]
            run = await swarm.enqueue_async("Queued Scout", messages)
            return str((await run.result_async()).messages[-1]["content"])

        chief = Agent(name="Queue Chief", instructions="You lead.", functions=[send])
        return str(swarm.run(chief, HI, run_id="chief").messages[-1]["content"])


def test_a_child_elsewhere_outlives_its_parents_process(database_url: str, lives: Lives, tmp_path: Path) -> None:
    """A child that a worker executes continues while its parent is dead, which then takes its answer."""
    log, ledger = tmp_path / "log", tmp_path / "ledger"
    worker = lives.start(serving, database_url, log, ledger=ledger)
    parent = lives.start(chief_of_workers, database_url, log, ledger=ledger)
    assert worker.hear() == "entered"
    parent.kill()
    worker.say("go on")
    assert worker.hear() == "Queued Scout"
    worker.end()
    assert lives.live(chief_of_workers, database_url, log, ledger=ledger).value == "All is seen."
    assert Log(log).count() == {"model Hi": 2, "model Go north": 2, "look north": 1}


def parent_of_two() -> Response:
    """A parent asks two agents at once, each of which has an effect of its own."""

    async def look(where: str) -> str:
        effect("look", key=where)
        return f"{where} is clear"

    chief, asks = family(look, at_once=False)
    rules = [
        when(system="lead", where=lambda request: request["messages"][-1]["role"] == "tool", reply="All is seen."),
        when(system="lead", reply=asks[:2]),
        when(system="look", where=lambda request: request["messages"][-1]["role"] == "tool", reply="Seen."),
        *(when(system="look", said=where, reply=[call("look", where=where)]) for where in SCOUTS),
    ]
    with DurableSwarm(ScriptedModel(rules)) as swarm:
        return swarm.run(chief, HI, run_id="chief")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_boundary() -> None:
    """A parent of two children is killed before and after each of the family's boundaries, and nothing differs."""
    report = crash_test(parent_of_two, only=None if LONG else [2, 4, 5, 7, 9, 12, 15, 18])
    assert report.kills == report.cases > 10, str(report)
