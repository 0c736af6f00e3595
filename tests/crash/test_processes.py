"""Several processes on one database: the living are left alone, the dead are inherited."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, errors, step
from durable_swarm.testing import ScriptedModel
from tests.crash.boundaries import effect
from tests.crash.lives import Life, Lives, hear, say
from tests.crash.matrix import read_ledger
from tests.crash.scenarios import ask, scripted
from tests.support.patience import PATIENCE

RUN = "run-1"
QUESTION = [{"role": "user", "content": "Please."}]


def program(agent: str, *, waits: bool) -> tuple[Agent, ScriptedModel]:
    """Give an agent with two tools; if it `waits`, its second says so and goes on when it is told."""

    @step
    def first() -> str:
        effect("first")
        return "first done"

    def second() -> str:
        effect("second")
        if waits:
            say("in the second tool")
            hear()
        return "second done"

    script = [[ask("first"), ask("second")], f"{agent} is done."]
    return Agent(name=agent, functions=[first, second]), ScriptedModel(scripted(script))


def run_one(url: str, run_id: str, name: str, waits: bool) -> str:
    """A program that runs its agent once."""
    agent, model = program(name, waits=waits)
    with DurableSwarm(model, database=url) as swarm:
        return str(swarm.run(agent, QUESTION, run_id=run_id).messages[-1]["content"])


def attend(url: str, name: str) -> None:
    """A program that stays, and does what it is told: look for runs to take over, wait for a run, run its own."""
    agent, model = program(name, waits=False)
    swarm = DurableSwarm(model, database=url)
    while (order := hear()) != "end":
        verb, _, run_id = order.partition(" ")
        if verb == "recover":
            say([run.id for run in swarm.recover()])
        elif verb == "status":
            say(swarm.get(run_id).status)
        else:
            run = swarm.get(run_id) if verb == "result" else swarm.start(agent, QUESTION, run_id=run_id)
            say(run.result(timeout=PATIENCE).messages[-1]["content"])


def order(life: Life, what: str) -> Any:
    """Have a program that stays do something, and give what it says."""
    life.say(what)
    return life.hear()


def happened(ledger: Path) -> Counter[str]:
    """Count the effects."""
    return Counter(effect.label for effect in read_ledger(ledger, RUN))


def test_a_living_process_is_left_alone(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """A second process with the same agents takes nothing over from one that lives, however often it looks."""
    ledger = tmp_path / "ledger"
    living = lives.start(run_one, database_url, RUN, "Desk", True, ledger=ledger)
    living.hear()
    other = lives.start(attend, database_url, "Desk", ledger=ledger)
    assert [order(other, "recover") for _ in range(3)] == [[], [], []]
    assert order(other, f"status {RUN}") == "running"
    living.say("go on")
    assert living.end().value == "Desk is done."
    assert order(other, f"result {RUN}") == "Desk is done."
    assert happened(ledger) == {"model": 2, "first": 1, "second": 1}


def test_a_dead_process_is_inherited_at_once(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """A process takes over the run of one that died as soon as it looks, and repeats only the call in flight."""
    ledger = tmp_path / "ledger"
    other = lives.start(attend, database_url, "Desk", ledger=ledger)
    assert order(other, "recover") == []
    dying = lives.start(run_one, database_url, RUN, "Desk", True, ledger=ledger)
    dying.hear()
    assert dying.kill().killed
    assert order(other, "recover") == [RUN]
    assert order(other, f"result {RUN}") == "Desk is done."
    assert happened(ledger) == {"model": 2, "first": 1, "second": 2}


def test_a_first_look_tells_what_it_took_over(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """`recover()` as the first call of a new process returns the runs of the dead one."""
    ledger = tmp_path / "ledger"
    dying = lives.start(run_one, database_url, RUN, "Desk", True, ledger=ledger)
    dying.hear()
    assert dying.kill().killed
    other = lives.start(attend, database_url, "Desk", ledger=ledger)
    assert order(other, "recover") == [RUN]


def test_a_program_with_other_agents_strands_nothing(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """A dead program's run waits for it while a program with other agents lives on the same database."""
    ledger = tmp_path / "ledger"
    dying = lives.start(run_one, database_url, RUN, "Alpha", True, ledger=ledger)
    dying.hear()
    assert dying.kill().killed
    other = lives.start(attend, database_url, "Beta", ledger=ledger)
    assert order(other, "recover") == []
    assert order(other, "run run-2") == "Beta is done."
    assert order(other, f"status {RUN}") == "running"
    again = lives.live(run_one, database_url, RUN, "Alpha", False, ledger=ledger)
    assert again.value == "Alpha is done."
    assert "'Alpha'" in other.log
    assert order(other, "recover") == []


def start_often(url: str, run_id: str, text: str, times: int) -> list[str]:
    """A program that starts one run from many threads at once; gives each answer, or the conflict."""
    agent, model = program("Desk", waits=False)
    swarm = DurableSwarm(model, database=url)
    swarm.runs()
    say("ready")
    hear()

    def once(number: int) -> str:
        try:
            messages = [{"role": "user", "content": text}]
            if number % 2:
                return str(swarm.run(agent, messages, run_id=run_id).messages[-1]["content"])
            return str(swarm.start(agent, messages, run_id=run_id).result().messages[-1]["content"])
        except errors.RunConflict:
            return "conflict"

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(once, range(times)))


def start_from_four(lives: Lives, ledger: Path, url: str, texts: list[str]) -> list[list[str]]:
    """Start one run 25 times in each of four processes at the same moment."""
    starters = [lives.start(start_often, url, RUN, text, 25, ledger=ledger) for text in texts]
    for starter in starters:
        starter.hear()
    for starter in starters:
        starter.say("now")
    return [starter.end().value for starter in starters]


@pytest.mark.slow
def test_a_run_id_is_one_run(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """A hundred starts of one run id from four processes execute it once and get a hundred equal answers."""
    ledger = tmp_path / "ledger"
    answers = start_from_four(lives, ledger, database_url, ["Hi"] * 4)
    assert answers == [["Desk is done."] * 25] * 4
    assert happened(ledger) == {"model": 2, "first": 1, "second": 1}


@pytest.mark.slow
def test_a_run_id_belongs_to_one_question(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """Of simultaneous starts of one run id with different messages one wins, and the others get the conflict."""
    ledger = tmp_path / "ledger"
    texts = ["Hi", "Ho", "Hi", "Ho"]
    answers = start_from_four(lives, ledger, database_url, texts)
    won = "Hi" if answers[0][0] == "Desk is done." else "Ho"
    expected = [["Desk is done." if text == won else "conflict"] * 25 for text in texts]
    assert answers == expected
    assert happened(ledger) == {"model": 2, "first": 1, "second": 1}


def open_new(url: str, delay: float) -> list[str]:
    """A program that opens a database and looks at it."""
    time.sleep(delay)
    with DurableSwarm(database=url) as swarm:
        return [run.id for run in swarm.runs()]


@pytest.mark.slow
def test_many_processes_may_open_a_new_file(lives: Lives, tmp_path: Path) -> None:
    """Six processes that make and open one SQLite file at the same time all come in."""
    chance = random.Random(1)
    for number in range(8):
        url, ledger = f"sqlite:///{tmp_path}/{number}.sqlite", tmp_path / "ledger"
        opening = [lives.start(open_new, url, chance.uniform(0, 0.1), ledger=ledger) for _ in range(6)]
        assert [life.end().value for life in opening] == [[]] * 6


def ask_often(url: str) -> list[float]:
    """A program with five calls of a rated model; gives when they were made."""
    asked: list[float] = []

    def answer(request: dict[str, Any]) -> str:
        asked.append(time.time())
        return "Done."

    with DurableSwarm(ScriptedModel(answer), database=url, model_rates={"gpt-4o": (1, 0.1)}) as swarm:
        for _ in range(5):
            swarm.run(Agent(name="Asker"), QUESTION)
    return asked


def test_processes_share_the_rate_of_a_model(lives: Lives, tmp_path: Path, database_url: str) -> None:
    """However many processes ask a rated model, no call comes before its moment."""
    began = time.time()
    programs = [lives.start(ask_often, database_url, ledger=tmp_path / "ledger") for _ in range(3)]
    asked = sorted(moment for program in programs for moment in program.end().value)
    assert len(asked) == 15
    assert all(moment - began >= number * 0.1 - 0.002 for number, moment in enumerate(asked))
