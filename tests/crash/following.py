"""Readers of a run's events: in the process that is killed, in others, and what they must have got."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from durable_swarm import Run
from durable_swarm.events import Event
from durable_swarm.types import Message

Told = dict[str, Any]
"""An event as a line of a file."""


def as_line(event: Event) -> Told:
    """Give an event as plain data."""
    return {"seq": event.seq, "type": event.type, "data": event.data, "time": event.time.isoformat()}


def read_told(path: Path) -> list[Told]:
    """Give what was written; a line that a kill has cut off was not read."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def follow_into(run: Run, path: Path) -> list[Told]:
    """Read on where the file ends, and write each event to it before the next is asked for."""
    told = read_told(path)
    kept = "".join(json.dumps(event) + "\n" for event in told)
    if path.exists() and path.read_text(encoding="utf-8") != kept:
        path.write_text(kept, encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        for event in run.events(after=told[-1]["seq"] if told else 0):
            told.append(as_line(event))
            file.write(json.dumps(told[-1]) + "\n")
            file.flush()
    return told


def texts_of(told: Iterable[Told]) -> dict[int, str]:
    """Put the text of each turn together, as a reader does."""
    texts: dict[int, str] = {}
    for event in told:
        if event["type"] == "text.reset":
            texts[event["data"]["turn"]] = ""
        elif event["type"] == "text.delta":
            texts[event["data"]["turn"]] = texts.get(event["data"]["turn"], "") + event["data"]["text"]
    return {turn: text for turn, text in texts.items() if text}


def wrongs_of(who: str, told: list[Told], messages: list[Message], end: str = "run.finished") -> list[str]:
    """Say what is wrong with what a reader got of a run with this transcript."""
    problems = []
    if [event["seq"] for event in told] != list(range(1, len(told) + 1)):
        problems.append(f"{who}: numbers {[event['seq'] for event in told]}")
    said = [message for message in messages if message["role"] == "assistant"]
    wanted = {turn: message["content"] for turn, message in enumerate(said) if message["content"]}
    if texts_of(told) != wanted:
        problems.append(f"{who}: texts {texts_of(told)}, transcript {wanted}")
    calls = sorted(call["id"] for message in said for call in message.get("tool_calls") or ())
    for kind in ("tool.started", "tool.finished"):
        made = sorted(event["data"]["call_id"] for event in told if event["type"] == kind)
        if made != calls:
            problems.append(f"{who}: {kind} {made}, transcript {calls}")
    of_the_run = [event["type"] for event in told if event["type"].startswith("run.")]
    if [kind for kind in of_the_run if kind != "run.recovered"] != ["run.started", end]:
        problems.append(f"{who}: {of_the_run}")
    elif told[-1]["type"] != end:
        problems.append(f"{who} ends with {told[-1]}")
    return problems


def differences(who: str, told: list[Told], later: list[Told]) -> list[str]:
    """Say where a reader was told otherwise than another that read the end: text that was lost may be void."""
    return [
        f"{who} got {one}, later {other}"
        for one, other in zip(told, later, strict=False)
        if one != other and not (one["type"].startswith("text.") and other["type"] == "text.reset")
    ] + ([f"{who} got {len(told)} events, later there are {len(later)}"] if len(told) > len(later) else [])
