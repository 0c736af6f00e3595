"""`changed_agents="hold"`: a run is held before an agent answers that has changed, until a person resumes it."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import Agent, AgentChanged, DurableSwarm, Run, tool
from durable_swarm.engine.execution import waiting
from durable_swarm.engine.processes import here
from durable_swarm.service import Query, open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, unique, user, wait_until
from tests.support.shell import Shell


@tool(approval=True)
def pay() -> str:
    """Pay."""
    return "paid"


def begin(make: Make, agent: Agent, *, run_id: str = "r") -> None:
    """Leave a run of the agent's first version, which waits in its first turn for an approval."""
    swarm = make(ScriptedModel([[call("pay")]]), changed_agents="hold")
    run = swarm.start(agent, user(), run_id=run_id)
    wait_until(run.requests)
    swarm.close()


def deploy(make: Make, agent: Agent, prompt: str, reply: Any = "Done.", **options: Any) -> DurableSwarm:
    """Open a swarm with another version of the agent."""
    agent.instructions = prompt
    swarm = make(ScriptedModel(lambda _: reply), **{"changed_agents": "hold", **options})
    swarm.recover()
    return swarm


def held(make: Make, agent: Agent) -> tuple[DurableSwarm, Run]:
    """Give a run that the second version of the agent holds."""
    begin(make, agent)
    swarm = deploy(make, agent, "Two.")
    run = swarm.get("r")
    run.approve()
    wait_until(lambda: run.waits_for)
    return swarm, run


def words(run: Run) -> str:
    """Give what the run says at last."""
    return str(run.result(PATIENCE).messages[-1]["content"])


@pytest.fixture
def agent() -> Agent:
    """The first version of an agent, kept for as long as the test."""
    return Agent(name=unique(), instructions="One.", functions=[pay])


def test_a_changed_agent_holds_its_run(agent: Agent, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The run stays unfinished and out of memory, everybody is told why, and what was open is done."""
    swarm, run = held(make, agent)
    reason = (
        f"agent {agent.name!r} has changed since turn 0 of this run; `durable-swarm resume r` (Run.resume()) continues "
        "it with the code that runs now"
    )
    assert (run.status, run.waits_for) == ("running", reason)
    with pytest.raises(AgentChanged, match=re.escape(reason)) as caught:
        run.result(PATIENCE)
    version = caught.value.version
    assert caught.value.attributes == {"run_id": "r", "agent": agent.name, "turn": 0, "version": version}
    assert [message["content"] for message in run.messages()] == [None, "paid"]
    wait_until(lambda: not here.current().local.executions)
    assert [swarm.recover(), swarm.recover()] == [[], []]
    with pytest.raises(AgentChanged):
        swarm.run(agent, user(), run_id="r")  # A program that asks once more is no person.
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"run 'r' waits: {reason}"] * 2


def test_resume_accepts_it(agent: Agent, make: Make) -> None:
    """`Run.resume` lets the run go on with the agent as it is, at once and for the rest of the run."""
    _, run = held(make, agent)
    run.resume()
    assert words(run) == "Done."
    assert run.waits_for is None
    assert len({step.version for step in run.steps() if step.kind == "model"}) == 2


def test_a_program_without_agents_resumes_it(agent: Agent, make: Make, url: str, shell: Shell) -> None:
    """The command line tells the reason, and its `resume` has the process that holds the run go on with it."""
    _, run = held(make, agent)
    assert "has changed since turn 0" in shell("show", "r", "--database", url)
    listed = shell("runs", "--database", url).splitlines()
    assert listed[0].endswith("WHY")
    assert "has changed since turn 0" in listed[1]
    accepted = f"accepted is that agent {agent.name!r} has changed since turn 0 of this run"
    assert shell("resume", "r", "--database", url) == f"Run r is running; {accepted}.\n"
    wait_until(lambda: run.status == "done")
    assert words(run) == "Done."


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command line."""
    return Shell(capsys)


def test_it_is_resumed_while_nobody_holds_it(agent: Agent, make: Make, url: str) -> None:
    """What was accepted while no program works counts for the next one."""
    swarm, _ = held(make, agent)
    swarm.close()
    with open_runs(url) as runs:
        assert "has changed since turn 0" in str(runs.list(Query())[0].waits_for)
        assert runs.resume("r").idle
    assert words(deploy(make, agent, "Two.").get("r")) == "Done."


def test_another_version_is_held_again(agent: Agent, make: Make, url: str) -> None:
    """Only the version is accepted that the run was held for; for a third one, and for a second change, it is held."""
    swarm, _ = held(make, agent)
    swarm.close()
    with open_runs(url) as runs:
        runs.resume("r")
    swarm = deploy(make, agent, "Three.", [call("pay")])
    run = swarm.get("r")
    wait_until(lambda: run.waits_for)
    run.resume()
    wait_until(run.requests)
    assert len(run.steps()) == 3 + 1
    swarm.close()
    swarm = deploy(make, agent, "Two.")
    run = swarm.get("r")
    run.approve()
    assert "since turn 1" in wait_until(lambda: run.waits_for)
    run.resume()
    assert words(run) == "Done."


def test_the_version_it_knows_goes_on(agent: Agent, make: Make) -> None:
    """Where the agent is what it was again, the run goes on unasked, and a later `resume` accepts nothing."""
    swarm, _ = held(make, agent)
    swarm.close()
    swarm = deploy(make, agent, "One.", [call("pay")])
    run = swarm.get("r")
    wait_until(run.requests)
    assert run.waits_for is None
    run.resume()
    swarm.close()
    swarm = deploy(make, agent, "Two.")
    run = swarm.get("r")
    run.approve()
    assert "since turn 1" in wait_until(lambda: run.waits_for)


def test_a_held_run_is_cancelled_and_resumed(agent: Agent, make: Make) -> None:
    """Resuming accepts the change, also if the run was cancelled meanwhile."""
    _, run = held(make, agent)
    run.cancel()
    assert (run.status, run.waits_for) == ("cancelled", None)
    run.resume()
    assert words(run) == "Done."


def test_a_failed_run_that_is_resumed(make: Make) -> None:
    """To resume a run that failed accepts no change that nobody was told of."""
    agent = Agent(name=unique(), instructions="One.", functions=[lambda: 1 / 0])
    agent.functions[0].__name__ = "divide"
    with pytest.raises(ZeroDivisionError):
        make(ScriptedModel([["divide"]]), changed_agents="hold").run(agent, user(), run_id="r")
    agent.functions[0] = lambda: "1"
    agent.functions[0].__name__ = "divide"
    swarm = deploy(make, agent, "Two.")
    run = swarm.get("r")
    run.resume()
    assert "since turn 0" in wait_until(lambda: run.waits_for)
    run.resume()
    assert words(run) == "Done."


def test_an_agent_that_was_not_heard_yet(make: Make) -> None:
    """A handoff to an agent that first speaks under the new code holds nothing, whatever else of it has changed."""
    second = Agent(name=unique("Second"), instructions="Second.")

    @tool(approval=True)
    def hand_over() -> Agent:
        return second

    first = Agent(name=unique("First"), instructions="First.", functions=[hand_over])
    swarm = make(ScriptedModel([["hand_over"]]), changed_agents="hold")
    run = swarm.start(first, user(), run_id="r")
    wait_until(run.requests)
    swarm.close()
    first.instructions = "Another first."
    run = deploy(make, second, "Another second.").get("r")
    run.approve()
    assert words(run) == "Done."


def test_a_fork_is_made_for_the_code_as_it_is(agent: Agent, make: Make) -> None:
    """A fork goes on without a further question: that is what it is made for. Later changes hold it, too."""
    swarm, run = held(make, agent)
    swarm.close()
    swarm = deploy(make, agent, "Two.", [call("pay")])
    fork = swarm.get("r").fork(1, run_id="fork")
    wait_until(fork.requests)
    assert run.waits_for is not None
    swarm.close()
    fork = deploy(make, agent, "Three.").get("fork")
    fork.approve()
    assert "since turn 1" in wait_until(lambda: fork.waits_for)


def test_released_from_memory_and_woken(agent: Agent, make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that left memory while it waited comes back in the same program, and nothing has changed."""
    monkeypatch.setattr(waiting, "COROUTINES", 0)
    swarm = make_anywhere(ScriptedModel([[call("pay")], "Done."]), changed_agents="hold")
    run = swarm.start(agent, user())
    wait_until(lambda: run.requests() and not here.current().local.executions)
    run.approve()
    assert words(run) == "Done."


def test_by_default_it_continues(agent: Agent, make: Make) -> None:
    """Where nothing else is said, a run goes on with the new version."""
    begin(make, agent)
    run = deploy(make, agent, "Two.", changed_agents="continue").get("r")
    run.approve()
    assert words(run) == "Done."


OWNER = "SELECT workflow_status.status, workflow_status.owner_xid,"


def test_what_never_changed_costs_nothing(make: Make) -> None:
    """A run whose agent is as it was makes the same statements under both policies."""

    def statements(policy: str) -> list[str]:
        agent, found, me = Agent(name=unique(), functions=[look]), [], threading.get_ident()
        swarm = make(ScriptedModel([["look"], ["look"], "Done."]), changed_agents=policy)
        swarm.runs()

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            # Whose the run is is asked again when the last answer is old: how often, the time decides.
            if threading.get_ident() == me and not statement.startswith(OWNER):
                found.append(statement)

        engine = here.current().store.engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", note)
        swarm.run(agent, user())
        sqlalchemy.event.remove(engine, "before_cursor_execute", note)
        swarm.close()
        return found

    def look() -> str:
        return "seen"

    assert statements("hold") == statements("continue") != []


ELSEWHERE = """
    import json, sys
    from durable_swarm import AgentChanged, DurableSwarm

    with DurableSwarm(database=sys.argv[1]) as swarm:
        try:
            swarm.get("r").result(30)
        except AgentChanged as error:
            print(json.dumps({"attributes": error.attributes, "text": str(error)}))
"""


def test_who_waits_elsewhere_is_told(agent: Agent, make: Make, url: str) -> None:
    """In another process than the one that holds the run, `result` raises the same error."""
    _, run = held(make, agent)
    with pytest.raises(AgentChanged) as caught:
        run.result(PATIENCE)
    found = Program(ELSEWHERE).run(url)
    assert (found["attributes"], found["text"]) == (caught.value.attributes, str(caught.value))
    run.resume()
    assert words(run) == "Done."
