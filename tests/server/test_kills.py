"""A server that is killed while a client reads: the client comes back with the number it has seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_swarm.server.ids import encode_id
from tests.crash.test_requests import soon
from tests.support import programs

PROGRAM = """
from durable_swarm import Agent, DurableSwarm, ask_human
from durable_swarm.testing import ScriptedModel

def ask(number: int) -> str:
    return ask_human(f"Question {number}?")

def reply(request):
    asked = sum(message["role"] == "tool" for message in request["messages"])
    return [("ask", {"number": asked})] if asked < 2 else "All of it is answered, word for word."

clerk = Agent(name="Clerk", functions=[ask])
swarm = DurableSwarm(ScriptedModel([reply] * 9), database="sqlite:///runs.sqlite")
"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Any]]:
    """Serve the program, and kill the server; give its address and a way to ask it."""
    environment = {**os.environ, "DURABLE_SWARM_SERVER_TOKEN": "secret"}
    command = [sys.executable, "-m", "durable_swarm", "serve", "program:swarm", "--port", "0"]
    process = programs.Program(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        base = line.rpartition(" at ")[2].partition("/runs")[0]
        with httpx.Client(base_url=base, headers={"Authorization": "Bearer secret"}, timeout=200) as client:
            yield base, client
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def read(client: Any, seen: list[dict[str, Any]], until: str) -> None:
    """Read on behind the last event that was seen, until one of a type."""
    headers = {"Last-Event-ID": str(seen[-1]["seq"])} if seen else {}
    with client.stream("GET", "/api/runs/r1/events", headers=headers) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                if seen[-1]["type"] == until:
                    return


def answer(client: Any, text: str) -> None:
    """Answer the open question."""
    [request] = soon(lambda: client.get("/api/requests").json()["requests"])
    path = f"/api/requests/{encode_id(request['id'])}"
    assert client.post(path, json={"verdict": "answer", "value": text}).status_code == 200


@pytest.mark.slow
def test_a_reader_misses_nothing_through_two_kills(tmp_path: Path) -> None:
    """Three servers, two of them killed: the numbers have no gap, nothing comes twice, and the text is exact."""
    (tmp_path / "program.py").write_text(PROGRAM)
    seen: list[dict[str, Any]] = []
    with serving(tmp_path) as (_, client):
        assert client.post("/api/runs", json={"agent": "Clerk", "message": "Hi", "run_id": "r1"}).status_code == 201
        read(client, seen, "run.waiting")
    with serving(tmp_path) as (_, client):
        answer(client, "one")
        read(client, seen, "run.waiting")
    with serving(tmp_path) as (_, client):
        answer(client, "two")
        read(client, seen, "run.finished")
        last = client.get("/api/runs/r1").json()["messages"][-1]["content"]
        assert client.get("/api/runs/r1/events", headers={"Last-Event-ID": str(seen[-1]["seq"])}).status_code == 204
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert [event["data"]["result"] for event in seen if event["type"] == "tool.finished"] == ["one", "two"]
    text = ""
    for event in seen:
        text = "" if event["type"] == "text.reset" else text + event["data"].get("text", "")
    assert text == last
