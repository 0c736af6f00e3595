"""Sessions: which run a call means that names none, in a program that is started again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, tool
from durable_swarm.engine.api import programs
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import unique


class Start:
    """One start of a program: a swarm, whether it continues an earlier start, and what its model was asked."""

    def __init__(
        self, database: str, client: ScriptedModel | None = None, agent: Agent | None = None, **options: Any
    ) -> None:
        self.continues = False
        self.model = client or ScriptedModel(lambda request: f"Answer to {request['messages'][-1]['content']}")
        self.swarm = DurableSwarm(self.model, database=database, **options)
        self.program = programs.ScriptRun("program", "program.py", ["--fast"], self._note)
        self.agent = agent or Agent(name="Receptionist")

    def _note(self) -> None:
        self.continues = True

    def ask(self, text: str, **options: Any) -> str:
        """Ask without naming the run, and give its id."""
        run_id = self.swarm.run(self.agent, [{"role": "user", "content": text}], **options).run_id
        assert run_id is not None
        return run_id


@contextmanager
def started(database: str, **options: Any) -> Iterator[Start]:
    """Start the program; what the block leaves is as after a kill, unless it calls `end`."""
    start = Start(database, **options)
    programs.begin(start.program)
    try:
        with start.swarm:
            yield start
    finally:
        programs.begin(None)


def test_the_same_calls_find_the_same_runs(database_url: str) -> None:
    """After an interruption the same calls have the same ids, in whatever order, and the model is not asked again."""
    with started(database_url) as first:
        ids = [first.ask("one"), first.ask("two"), first.ask("one")]
        assert not first.continues
    assert len(set(ids)) == 3
    assert all(run_id.startswith("program-") for run_id in ids)
    with started(database_url) as second:
        assert [second.ask("two"), second.ask("one"), second.ask("one")] == [ids[1], ids[0], ids[2]]
        assert second.continues
        assert second.model.calls == []


def test_a_call_that_asks_something_else_is_another_run(database_url: str) -> None:
    """Other messages, context variables or settings make another run, so no call is given the result of another."""
    with started(database_url) as first:
        run_id = first.ask("one", context_variables={"user": "Ann"})
    with started(database_url) as second:
        others = [
            second.ask("one", context_variables={"user": "Bob"}),
            second.ask("one"),
            second.ask("two", context_variables={"user": "Ann"}),
            second.ask("one", context_variables={"user": "Ann"}, model_override="other"),
        ]
        assert run_id not in others
        assert len(set(others)) == 4
        assert second.ask("one", context_variables={"user": "Ann"}, debug=False) == run_id


def test_the_end_of_a_program_ends_its_session(database_url: str) -> None:
    """A program that ended is not continued, whether its process is still there or not."""
    with started(database_url) as first:
        run_id = first.ask("one")
        first.program.end(failed=False)
    with started(database_url) as second:
        assert second.ask("one") != run_id
    second.program.end(failed=True)
    with started(database_url) as third:
        third.ask("one")
        assert not third.continues


def test_a_run_with_a_name_keeps_it(tmp_path: Path) -> None:
    """`run_id` goes before the id that a call would get by itself."""
    with started(f"sqlite:///{tmp_path}/runs.sqlite") as start:
        assert start.ask("one", run_id="mine") == "mine"
    assert programs.default_id(lambda: pytest.fail("opened"), {}) is None


def test_a_worker_with_a_name_of_its_own_goes_on(database_url: str) -> None:
    """A process that always has the same `worker_id` knows its earlier life's session as its own."""
    with started(database_url, worker_id="worker-1") as first:
        run_id = first.ask("one")
    with started(database_url, worker_id="worker-1") as second:
        assert second.ask("one") == run_id


@pytest.mark.parametrize("resumed", [True, False])
def test_a_failed_session_goes_on_once_it_is_resumed(database_url: str, resumed: bool) -> None:
    """A program that ended because a run failed is continued if that run was resumed, and else begins afresh."""
    agent, replies = Agent(name=unique()), [["refuse"], "open"]

    def refuse() -> str:
        raise ValueError("closed")

    with started(database_url, client=ScriptedModel(replies), agent=agent) as first:
        agent.functions.append(refuse)
        with pytest.raises(ValueError, match="closed"):
            first.ask("one")
        failed = first.program.end(failed=True)
    assert failed is not None
    if resumed:
        with open_runs(database_url) as runs:
            runs.resume(failed)
    agent.functions[0] = tool(name="refuse")(lambda: "mended")
    with started(database_url, client=ScriptedModel(replies), agent=agent) as second:
        assert (second.ask("one") == failed, second.continues) == (resumed, resumed)
