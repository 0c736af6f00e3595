"""What a process knows of a run: the table of its states, and that nothing stays of a run that is over."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.processes import local_runs
from durable_swarm.engine.processes.local_runs import INTERRUPTED, Event, LocalRun, LocalRuns, State
from durable_swarm.engine.records.executions import EndedExecution
from durable_swarm.errors import UnknownAgent
from durable_swarm.loop import Start
from durable_swarm.types import Agent, Response

EVENTS: tuple[Event, ...] = get_args(Event)
STATES: tuple[State, ...] = get_args(State)
ALLOWED = {
    "elsewhere": {"taken": "taken", "begun": "running", "outage": "retrying", "held": "held", "interrupted": "stopped"},
    "taken": {
        "not_taken": "stopped",
        "begun": "running",
        "outage": "retrying",
        "held": "held",
        "interrupted": "stopped",
    },
    "running": {
        "begun": "running",
        "suspended": "suspended",
        "outage": "retrying",
        "held": "held",
        "left": "stopped",
        "interrupted": "stopped",
        "over": "elsewhere",
    },
    "suspended": {
        "taken": "taken",
        "begun": "running",
        "outage": "retrying",
        "held": "held",
        "offered": "elsewhere",
        "gone": "elsewhere",
    },
    "retrying": {
        "taken": "taken",
        "begun": "running",
        "outage": "retrying",
        "held": "held",
        "offered": "elsewhere",
        "gone": "elsewhere",
    },
    "held": {
        "taken": "taken",
        "begun": "running",
        "outage": "retrying",
        "held": "held",
        "lifted": "stopped",
        "offered": "elsewhere",
        "gone": "elsewhere",
    },
    "stopped": {
        "taken": "taken",
        "begun": "running",
        "outage": "retrying",
        "held": "held",
        "offered": "elsewhere",
        "gone": "elsewhere",
    },
}
"""Every allowed move by state and event, written down a second time; a run that is taken was stopped before."""


def execution(run_id: str = "r") -> Execution:
    """Return an execution of a run, as far as the registry looks at it."""
    swarm: Any = None
    return Execution(run_id, Start("", [], {}), swarm, run_id)


def held() -> UnknownAgent:
    """Return a reason for a hold."""
    return UnknownAgent("agent 'A' is not defined", agent="A")


@pytest.mark.parametrize(("state", "event"), list(product(STATES, EVENTS)))
def test_every_pair_of_state_and_event(state: State, event: Event) -> None:
    """An event leads where the table says; one that the state does not allow came too late, and changes nothing."""
    run = LocalRun(state, earlier="stopped")
    allowed = ALLOWED[state]
    run.move(event)
    assert run.state == allowed.get(event, state)


@given(st.lists(st.sampled_from(EVENTS)))
def test_what_was_not_taken_is_as_it_was(events: list[Event]) -> None:
    """From any state, a takeover that did not happen leaves the run in the state in which it was."""
    run = LocalRun()
    for event in events:
        run.move(event)
    before = run.state
    assume(before != "taken")
    run.move("taken")
    run.move("not_taken")
    assert run.state == before


ACTIONS = ("begin", "end", "lose", "left", "suspended", "interrupted", "retry", "hold", "take", "give_back", "lend")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2))))
def test_a_run_is_running_only_while_an_execution_is_here(actions: list[tuple[str, int]]) -> None:
    """Whatever happens to several executions of a run, in any order: one that is running has its execution here."""
    runs, executions = LocalRuns(), [execution() for _ in range(3)]
    for action, number in actions:
        run, last = executions[number], runs.executions.get("r")
        match action:
            case "begin":
                runs.begin(run)
            case "left" | "suspended" | "interrupted":
                runs.leave(run, action)
            case "end" | "lose":
                run.lost, run.response = action == "lose", Response() if action == "end" else None
                runs.leave(run)
            case "retry":
                runs.retry("r", "away")
            case "hold":
                runs.hold("r", held(), last)
            case "take":
                runs.take("r", None, was_paused=False)
            case "give_back":
                runs.give_back("r")
            case "lend":
                runs.lend("r", {"A": Agent(name="A")})
        known = runs.of("r")
        assert known.state != "running" or "r" in runs.executions
        assert (known.held is None) is (known.state != "held")
        assert ("r" in runs.in_state(*INTERRUPTED)) is known.is_interrupted


def test_an_earlier_execution_says_nothing_of_a_run_that_a_later_one_has() -> None:
    """Of two executions of a run in one process, the one that began last says what becomes of the run."""
    runs, first, second = LocalRuns(), execution(), execution()
    runs.begin(first)
    runs.begin(second)
    runs.leave(first)
    runs.hold("r", held(), first)
    assert (runs.of("r").state, runs.executions) == ("running", {"r": second})
    runs.hold("r", held(), second)
    runs.leave(second)
    assert (runs.of("r").state, runs.executions) == ("held", {})


def test_a_hold_that_was_lifted_before_its_execution_left_is_not_undone() -> None:
    """A run that is taken over while its held execution is about to leave stays taken."""
    runs, run = LocalRuns(), execution()
    runs.begin(run)
    runs.hold("r", held(), run)
    runs.move("r", "lifted")
    runs.take("r", None, was_paused=False)
    runs.leave(run)
    assert runs.of("r").state == "taken"


@pytest.mark.parametrize("lost", [False, True])
def test_nothing_is_kept_of_a_run_that_is_over(lost: bool) -> None:
    """A run that has ended here, or that another process has, leaves no entry, whatever it went through."""
    runs, run = LocalRuns(), execution()
    runs.retry("r", "away")
    runs.take("r", None, was_paused=False)
    assert runs.of("r").outage == "away"
    runs.begin(run)
    run.lost, run.response = lost, None if lost else Response()
    runs.leave(run)
    assert (runs._known, runs.executions) == ({}, {})


def test_an_outage_is_not_the_reason_for_the_wait_of_a_suspended_run() -> None:
    """A run that was tried again, and then waits for an answer, no longer waits for the database."""
    runs, run = LocalRuns(), execution()
    runs.retry("r", "away")
    runs.begin(run)
    runs.leave(run, "suspended")
    assert (runs.of("r").state, runs.of("r").outage) == ("suspended", None)


def test_an_execution_gets_what_was_kept_for_it() -> None:
    """What ended with a takeover, the agents lent to a run, and the threads that wait for it, go to one execution."""
    runs, life = LocalRuns(), EndedExecution("other", 0, "died")
    runs.take("r", life, was_paused=True)
    runs.take("r", None, was_paused=False)
    runs.lend("r", {"A": Agent(name="A")})
    with runs.executor_in_this_thread("r") as home:
        run = execution()
        runs.begin(run)
        assert (run.before, run.was_paused, run.caller_threads, list(run.cast)) == (life, True, [home], ["A"])
    later = execution()
    runs.begin(later)
    assert (later.before, later.was_paused, later.caller_threads, later.cast) == (None, False, [], {})


def test_a_run_is_left_to_others_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for which a run is left to others doubles up to a limit, and ends when what was lacking may be here."""
    monkeypatch.setattr(local_runs, "LONGEST", 2.5 * local_runs.DECLINE)
    runs, pauses = LocalRuns(), []
    for _ in range(4):
        runs.decline("r")
        pauses.append(runs.of("r").pause / local_runs.DECLINE)
    assert (pauses, runs.of("r").is_declined) == ([1, 2, 2.5, 2.5], True)
    runs.decline_none()
    assert (runs.of("r").is_declined, runs._known) == (False, {})
