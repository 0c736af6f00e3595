"""People: processes without agents that queue runs, decide requests, say things, cancel, resume and read events."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

from durable_swarm import DurableSwarm, Run
from durable_swarm.errors import AlreadyAnswered, DurableSwarmError, InvalidAnswer, RequestExpired, RunNotFound
from faults.storms import ledger
from faults.storms.lives import Task

CALM = "calm"
"""The file that says that the storm is over: from now on nobody cancels, and everything is resumed."""
TICK = 0.4
MANY = 10_000


def _named(error: BaseException) -> str:
    kind = type(error)
    return f"{kind.__module__}.{kind.__name__}: {error}"[:400]


def person(number: int, url: str, tasks: list[Task], gap: float, seed: int) -> None:
    """Live through a storm as one of several people; the first one queues the runs that are the workers' alone."""
    chance = random.Random(seed)
    swarm = DurableSwarm(database=url)
    threading.Thread(target=_read_all, args=(number, swarm, [task.id for task in tasks]), daemon=True).start()
    mine = [task for task in tasks if not task.way] if number == 0 else []
    due = time.monotonic()
    while True:
        if mine and time.monotonic() >= due:
            due += gap
            if _tried(number, "enqueue", mine[0].id, lambda: _enqueue(swarm, mine[0])):
                mine.pop(0)
        _tried(number, "look round", "", lambda: _look_round(number, swarm, tasks, chance))
        time.sleep(TICK * (0.5 + chance.random()))


def _tried(who: int, what: str, run: str, act: Any) -> bool:
    """Do something; note an error that is none of the package's own. Return True if it was done."""
    try:
        act()
    except Exception as error:
        ours = isinstance(error, DurableSwarmError)
        ledger.write("error", who=f"person {who}, {what}", run=run, error=_named(error), ours=ours)
        return False
    return True


def _enqueue(swarm: DurableSwarm, task: Task) -> None:
    swarm.enqueue("Triage", [*task.messages], run_id=task.id)


def _look_round(who: int, swarm: DurableSwarm, tasks: list[Task], chance: random.Random) -> None:
    calm = (ledger.folder() / CALM).exists()
    for request in swarm.requests():
        if calm or chance.random() < 0.4:
            _tried(who, "decide", request.run_id, lambda request=request: _decide(who, swarm, request, chance))
    failed, cancelled = swarm.runs(status="failed", limit=MANY), swarm.runs(status="cancelled", limit=MANY)
    for run in failed:
        _tried(who, "read a failure", run.id, lambda run=run: _note_failure(run))
    for was, run in [*(("failed", run) for run in failed), *(("cancelled", run) for run in cancelled)]:
        if calm or chance.random() < 0.5:
            ledger.write("resume", run=run.id, was=was)
            _tried(who, "resume", run.id, run.resume)
    if not calm:
        if chance.random() < 0.1:
            _cancel(who, swarm, chance.choice(tasks))
        if chance.random() < 0.2:
            _say(who, swarm, chance.choice(tasks), chance)


def _note_failure(run: Run) -> None:
    try:
        run.result(0.0)
    except TimeoutError:
        return
    except DurableSwarmError as error:
        kind = getattr(error, "error_type", None) or type(error).__name__
        ledger.write("failed", run=run.id, error=kind, text=(getattr(error, "error_message", None) or str(error))[:300])


def _decide(who: int, swarm: DurableSwarm, request: Any, chance: random.Random) -> None:
    """Decide about a request in some way, and note before and after what was decided."""
    by = f"person {who}"
    choice: dict[str, Any]
    if request.kind == "question":
        choice = {"verdict": "answered", "value": chance.choice([*(request.choices or []), "mauve"])}
    elif request.kind == "approval":
        choice = chance.choice(
            [
                {"verdict": "approved"},
                {"verdict": "approved", "arguments": {"amount": chance.randint(1, 99)}},
                {"verdict": "rejected"},
            ]
        )
    else:
        choice = chance.choice(
            [{"verdict": "approved"}, {"verdict": "answered", "value": "it was paid"}, {"verdict": "rejected"}]
        )
    ledger.write("deciding", run=request.run_id, request=request.id, by=by, **choice)
    try:
        match choice["verdict"]:
            case "answered":
                swarm.answer(choice["value"], request.id, by=by)
            case "approved":
                swarm.approve(request.id, arguments=choice.get("arguments"), by=by)
            case _:
                swarm.reject("no", request.id, by=by)
    except (AlreadyAnswered, RequestExpired, InvalidAnswer) as error:
        ledger.write("not decided", run=request.run_id, request=request.id, by=by, error=type(error).__name__)
        return
    ledger.write("decided", run=request.run_id, request=request.id, by=by, **choice)


def _cancel(who: int, swarm: DurableSwarm, task: Task) -> None:
    try:
        run = swarm.get(task.id)
    except RunNotFound:
        return
    ledger.write("cancel", run=run.id)
    _tried(who, "cancel", run.id, run.cancel)


def _say(who: int, swarm: DurableSwarm, task: Task, chance: random.Random) -> None:
    try:
        run = swarm.get(task.id)
    except RunNotFound:
        return
    text = f"said {chance.getrandbits(40):x}"
    ledger.write("saying", run=run.id, text=text)
    try:
        run.say(text)
    except DurableSwarmError as error:
        ledger.write("not said", run=run.id, text=text, error=_named(error))
        return
    except Exception as error:
        ledger.write("error", who=f"person {who}, say", run=run.id, error=_named(error), ours=False)
        return
    ledger.write("said", run=run.id, text=text)


def told_file(number: int, run_id: str) -> Path:
    """Return the file of what a person was told of a run."""
    return ledger.folder() / f"told-{number}-{run_id}"


def _read_all(number: int, swarm: DurableSwarm, ids: list[str]) -> None:
    """Follow one run after the other, beginning elsewhere than the others, and write down each event."""
    for run_id in [*ids[number::3], *ids]:
        last, over = 0, False
        while not over:
            try:
                run = swarm.get(run_id)
            except DurableSwarmError:  # It is not started yet, or the database is away.
                time.sleep(0.3)
                continue
            try:
                last, over = _follow(run, last, told_file(number, run_id))
            except Exception as error:
                ours = isinstance(error, DurableSwarmError)
                ledger.write("error", who=f"person {number}, events", run=run_id, error=_named(error), ours=ours)
                last = max([0, *(event["seq"] for event in ledger.read(told_file(number, run_id)))])
                time.sleep(0.3)


def _follow(run: Run, last: int, file: Path) -> tuple[int, bool]:
    """Write the events of a run behind `last` to a file; return the number of the last, and True if the run is done."""
    kept = ledger.read(file)
    last = max([last, *(event["seq"] for event in kept)])
    over = bool(kept) and kept[-1]["type"] == "run.finished"
    with file.open("a", encoding="utf-8") as told:
        for event in () if over else run.events(after=last):
            told.write(json.dumps({"seq": event.seq, "type": event.type, "data": event.data}) + "\n")
            told.flush()
            last, over = event.seq, event.type == "run.finished"
    time.sleep(0.0 if over else 0.3)
    return last, over
