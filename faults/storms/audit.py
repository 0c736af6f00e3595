"""The auditor: what the ledger, the people and the records say must fit together, for every run of a storm."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from durable_swarm import DurableSwarm, Run
from durable_swarm.testing import ProviderError, check_request
from faults.storms import ledger
from faults.storms.effects import NOT_YET
from faults.storms.ledger import Entry
from faults.storms.lives import Task
from tests.crash.following import differences, texts_of

HURRY = 60.0
"""Seconds after its wake in which a process may go on with a call that it was about to make."""
ENDING = ("kill", "stop", "term", "int")
ALL = 10_000
GIVEN_UP = "was given up: tool"
PROGRESS = {"model", "enter", "leave", "decided", "result", "closing", "program done"}
MARKED = {"look", "note", "fetch", "pay", "nap"}
"""Tools whose text is made of the marks of their executions."""

Call = tuple[str, str]
"""The id of a call in a run, and the part of the call."""


@dataclass
class _Past:
    """What the ledger has told of a run so far: when calls and turns were seen to be finished, and what they gave."""

    finished: dict[Call, float] = field(default_factory=dict)
    turns: dict[int, float] = field(default_factory=dict)
    entered: dict[Call, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    known: dict[Any, Any] = field(default_factory=dict)


def standing(swarm: DurableSwarm, ids: Sequence[str]) -> list[str]:
    """Return the runs that are not done, child runs and those that nobody has started included."""
    known = [run.id for run in swarm.runs(limit=ALL)]
    done = {run.id for run in swarm.runs(status="done", limit=ALL)}
    return [run_id for run_id in dict.fromkeys([*ids, *known]) if run_id not in done]


def last_progress(folder: Path) -> float:
    """Return when something last happened to a run: a model or tool call, a decision, a result."""
    moments = [line["at"] for line in ledger.read(folder / "ledger") if line["what"] in PROGRESS]
    return max(moments, default=0.0)


def accounts(swarm: DurableSwarm, left: Sequence[str]) -> Iterator[str]:
    """Say of each run that is not done how it is."""
    known = {run.id: run for run in swarm.runs(limit=ALL)}
    for run_id in left:
        if (run := known.get(run_id)) is None:
            yield f"{run_id} was never started"
            continue
        steps = "; ".join(f"{step.name} {step.status} x{step.attempts}" for step in run.steps()[-3:])
        asks = [request.kind for request in run.requests()]
        yield f"{run_id} is {run.status}, waits for {run.waits_for!r}, requests {asks}, last steps: {steps}"


class Auditor:
    """Judge a storm that is over; `left` are the runs that have not ended, which are judged no further."""

    def __init__(self, swarm: DurableSwarm, folder: Path, tasks: Sequence[Task], left: Sequence[str]) -> None:
        self._folder = folder
        self._tasks = {task.id: task for task in tasks}
        self._lines = ledger.read(folder / "ledger")
        self._of: dict[str, list[Entry]] = defaultdict(list)
        for line in self._lines:
            if "run" in line:
                self._of[line["run"]].append(line)
        self._runs = [run for run in swarm.runs(limit=ALL) if run.id not in left]
        self._naps, self._struck = self._faults()
        self._outages = [line["at"] for line in self._lines if line.get("fault") in ("cut", "restart")]
        self.figures: Counter[str] = Counter()

    def _faults(self) -> tuple[dict[int, list[tuple[float, float]]], dict[int, list[float]]]:
        """Return when each process stood still, and when something was done to it."""
        naps: dict[int, list[tuple[float, float]]] = defaultdict(list)
        struck: dict[int, list[float]] = defaultdict(list)
        for line in self._lines:
            if line["what"] == "fault" and line["fault"] in ENDING:
                struck[line["victim"]].append(line["at"])
                if line["fault"] == "stop":
                    naps[line["victim"]].append((line["at"], inf))
            elif line["what"] == "closing":
                struck[line["pid"]].append(line["at"])
            elif line["what"] == "wake":
                fell, _ = naps[line["victim"]].pop()
                naps[line["victim"]].append((fell, line["at"]))
        return naps, struck

    def wrong(self) -> list[str]:
        """Return an account of each violation."""
        found = [*self._failures(), *self._errors()]
        for run_id, lines in self._of.items():
            found += [f"{account}\n{self._story(run_id)}" for account in self._effects(run_id, lines)]
        for run in self._runs:
            found += [f"{account}\n{self._story(run.id)}" for account in self._records(run)]
        return found

    def _story(self, run_id: str) -> str:
        """Tell what happened to a run, and what was done to the processes that had it."""
        pids = {line["pid"] for line in self._of[run_id]}
        began = self._lines[0]["at"]
        told = []
        for line in self._lines:
            if line.get("run") == run_id or line.get("victim") in pids or line.get("fault") in ("cut", "restart"):
                more = {
                    key: value
                    for key, value in line.items()
                    if key not in ("what", "pid", "at", "run", "said", "heard")
                }
                told.append(f"      {line['at'] - began:7.2f} {line['pid']} {line['what']} {more}")
        return "\n".join(told[-60:])

    def _failures(self) -> Iterator[str]:
        """Runs that failed though nothing was wrong with them."""
        seen = set()
        for line in self._lines:
            if line["what"] != "failed" or line["text"] == NOT_YET or (line["run"], line["text"]) in seen:
                continue
            seen.add((line["run"], line["text"]))
            if GIVEN_UP in line["text"] and sum(map(len, self._struck.values())) >= 3:
                self.figures["calls given up after several deaths"] += 1
            elif NOT_YET not in line["text"]:
                yield f"failed: {line['run']}: {line['error']}: {line['text']}\n{self._story(line['run'])}"

    def _errors(self) -> Iterator[str]:
        """Errors that no caller must get: raw ones, and any from who waits for a run."""
        seen, waiting = set(), set()
        for line in self._lines:
            if line["what"] == "waits":
                waiting.add((line["pid"], line["run"]))
            if line["what"] != "error":
                continue
            # Who begins while the database is away is refused; who waits already, waits.
            waits = (line["pid"], line["run"]) in waiting or line["who"].endswith("events")
            if line["ours"] and not waits and self._outages:
                self.figures["calls that were refused in an outage"] += 1
                continue
            account = f"error: {line['who']}: {line['error']}"
            if account not in seen:
                seen.add(account)
                yield f"{account} ({line['run']})"

    def _effects(self, run_id: str, lines: list[Entry]) -> Iterator[str]:
        """What the ledger alone tells: repeated steps, and records that changed."""
        past = _Past()
        for line in lines:
            if line["what"] == "model":
                yield from self._changed(run_id, line, past.known)
                yield from self._asked(run_id, line, past)
            elif line["what"] == "enter":
                yield from self._entered(run_id, line, past, lines)

    def _asked(self, run_id: str, line: Entry, past: _Past) -> Iterator[str]:
        """A model call: everything before it in its history is finished."""
        self.figures["model calls"] += 1
        later = [at for turn, at in past.turns.items() if turn > line["turn"]]
        if later and not self._was_late(line, min(later)):
            yield f"repeated: {run_id}: model call {line['turn']}, finished before"
        past.turns.setdefault(line["turn"], line["at"])
        for call in line["heard"]:
            for part in ("", "first", "second"):
                past.finished.setdefault((call, part), line["at"])

    def _entered(self, run_id: str, line: Entry, past: _Past, lines: list[Entry]) -> Iterator[str]:
        """A call, or a step in one: not finished before, and begun before only if something came between."""
        self.figures["tool calls"] += 1
        call = (line["call"], line["part"])
        if line["part"] == "second":
            past.finished.setdefault((line["call"], "first"), line["at"])
        if call in past.finished and not self._was_late(line, past.finished[call]):
            yield f"repeated: {run_id}: {call}, finished before"
        elif past.entered[call]:
            self.figures["calls in flight made again"] += 1
            # A call that waits may leave memory and be entered again when it is woken.
            if line["tool"] != "nap" and not self._has_reason(lines, past.entered[call], line):
                yield f"repeated: {run_id}: {call} without a reason"
        past.entered[call].append(line)

    def _changed(self, run_id: str, line: Entry, known: dict[Any, Any]) -> Iterator[str]:
        for key, value in [*enumerate(line["said"]), *line["heard"].items()]:
            if known.setdefault(key, value) != value:
                yield f"changed: {run_id}: {key!r} was {known[key]!r} and is {value!r}"

    def _was_late(self, line: Entry, finished: float) -> bool:
        """Return True if the process was stopped just before it began what others then finished."""
        return any(
            fell <= finished and fell - 1 <= line["at"] <= woke + HURRY for fell, woke in self._naps[line["pid"]]
        )

    def _has_reason(self, lines: list[Entry], before: list[Entry], again: Entry) -> bool:
        """Return True if something happened to an earlier execution of a call, to its run or to the database."""
        first = before[0]["at"]
        acts = {"raise", "cancel", "resume"}
        if (run_id := str(again["run"])).startswith("sub-"):
            lines = [*lines, *self._of[run_id.removeprefix("sub-").partition("-")[0]]]  # It goes with its parent.
        if any(line["what"] in acts and first - 5 <= line["at"] <= again["at"] for line in lines):
            return True
        if any(first - 5 <= at <= again["at"] for at in self._outages):
            return True
        return any(at <= again["at"] for line in before for at in self._struck[line["pid"]]) or self._was_late(
            again, first
        )

    def _records(self, run: Run) -> Iterator[str]:
        """What the records of a run that is done tell."""
        messages = run.messages()
        told = [{"seq": event.seq, "type": event.type, "data": event.data} for event in run.events()]
        yield from self._transcript(run, messages)
        yield from self._decisions(run, messages)
        yield from self._telling("a late reader", told, messages)
        for number in range(3):
            seen = ledger.read(self._folder / f"told-{number}-{run.id}")
            yield from (f"events: {run.id}: {text}" for text in differences(f"person {number}", seen, told))
            if [event["seq"] for event in seen] != list(range(1, len(seen) + 1)):
                yield f"events: {run.id}: person {number} got the numbers {[event['seq'] for event in seen]}"
        self.figures["events"] += len(told)

    def _transcript(self, run: Run, messages: list[dict[str, Any]]) -> Iterator[str]:
        try:
            check_request({"model": "m", "messages": [{"role": "user", "content": "x"}, *self._plain(messages)]})
        except ProviderError as error:
            yield f"transcript: {run.id}: {error}"
        left = {(line["call"], line["mark"]) for line in self._of[run.id] if line["what"] == "leave"}
        names = {call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls") or ()}
        for message in messages:
            if message["role"] == "tool" and names[message["tool_call_id"]] in MARKED:
                call, text = message["tool_call_id"], message["content"]
                if names[call] == "pay" and ("it was paid" in text or "no" in text.split()):
                    continue
                if not all((call, mark) in left for mark in text.split()):
                    yield f"transcript: {run.id}: {call} has {text!r}, which no execution returned"
        contents = [message["content"] for message in messages if message["role"] == "user"]
        for line in self._of[run.id]:
            if line["what"] == "said" and contents.count(line["text"]) != 1:
                yield f"said: {run.id}: {line['text']!r} stands {contents.count(line['text'])} times in the transcript"
            if line["what"] == "saying" and contents.count(line["text"]) > 1:
                yield f"said: {run.id}: {line['text']!r} stands more than once in the transcript"
            if line["what"] == "result" and line["text"] != messages[-1]["content"]:
                recorded = messages[-1]["content"]
                yield f"transcript: {run.id}: a caller got {line['text']!r}, recorded is {recorded!r}"

    def _plain(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages as they are sent: without who speaks, and without what is None."""
        hidden = ("sender", "tool_name")
        return [
            {
                key: value
                for key, value in message.items()
                if key not in hidden and (value is not None or key == "content")
            }
            for message in messages
        ]

    def _decisions(self, run: Run, messages: list[dict[str, Any]]) -> Iterator[str]:
        requests = run.requests(all=True)
        texts = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
        for request in requests:
            tried = [line for line in self._of[run.id] if line.get("request") == request.id]
            done = [line for line in tried if line["what"] == "decided"]
            made = request.decision
            wanted = done or [line for line in tried if line["what"] == "deciding"]
            if len(done) > 1:
                yield f"decision: {request.id} was decided {len(done)} times"
            if done and made is None:
                yield f"decision: {request.id} was decided and is {request.status}"
            if made is None or made.verdict == "expired":
                continue
            self.figures["decisions"] += 1
            if not any(self._fits(line, made, request.answered_by) for line in wanted):
                yield f"decision: {request.id} is recorded as {made} by {request.answered_by}, decided was {wanted}"
            if request.kind == "question" and texts[request.call_id] != f"answer {made.value}":
                yield f"decision: {request.id} was answered {made.value!r}, the tool got {texts[request.call_id]!r}"
        yield from self._executed(run, requests)

    def _fits(self, line: Entry, made: Any, by: str | None) -> bool:
        same = (line["verdict"], line["by"]) == (made.verdict, by)
        return same and line.get("arguments") == made.arguments and line.get("value") == made.value

    def _executed(self, run: Run, requests: Sequence[Any]) -> Iterator[str]:
        """Approved calls were executed as approved, rejected ones not at all, `once` tools as often as was agreed."""
        entered = [line for line in self._of[run.id] if line["what"] == "enter"]
        for line in entered:
            if line["tool"] == "refund":
                agreed = [
                    (request.decision.arguments or request.arguments)["amount"]
                    for request in requests
                    if request.call_id == line["call"] and request.decision and request.decision.verdict == "approved"
                ]
                if line["amount"] not in agreed:
                    yield f"decision: {run.id}: {line['call']} refunded {line['amount']}, agreed was {agreed}"
        for call, times in Counter(line["call"] for line in entered if line["tool"] == "pay").items():
            agreed_to = [
                request
                for request in requests
                if (request.call_id, request.kind) == (call, "unknown_outcome")
                and request.decision
                and request.decision.verdict == "approved"
            ]
            self.figures["once calls"] += 1
            if times > 1 + len(agreed_to):
                yield f"once: {run.id}: {call} was entered {times} times, {len(agreed_to)} repetitions were agreed to"

    def _telling(self, who: str, told: list[dict[str, Any]], messages: list[dict[str, Any]]) -> Iterator[str]:
        if [event["seq"] for event in told] != list(range(1, len(told) + 1)):
            yield f"events: {who}: numbers {[event['seq'] for event in told]}"
        said = [message for message in messages if message["role"] == "assistant"]
        wanted = {turn: message["content"] for turn, message in enumerate(said) if message["content"]}
        if texts_of(told) != wanted:
            yield f"events: {who}: texts {texts_of(told)}, transcript {wanted}"
        ends = [event["type"] for event in told if event["type"] == "run.finished"]
        if len(ends) != 1 or told[-1]["type"] != "run.finished":
            yield f"events: {who}: the run ends {len(ends)} times, and the last event is {told[-1]['type']}"
        calls = {call["id"] for message in said for call in message.get("tool_calls") or ()}
        for kind in ("tool.started", "tool.finished"):
            made = {event["data"]["call_id"] for event in told if event["type"] == kind}
            if made != calls:
                yield f"events: {who}: {kind} of {sorted(made)}, transcript {sorted(calls)}"
