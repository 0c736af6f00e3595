"""What streaming costs: the same 2,000 tokens read from the bare `openai` client, as dictionaries, and as events.

A server in a process of its own sends ready-made chunks without a pause. All readers take turns in this process. Prints
the rate of each against the bare client of its kind, how much later its first token came, and how many rows of events a
reply left in the database.
Run: python benchmarks/streaming.py [DATABASE_URL] [--tokens 2000] [--rounds 15]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import openai
import sqlalchemy

from durable_swarm import Agent, DurableSwarm

USER = [{"role": "user", "content": "Tell me a long story."}]
SPACING = 0.02
"""Seconds between the first token and the next where the first one is timed: a provider does not send all at once."""


def serve(tokens: int, listener: socket.socket) -> None:
    """Answer each request with that many tokens, at once."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    body = b"".join(map(_chunk, range(tokens))) + _event({"choices": [_choice({}, "stop")]}) + b"data: [DONE]\n\n"
    while True:
        connection, _ = listener.accept()
        with connection:
            asked = b""
            while b"\r\n\r\n" not in asked or not asked.rstrip().endswith(b"}"):
                asked += connection.recv(65536)
            connection.sendall(head)
            connection.sendall(body)


def _chunk(index: int) -> bytes:
    return _event(
        {"choices": [_choice({"content": f"word{index % 10} "} | ({"role": "assistant"} if not index else {}))]}
    )


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _event(fields: dict[str, Any]) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def bare(client: openai.OpenAI) -> Iterator[str]:
    """Give the tokens as the client does."""
    for chunk in client.chat.completions.create(model="gpt-4o", messages=USER, stream=True):  # type: ignore[arg-type]
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def dictionaries(swarm: DurableSwarm, agent: Agent) -> Iterator[str]:
    """Give the tokens of `run(stream=True)`."""
    for item in swarm.run(agent, USER, stream=True):
        if item.get("content"):
            yield item["content"]


def events(swarm: DurableSwarm, agent: Agent) -> Iterator[str]:
    """Give the text of `Run.events`."""
    for event in swarm.start(agent, USER).events():
        if event.type == "text.delta":
            yield event.data["text"]


async def _bare_async(client: openai.AsyncOpenAI) -> tuple[float, float]:
    begun, first = time.perf_counter(), 0.0
    stream = await client.chat.completions.create(model="gpt-4o", messages=USER, stream=True)  # type: ignore[arg-type]
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content and not first:
            first = time.perf_counter() - begun
    return first, time.perf_counter() - begun


async def _dictionaries_async(swarm: DurableSwarm, agent: Agent) -> tuple[float, float]:
    begun, first = time.perf_counter(), 0.0
    async for item in swarm.run_async(agent, USER, stream=True):
        if item.get("content") and not first:
            first = time.perf_counter() - begun
    return first, time.perf_counter() - begun


async def _events_async(swarm: DurableSwarm, agent: Agent) -> tuple[float, float]:
    begun, first = time.perf_counter(), 0.0
    run = await swarm.start_async(agent, USER)
    async for event in run.events_async():
        if event.type == "text.delta" and not first:
            first = time.perf_counter() - begun
    return first, time.perf_counter() - begun


def timed(tokens: Iterable[str]) -> tuple[float, float]:
    """Give the seconds until the first token and until the end."""
    begun, first = time.perf_counter(), 0.0
    for _ in tokens:
        first = first or time.perf_counter() - begun
    return first, time.perf_counter() - begun


def measure(url: str, base: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Give the times of each reader, round by round."""
    agent = Agent(name="Bench")
    client = openai.OpenAI(base_url=base, api_key="sk-test", max_retries=0)
    on_loop = openai.AsyncOpenAI(base_url=base, api_key="sk-test", max_retries=0)
    with (
        DurableSwarm(client, database=url, name="plain") as swarm,
        DurableSwarm(on_loop, database=url, name="a") as other,
    ):
        loop = asyncio.new_event_loop()
        readers: dict[str, Callable[[], tuple[float, float]]] = {
            "sync, bare": lambda: timed(bare(client)),
            "sync, dictionaries": lambda: timed(dictionaries(swarm, agent)),
            "sync, events": lambda: timed(events(swarm, agent)),
            "async, bare": lambda: loop.run_until_complete(_bare_async(on_loop)),
            "async, dictionaries": lambda: loop.run_until_complete(_dictionaries_async(other, agent)),
            "async, events": lambda: loop.run_until_complete(_events_async(other, agent)),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for _ in range(rounds + 1):
            for name, read in readers.items():
                times[name].append(read())
        loop.run_until_complete(on_loop.close())
        loop.close()
        rows = _count(url)
    client.close()
    print(f"  rows of events for {4 * (rounds + 1)} replies: {rows}")
    return times


def _count(url: str) -> int:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    table = "streams" if url.startswith("sqlite") else "dbos.streams"
    with engine.connect() as connection:
        count = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
    engine.dispose()
    return int(count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.Process(target=serve, args=(options.tokens, listener), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'bench.sqlite'}"
        print(f"{url.split(':')[0]}, {options.tokens} tokens, median of {options.rounds} alternating rounds")
        times = measure(url, base, options.rounds)
    server.terminate()
    # The first round warms up.
    medians = {
        name: [statistics.median(column) for column in zip(*some[1:], strict=True)] for name, some in times.items()
    }
    for name, (first, whole) in medians.items():
        own_first, own_whole = medians[f"{name.split(',')[0]}, bare"]
        print(
            f"  {name:20} {options.tokens / whole:8.0f} tokens/s  {own_whole / whole:5.2f} of the bare client's rate, "
            f"first token {first * 1000:5.1f} ms, {(first - own_first) * 1000:+5.1f} ms"
        )


if __name__ == "__main__":
    main()
