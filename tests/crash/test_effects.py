"""The effect classes of tools: what becomes of a call whose process is killed at each point round its effect."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Run, current_call, tool
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.crash.ledger import read_lines, report
from tests.crash.lives import Lives
from tests.crash.matrix import LONG
from tests.support.patience import PATIENCE

RUN = "run-1"
QUESTION = [{"role": "user", "content": "Please."}]

POINTS = ("before the mark", "after the mark", "inside the body", "after the body", "after the record")
"""Where a life is killed; the second is the mark of a `once` tool, and no point of the others."""


VERDICTS = ("happened", "repeat", "reject")
ALL_CASES = [(point, verdict) for point in POINTS for verdict in VERDICTS]
CASES = [(point, "happened") for point in POINTS] + [("inside the body", verdict) for verdict in VERDICTS[1:]]


def die_at(point: str) -> Callable[[str], None]:
    """Give what ends this process when it comes to that point; once, since the next life is given none."""

    def at(here: str) -> None:
        if here == point:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    return at


def charging(url: str, effect: str, point: str, found: str | None, verdict: str | None) -> tuple[str, list[str]]:
    """Run an agent that charges a card, killed at `point`; gives the tool's text, and the kinds of requests opened.

    `found` is what the tool's check finds, or 'nothing'; `verdict` is how a person decides about an unknown outcome.
    """
    at, kinds = die_at(point), []

    def check(card: str) -> str | None:
        report("check", {"key": current_call().idempotency_key, "card": card})
        return None if found == "nothing" else found

    @tool(effect=effect, check=check if found is not None else None)  # type: ignore[call-overload]
    def charge(card: str) -> str:
        at("after the mark")
        report("charge", {"key": current_call().idempotency_key})
        at("inside the body")
        return f"charged {card}"

    def rest() -> str:
        at("after the record")
        return "rested"

    def asked(request: dict[str, Any]) -> list[Any]:
        at("before the mark")
        return [("charge", {"card": "c1"})]

    with DurableSwarm(ScriptedModel([asked, ["rest"], "Done."]), database=url) as swarm:
        watch_for_the_record(swarm, at)
        run = swarm.start(Agent(functions=[charge, rest]), QUESTION, run_id=RUN)
        kinds += decide(run, verdict)
        return str(run.result(PATIENCE).messages[1]["content"]), kinds


def watch_for_the_record(swarm: DurableSwarm, at: Callable[[str], None]) -> None:
    """Have the process come to `after the body` just before the call's outcome is recorded."""
    from durable_swarm.engine.execution import tool_call

    stamp = tool_call.ToolCallExecution.record

    async def record(self: Any) -> Any:
        made = await stamp(self)
        if self.made.call.tool == "charge":
            at("after the body")
        return made

    tool_call.ToolCallExecution.record = record  # type: ignore[method-assign]


def decide(run: Run, verdict: str | None) -> list[str]:
    """Decide about the run's requests until it has ended; gives their kinds."""
    kinds, end = [], time.monotonic() + 20
    while run.status not in ("done", "failed") and time.monotonic() < end:
        for request in run.requests():
            kinds.append(request.kind)
            if verdict == "happened":
                run.answer("charged by hand", request.id)
            elif verdict == "repeat":
                run.approve(request.id)
            else:
                run.reject("nobody knows", request.id)
        time.sleep(0.01)
    return kinds


def lived(lives: Lives, folder: Path, *args: Any) -> tuple[Any, Counter[str]]:
    """Live until killed at the point, live once more; gives what that life gave, and how often each thing happened."""
    url, ledger = f"sqlite:///{folder}/runs.sqlite", folder / "ledger"
    effect, point, found, verdict = args
    first = lives.live(charging, url, effect, point, found, verdict, ledger=ledger)
    assert first.killed, f"the life was not killed {point}"
    end = lives.live(charging, url, effect, "never", found, verdict, ledger=ledger)
    lines = read_lines(ledger)
    assert len({line["key"] for line in lines}) <= 1, "a call has one key in all lives"
    return end.value, Counter("check" if "card" in line else "charge" for line in lines)


@pytest.mark.parametrize("effect", ["read", "idempotent"] if LONG else ["idempotent"])
@pytest.mark.parametrize("point", [point for point in POINTS if point != "after the mark"])
def test_what_may_be_repeated(effect: str, point: str, lives: Lives, tmp_path: Path) -> None:
    """A call under way is made again, one that is recorded is not, and nobody is asked."""
    (text, kinds), times = lived(lives, tmp_path, effect, point, None, None)
    assert (text, kinds) == ("charged c1", [])
    assert times["charge"] == (2 if point in ("inside the body", "after the body") else 1)


@pytest.mark.parametrize(("point", "verdict"), ALL_CASES if LONG else CASES)
def test_once(point: str, verdict: str, lives: Lives, tmp_path: Path) -> None:
    """A `once` tool whose outcome is unknown is never entered again unseen: a person decides what becomes of it."""
    (text, kinds), times = lived(lives, tmp_path, "once", point, None, verdict)
    unknown = point in ("after the mark", "inside the body", "after the body")
    entered = 0 if point in ("before the mark", "after the mark") else 1
    assert kinds == (["unknown_outcome"] if unknown else [])
    if not unknown:
        assert (text, times["charge"]) == ("charged c1", 1)
    elif verdict == "happened":
        assert (text, times["charge"]) == ("charged by hand", entered)
    elif verdict == "repeat":
        assert (text, times["charge"]) == ("charged c1", entered + 1)
    else:
        assert (text, times["charge"]) == ("Error: this call failed: nobody knows", entered)


@pytest.mark.parametrize("found", ["charged, says the bank", "nothing"])
@pytest.mark.parametrize("point", POINTS if LONG else POINTS[2:4])
def test_once_with_a_check(point: str, found: str, lives: Lives, tmp_path: Path) -> None:
    """The tool's check gives the result of a call that happened, and has one made that did not; nobody is asked."""
    (text, kinds), times = lived(lives, tmp_path, "once", point, found, None)
    unknown = point in ("after the mark", "inside the body", "after the body")
    assert kinds == []
    assert times["check"] == unknown
    assert text == ("charged, says the bank" if unknown and found != "nothing" else "charged c1")
