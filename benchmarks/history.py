"""Turns with the official client over real HTTP: time per turn at turn 10, 200 and 400, and of short runs.

Ours is a durable run; the plain loop calls `chat.completions.create(messages=history)` and keeps nothing. Both talk to
the same local server, in turn. "Our share" is a durable turn without the request itself.
Run: python benchmarks/history.py [DATABASE_URL]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai

from durable_swarm import Agent, DurableSwarm, Limits, step

SERVER = """
import socket, json
listener = socket.create_server(("127.0.0.1", 0)); print(listener.getsockname()[1], flush=True)
message = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function",
           "function": {"name": "stamp", "arguments": '{"number": 7}'}}]}
body = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [
       {"index": 0, "finish_reason": "tool_calls", "message": message}]}).encode()
answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body
while True:
    connection, _ = listener.accept(); data = b""
    while chunk := connection.recv(1 << 20):
        data += chunk
        head, found, rest = data.partition(b"\\r\\n\\r\\n")
        if not found: continue
        length = int(next(l for l in head.lower().split(b"\\r\\n") if l.startswith(b"content-length")).split(b":")[1])
        if len(rest) >= length:
            connection.sendall(answer); data = rest[length:]
"""

TEXT = "x" * 300
USER = [{"role": "user", "content": TEXT}]
SHORT = 50
MARKS: list[float] = []
ASKED: list[float] = []


def stamp(number: int) -> str:
    """Stamp a number."""
    MARKS.append(time.perf_counter())
    return TEXT


async def stamp_async(number: int) -> str:
    """Stamp a number on the event loop."""
    return TEXT


stamp_async.__name__ = "stamp"  # The tool that the server's answers call.


def timed_client(base: str) -> openai.OpenAI:
    """Return the official client, which notes how long each request took, without what `create` does before it."""

    def note(response: Any) -> None:
        ASKED.append(time.perf_counter() - response.request.extensions["begun"])

    def begin(request: Any) -> None:
        request.extensions["begun"] = time.perf_counter()

    connections = openai.DefaultHttpxClient(event_hooks={"request": [begin], "response": [note]})
    return openai.OpenAI(base_url=base, api_key="sk-none", http_client=connections)


def plain(client: openai.OpenAI, turns: int) -> list[float]:
    """Run the loop without durability; gives the seconds of each turn."""
    tools = [{"type": "function", "function": {"name": "stamp", "parameters": {"type": "object", "properties": {}}}}]
    history: list[dict[str, Any]] = [{"role": "system", "content": "Stamp."}, *USER]
    times = []
    for _ in range(turns):
        begun = time.perf_counter()
        answer: Any = client.chat.completions.create(model="m", messages=history, tools=tools)  # type: ignore[arg-type]
        message = json.loads(answer.choices[0].message.model_dump_json(exclude_none=True))
        history.append(message)
        history += [{"role": "tool", "tool_call_id": call["id"], "content": TEXT} for call in message["tool_calls"]]
        times.append(time.perf_counter() - begun)
    return times


def stamper(function: Any) -> Agent:
    """Make the agent with this tool."""
    return Agent(name=f"Stamper {id(function)}", instructions="Stamp.", model="m", functions=[function])


def durable(swarm: DurableSwarm, turns: int) -> tuple[list[float], list[float]]:
    """Run the same durably; gives the seconds of each turn, and of the request in it."""
    MARKS.clear()
    ASKED.clear()
    limits = Limits(requests=turns + 1)
    swarm.run(stamper(step(stamp)), USER, max_turns=2 * turns, limits=limits)
    return [after - before for before, after in itertools.pairwise(MARKS)], ASKED[1:]


def shorts(client: openai.OpenAI, swarm: DurableSwarm, rounds: int) -> dict[str, float]:
    """Run four kinds of short runs beside the plain loop, in turn; gives the median ratio of each."""
    on_thread = {"plain tool": stamper(stamp), "@step tool": stamper(step(stamp))}
    on_loop = {"plain tool, async": stamper(stamp_async), "@step tool, async": stamper(step(stamp_async))}
    ratios: dict[str, list[float]] = {kind: [] for kind in (*on_thread, *on_loop)}
    for _ in range(rounds + 1):
        for kind, values in ratios.items():
            bare = sum(plain(client, SHORT))
            begun = time.perf_counter()
            if kind in on_thread:
                swarm.run(on_thread[kind], USER, max_turns=2 * SHORT)
            else:
                asyncio.run(swarm.run_async(on_loop[kind], USER, max_turns=2 * SHORT))
            values.append((time.perf_counter() - begun) / bare)
    return {kind: statistics.median(values[1:]) for kind, values in ratios.items()}  # The first round warms up.


def at(values: list[float], turn: int) -> float:
    """Give the median milliseconds of the ten turns round `turn`."""
    return statistics.median(values[max(0, turn - 5) : turn + 5]) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    base = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
    client = timed_client(base)
    turns, rows = 410, []
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'bench.sqlite'}"
        with DurableSwarm(client, database=url) as swarm:
            for _ in range(options.rounds):
                bare = plain(client, turns)
                ours, asked = durable(swarm, turns)
                share = [turn - request for turn, request in zip(ours, asked, strict=False)]
                rows.append([(at(bare, n), at(ours, n), at(share, n)) for n in (10, 200, 395)])
            ratios = shorts(client, swarm, 2 * options.rounds)
    server.kill()
    print(f"{url.split(':')[0]}, medians of {options.rounds} rounds, milliseconds a turn")
    print("  turn   plain loop   ours, durable   ratio   our share without the request")
    medians = [[statistics.median(row[i][k] for row in rows) for k in range(3)] for i in range(3)]
    for turn, (bare_ms, ours_ms, share_ms) in zip((10, 200, 395), medians, strict=True):
        print(f"  {turn:4} {bare_ms:12.2f} {ours_ms:15.2f} {ours_ms / bare_ms:7.2f} {share_ms:15.2f}")
    print(f"  our share grows {medians[2][2] / medians[0][2]:.2f}x from turn 10 to 395")
    print(f"runs of {SHORT} turns, beside the plain loop")
    for kind, ratio in ratios.items():
        print(f"  {kind:18} {ratio:5.2f}x")


if __name__ == "__main__":
    main()
