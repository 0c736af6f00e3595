"""Sessions whose processes are killed: no message is lost, none is answered twice, and none between two others."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.engine.processes.sessions import SessionTurns
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.crash.boundaries import KillPoint
from tests.crash.boundaries import effect
from tests.crash.lives import Lives, hear, say
from tests.crash.matrix import LONG, both_sides, read_ledger
from tests.support.patience import PATIENCE

SENDERS = 10
"""The number of messages that each of two processes sends at once."""


def reply(request: Any) -> Any:
    """Work at each message of a user, and answer it once that is done."""
    effect("model")
    last = request["messages"][-1]
    return [("work", {"what": last["content"]})] if last["role"] == "user" else f"re: {last['content']}"


def work(what: str) -> str:
    """Work."""
    return note(what)


@step
def note(what: str) -> str:
    effect(what)
    return what


def program(url: str) -> tuple[DurableSwarm, Agent]:
    return DurableSwarm(ScriptedModel(reply), database=url), Agent(name="SessionWorker", functions=[work])


def texts(session: Any) -> list[str]:
    return [message["content"] for message in session.messages() if message["role"] in ("user", "assistant")]


def talk(url: str, name: str) -> list[str]:
    """A program that sends three messages, of which the second waits for its turn."""
    swarm, agent = program(url)
    with swarm:
        session = swarm.session(name, agent, context_variables={"seen": 0})
        runs = [session.start(text, run_id=f"run-{name}-{text}") for text in ("one", "two")]
        session.run("three", run_id=f"run-{name}-three")
        assert [run.result(timeout=PATIENCE).messages[-1]["content"] for run in runs] == ["re: one", "re: two"]
        return texts(session)


EXPECTED = [text for what in ("one", "two", "three") for text in (what, None, f"re: {what}")]


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 300)
def test_a_session_survives_a_kill_at_each_of_its_writes(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """Killed before or after any write of a session, the program started again has the whole conversation, once."""
    undisturbed = lives.live(talk, database_url, "undisturbed", ledger=tmp_path / "undisturbed")
    assert undisturbed.value == EXPECTED
    points = [place for number in range(1, len(undisturbed.passed) + 1) for place in both_sides(number)]
    if not LONG:
        ours = [number for number, what in enumerate(undisturbed.passed, 1) if "session" in what]
        points = [both_sides(number)[at % 2] for at, number in enumerate(ours[::2])]
    problems = [problem for at in points for problem in killed_at(lives, tmp_path, database_url, at)]
    assert len(points) >= (20 if LONG else 3)
    assert not problems


def killed_at(lives: Lives, folder: Path, url: str, at: KillPoint) -> list[str]:
    """Give what is wrong after a kill at a place: nothing, if all is well."""
    name = f"{at.number}-{at.side}"
    ledger = folder / name
    lives.live(talk, url, name, ledger=ledger, at=at)
    end = lives.live(talk, url, name, ledger=ledger)
    problems = [] if end.value == EXPECTED else [f"{name}: {end.value}"]
    happened = Counter(effect.label for effect in read_ledger(ledger, "run-"))
    # A call that was in flight is made once more; nothing is made a third time.
    often = [f"{name}: {label} {times} times" for label, times in happened.items() if label != "model" and times > 2]
    return problems + often


def send_all(url: str, who: str) -> list[str]:
    """A program that sends its messages from a thread each."""
    swarm, agent = program(url)
    with swarm, ThreadPoolExecutor(SENDERS) as pool:
        session = swarm.session("crowd", agent)
        say("ready")
        hear()
        answers = list(
            pool.map(lambda number: session.run(f"{who}{number}", run_id=f"run-{who}{number}"), range(SENDERS))
        )
        return [str(answer.messages[-1]["content"]) for answer in answers]


def test_senders_of_two_processes_are_answered_one_after_the_other(
    lives: Lives, tmp_path: Path, database_url: str
) -> None:
    """Twenty senders of two processes at once: one order, each answered, no message between another and its answer."""
    ledger = tmp_path / "ledger"
    both = [lives.start(send_all, database_url, who, ledger=ledger) for who in ("a", "b")]
    for life in both:
        life.hear()
    for life in both:
        life.say("go")
    sent = [f"{who}{number}" for who in ("a", "b") for number in range(SENDERS)]
    assert [text for life in both for text in life.end().value] == [f"re: {text}" for text in sent]
    swarm, _ = program(database_url)
    with swarm:
        found = texts(swarm.session("crowd"))
    assert sorted(found[::3]) == sorted(sent)
    assert found[2::3] == [f"re: {text}" for text in found[::3]]


def die_between(url: str) -> None:
    """A program that dies when a run has ended, before the next one begins."""
    both = threading.Event()  # The first run ends when both are started.
    swarm = DurableSwarm(ScriptedModel(lambda request: both.wait(60) and reply(request)), database=url)
    agent = Agent(name="SessionWorker", functions=[work])
    advance, ended = SessionTurns.advance, []

    def die(turns: SessionTurns, session: str) -> None:
        state = turns._process.store.sessions.look(session)
        if state is not None and state.ahead is not None and state.ahead.over:
            os.kill(os.getpid(), signal.SIGKILL)
        advance(turns, session)

    SessionTurns.advance = die  # type: ignore[method-assign]
    session = swarm.session("between", agent)
    ended += [session.start(text, run_id=f"run-{text}") for text in ("one", "two")]
    both.set()
    hear()


def wait_for_second(url: str) -> str:
    """A program that waits for the run that was not begun."""
    swarm, agent = program(url)
    with swarm:
        assert agent.name == "SessionWorker"
        return str(swarm.get("run-two").result(timeout=PATIENCE).messages[-1]["content"])


def test_the_next_run_begins_though_nobody_passed_the_turn(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """Killed between the end of a run and the beginning of the next, the next one begins in another process."""
    ledger = tmp_path / "ledger"
    assert lives.start(die_between, database_url, ledger=ledger).end().killed
    assert lives.live(wait_for_second, database_url, ledger=ledger).value == "re: two"
    assert Counter(effect.label for effect in read_ledger(ledger, "run-"))["one"] == 1
