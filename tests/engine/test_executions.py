"""The executions of a run: a crash shows, with the process that died and the one that continued."""

from __future__ import annotations

import os
import textwrap
import threading
from pathlib import Path

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.cli import main
from durable_swarm.service import RunDetail, open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.engine.helpers import Program, user, wait_until
from tests.support.patience import PATIENCE

DIES = """
    import sys, time
    from pathlib import Path
    from durable_swarm import Agent, DurableSwarm
    from durable_swarm.testing import ScriptedModel, call

    def hang(place: str) -> str:
        if place == sys.argv[2]:
            Path("there").touch()
            time.sleep(600)
        return "went on"

    def reply(request):
        said = sum(message["role"] == "assistant" for message in request["messages"])
        if said == 1:
            hang("model")
        return [call("hang", place="tool")] if said == 0 else "Done"

    agent = Agent(name="Sleeper", functions=[hang])
    with DurableSwarm(ScriptedModel(reply), database=sys.argv[1]) as swarm:
        swarm.run(agent, [{"role": "user", "content": "Go"}], run_id="killed")
"""


def detail(url: str) -> RunDetail:
    """Return the run in full."""
    with open_runs(url) as runs:
        return runs.show("killed")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tool", "model"])
def test_a_crash_shows(database_url: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose process was killed shows both executions, in the same words everywhere, and an event of it, once."""
    Program(textwrap.dedent(DIES)).run_and_kill(Path("there").exists, database_url, place)
    dead = wait_until(lambda: [one for one in detail(database_url).executions if one.end == "died"])
    assert [one.number for one in dead] == [1]

    def hang(place: str) -> str:
        return "went on"

    def reply(request: dict[str, list[dict[str, str]]]) -> object:
        said = sum(message["role"] == "assistant" for message in request["messages"])
        return [call("hang", place="tool")] if said == 0 else "Done"

    agent = Agent(name="Sleeper", functions=[hang])
    with DurableSwarm(ScriptedModel(reply), database=database_url) as swarm:
        run = swarm.get("killed")
        swarm.recover()
        assert run.result(timeout=200).messages[-1]["content"] == "Done"
        events = list(run.events())
        first, second = detail(database_url).executions
        assert agent.name == run.agent
    assert (first.process, first.end, second.end) == (dead[0].process, "died", "done")
    assert second.process != first.process
    assert (
        first.began_at <= (first.ended_at or first.began_at) <= second.began_at <= (second.ended_at or first.began_at)
    )
    [event] = [event for event in events if event.type == "run.recovered"]
    assert event.data == {
        "turn": 0 if place == "tool" else 1,
        "process": second.process,
        "before": first.process,
        "how": "died",
    }
    with open_runs(database_url) as runs:
        assert list(runs.events("killed")) == events
    main(["watch", "killed", "--database", database_url])
    assert f"process {first.process} died; it continues in {second.process}" in capsys.readouterr().out
    main(["show", "killed", "--database", database_url])
    assert f"{first.process}" in capsys.readouterr().out


def test_a_run_without_a_crash_has_one_execution(database_url: str) -> None:
    """One process from the start to the end; a failed run that is resumed in another process has two."""

    def refund() -> str:
        raise RuntimeError("the bank is down")

    agent = Agent(name="Refunds", functions=[refund])
    with (
        DurableSwarm(ScriptedModel([[call("refund")]]), database=database_url) as swarm,
        pytest.raises(RuntimeError, match="bank"),
    ):
        swarm.run(agent, user(), run_id="killed")
    [only] = detail(database_url).executions
    assert (only.end, only.ended_at is not None) == ("failed", True)
    agent.functions = [lambda: "refunded"]
    agent.functions[0].__name__ = "refund"
    with open_runs(database_url) as runs:
        runs.resume("killed")
    assert [one.end for one in detail(database_url).executions] == ["failed"]
    with DurableSwarm(ScriptedModel([[call("refund")], "Done"]), database=database_url) as swarm:
        assert swarm.get("killed").result(timeout=200).messages[-1]["content"] == "Done"
        events = [event.type for event in swarm.get("killed").events()]
    assert [one.end for one in detail(database_url).executions] == ["failed", "done"]
    assert "run.recovered" not in events


def test_a_process_that_is_closed_hands_its_runs_over(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Closing a program in the middle of a run is no crash: the run says so, before and after another continues it."""
    begun, may_end = threading.Event(), threading.Event()

    def hang() -> str:
        begun.set()
        may_end.wait(60)
        return "went on"

    agent = Agent(name="Left Sleeper", functions=[hang])
    with DurableSwarm(ScriptedModel([[call("hang")]]), database=database_url) as swarm:
        swarm.start(agent, user(), run_id="killed")
        assert begun.wait(PATIENCE)
    may_end.set()
    [left] = wait_until(lambda: [one for one in detail(database_url).executions if one.end])
    assert (left.end, left.pid) == ("handed over", os.getpid())
    with DurableSwarm(ScriptedModel([[call("hang")], "Done"]), database=database_url) as swarm:
        swarm.recover()
        assert swarm.get("killed").result(timeout=200).messages[-1]["content"] == "Done"
        [event] = [event for event in swarm.get("killed").events() if event.type == "run.recovered"]
    assert (event.data["before"], event.data["how"]) == (left.process, "handed over")
    assert [one.end for one in detail(database_url).executions] == ["handed over", "done"]
    main(["watch", "killed", "--database", database_url])
    assert f"process {left.process} has handed the run over" in capsys.readouterr().out
