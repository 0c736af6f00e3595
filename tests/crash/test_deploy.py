"""A deploy: runs stopped under one version of a program are continued under the next, as code-changes.md says."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_swarm import DurableSwarm, Run
from durable_swarm.engine.processes.local_runs import DECLINE
from durable_swarm.service import open_runs
from tests.crash.workers import Workers
from tests.engine.helpers import wait_until
from tests.support import programs
from tests.support.patience import PATIENCE

APP = """
    import os, time
    from durable_swarm import Agent, DurableSwarm, current_call, step, tool
    from durable_swarm.testing import ScriptedModel

    VERSION = "{version}"
    OLD, NEW = VERSION == "old", VERSION == "new"

    def note(what):
        with open("ledger", "a") as ledger:
            ledger.write(f"{{current_call().run_id}} {{what}}\\n")

    def stop(what):
        note(what)
        if OLD and current_call().run_id.startswith("stopped"):
            time.sleep(3600)

    def makes(name):
        @step(name=name)
        def make():
            note(name)
        return make

    scan, weigh, wrap, label = map(makes, ("scan", "weigh", "wrap", "label"))

    @tool(name="look" if OLD else "examine")
    @step
    def look() -> str:
        note("look")
        return "looked"

    @tool(name="dispatch" if NEW else "send")
    def send() -> str:
        stop("send")
        return "sent"

    def wait() -> str:
        stop("wait")
        return "waited"

    def pack() -> str:
        weigh()
        stop("pack")
        wrap()
        if not OLD:
            label()
        return "packed"

    def ship() -> str:
        if NEW:
            scan()
        weigh()
        stop("ship")
        wrap()
        return "shipped"

    @tool(approval=True)
    def refund() -> str:
        note("refund")
        return "refunded"

    @step
    def thank() -> str:
        note("thank")
        return "thanked"

    if not NEW:
        cashier = Agent(name="Cashier", functions=[wait, refund])

    @step
    def transfer() -> Agent:
        return cashier

    tools = [look, send, wait, pack, ship, refund]
    clerk = Agent(name="Clerk", instructions=VERSION, functions=[*tools, transfer if OLD else thank])

    def reply(request):
        plan = next(message["content"] for message in request["messages"] if message["role"] == "user").split()
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        return [plan[turn]] if turn < len(plan) else f"Done by {{VERSION}}."

    policy = os.environ.get("POLICY", "continue")
    swarm = DurableSwarm(ScriptedModel(reply, strict=False), changed_agents=policy)
"""

ENDS = {
    "prompt": ("look wait", {"look": 1, "wait": 2}),
    "added": ("look wait thank", {"look": 1, "wait": 2, "thank": 1}),
    "renamed": ("look wait examine", {"look": 2, "wait": 2}),
    "longer": ("look pack", {"look": 1, "weigh": 1, "pack": 2, "wrap": 1, "label": 1}),
    "asks": ("look refund", {"look": 1, "refund": 1}),
}
"""Runs that end under the new version, with their tools by turn; and what has happened in them then."""

WAITS = {
    "open": ("look send", "agent 'Clerk' has no tool 'send' any more", {"look": 1, "send": 2}),
    "removed": ("wait", "a program that defines agent 'Cashier'", {"wait": 2}),
    "handed": ("transfer wait", "no agent named 'Cashier'", {"wait": 2}),
    "inserted": ("look ship", "step 'scan' does not fit", {"look": 1, "weigh": 1, "ship": 2, "wrap": 1}),
}
"""Runs that wait under the new version, why they do, and what has happened when they have ended under mended code."""

FORETOLD = {"open", "removed", "handed"}
"""What `check` can know: the steps inside a tool are known only when it is called again."""


@pytest.fixture
def workers(postgres_database: str) -> Iterator[Workers]:
    """Workers on PostgreSQL, and three versions of their program: old, new, and new with what the old runs need."""
    found = Workers(postgres_database)
    for version in ("old", "new", "mended"):
        Path(f"{version}.py").write_text(textwrap.dedent(APP.format(version=version)), encoding="utf-8")
    yield found
    found.end()


def begin(swarm: DurableSwarm, name: str, plan: str) -> Run:
    """Queue a run of the agent that it begins with."""
    agent = "Cashier" if name.endswith(("removed", "cashier")) else "Clerk"
    return swarm.enqueue(agent, [{"role": "user", "content": plan}], run_id=name)


def happened(name: str) -> Counter[str]:
    """Give what the ledger has of a run."""
    lines = Path("ledger").read_text().splitlines() if Path("ledger").exists() else []
    return Counter(line.split()[1] for line in lines if line.split()[0] == name)


def is_stopped(run: Run) -> bool:
    """Whether a run has come to the call in which the old version is stopped."""
    return bool(run.requests()) or bool(happened(run.id).keys() & {"wait", "send", "pack", "ship"})


def checked(url: str, version: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Check a version of the program; gives the exit code, and what is said of each run."""
    command = [sys.executable, "-m", "durable_swarm", "check", f"{version}:swarm", "--json", "--database", url]
    done = programs.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    return done.returncode, {fit["run_id"].removeprefix("stopped-"): fit for fit in json.loads(done.stdout)}


def words(run: Run) -> str:
    """Give what a run says at last."""
    return str(run.result(PATIENCE).messages[-1]["content"])


def versions(run: Run) -> int:
    """Give how many versions of agents have answered in a run."""
    return len({step.version for step in run.steps() if step.kind == "model"})


def reasons(url: str) -> dict[str, str]:
    """Give why each unfinished run that waits does so, as `show` says it."""
    with open_runs(url) as runs:
        found = {name: runs.show(f"stopped-{name}") for name in WAITS}
    assert {run.status for run in found.values()} == {"running"}
    return {name: run.waits_for or "" for name, run in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_under_way_are_continued_by_the_next_version(workers: Workers) -> None:
    """Each run ends or waits as documented and foretold, none fails, and nothing that was finished is done again."""
    url, began = workers.url, time.monotonic()
    with DurableSwarm(database=url) as swarm:
        plans = {name: case[0] for name, case in {**ENDS, **WAITS}.items()}
        runs = {name: begin(swarm, f"stopped-{name}", plan) for name, plan in plans.items()}
        rolling = begin(swarm, "rolling-handed", "transfer refund")
        old = workers.start("old:swarm", "--concurrency", "30")
        wait_until(lambda: all(map(is_stopped, [*runs.values(), rolling])), PATIENCE)

        code, told = checked(url, "new")
        assert (code, {name for name, fit in told.items() if fit["problem"]} - {rolling.id}) == (1, FORETOLD)
        assert all(WAITS[name][1] in told[name]["problem"] for name in ("open", "handed"))
        assert {name for name, fit in told.items() if fit["changed"]} == {*ENDS, "inserted"}

        new = workers.start("new:swarm", "--concurrency", "30")
        fresh = [
            begin(swarm, f"fresh-{number}-{agent}", "wait") for number in range(2) for agent in ("cashier", "clerk")
        ]
        rolling.approve()
        assert {words(run) for run in (rolling, fresh[0], fresh[2])} == {"Done by old."}
        assert {words(run) for run in (fresh[1], fresh[3])} <= {"Done by old.", "Done by new."}

        workers.kill(old)
        runs["asks"].approve()
        assert {name: words(runs[name]) for name in ENDS} == dict.fromkeys(ENDS, "Done by new.")
        assert {name: happened(runs[name].id) for name in ENDS} == {name: counts for name, (_, counts) in ENDS.items()}
        assert {versions(runs[name]) for name in ENDS} == {2}
        wait_until(lambda: all(WAITS[name][1] in reason for name, reason in reasons(url).items()), PATIENCE)

        code, told = checked(url, "mended")
        assert (code, set(told)) == (0, set(WAITS))
        workers.start("mended:swarm", "--concurrency", "30")
        workers.kill(new)
        assert {name: words(runs[name]) for name in WAITS} == dict.fromkeys(WAITS, "Done by mended.")
        assert {name: happened(runs[name].id) for name in WAITS} == {name: case[2] for name, case in WAITS.items()}
    said = Counter(name for log in workers.logs() for name in re.findall(r"run ('\S+') waits", log))
    most = 1 + (time.monotonic() - began) // DECLINE
    assert all(1 <= said[f"'stopped-{name}'"] <= most for name in ("open", "inserted"))
    lacking = sum("'Cashier'" in line for log in workers.logs() for line in log.splitlines())
    assert 1 <= lacking <= most  # Once for all runs of that agent.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_person_is_asked_first(workers: Workers) -> None:
    """With changed_agents="hold" new workers hold what old ones began, until a person, or an old worker, comes."""
    url, reason = workers.url, "agent 'Clerk' has changed since turn 1 of this run"
    with DurableSwarm(database=url) as swarm:
        runs = [begin(swarm, f"stopped-{number}", "look wait") for number in range(2)]
        old = workers.start("old:swarm")
        wait_until(lambda: all(map(is_stopped, runs)), PATIENCE)
        code, told = checked(url, "new", POLICY="hold")
        assert (code, {name: fit["held"] for name, fit in told.items()}) == (1, {"0": True, "1": True})
        workers.kill(old)
        new = workers.start("new:swarm", POLICY="hold")
        wait_until(lambda: all(reason in (run.waits_for or "") for run in runs), PATIENCE)
        runs[0].resume()
        assert words(runs[0]) == "Done by new."
        assert (runs[1].status, happened(runs[1].id)) == ("running", {"look": 1, "wait": 2})
        workers.kill(new)
        workers.start("old:swarm", POLICY="hold")
        assert words(runs[1]) == "Done by old."
        assert [happened(run.id) for run in runs] == [{"look": 1, "wait": 2}] * 2
