"""The server beside the program: what a run costs through the door `api`, and what readers of its events take.

python benchmarks/server.py [--runs 20] [--readers 100] [--slow 200]

`api` starts runs of five turns, whose model takes 100 ms, over HTTP, and waits for each by its events; the same runs in
the same process take turns with them. `readers` have many connections read the events of one run of 500 tool calls,
first while it is executed, then when it has ended; the sum of events a second is printed. `slow` has readers that take
nothing from their connections while runs are executed: the time of a run with them and without takes turns, too. The
server is in a process of its own, the readers in another.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TURNS = 5
TOKEN = "the-token-of-the-benchmark"
PROGRAM = f"""
import json, sys, threading, time
from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.testing import ScriptedModel, call, slowly

@step
def stamp(number: int) -> str:
    return f"stamped {{number}}"

def reply(request):
    done = sum(message["role"] == "assistant" for message in request["messages"])
    if request["messages"][1]["content"] == "Count.":
        return [call("stamp", number=number) for number in range(50)] if done < 10 else "Counted."
    return slowly([call("stamp", number=done)] if done < {TURNS} - 1 else "Goodbye.", latency=0.1)

clerk = Agent(name="Clerk", functions=[stamp])
swarm = DurableSwarm(ScriptedModel(reply, strict=False))

def here():
    # Runs the same in this process for each line of the standard input, and prints the seconds.
    for _ in sys.stdin:
        begun = time.perf_counter()
        swarm.run(clerk, [{{"role": "user", "content": "Go on."}}])
        print(time.perf_counter() - begun, flush=True)

threading.Thread(target=here, daemon=True).start()
"""


class Server:
    """A server in a process of its own, which also runs in process what a line asks for."""

    def __init__(self, folder: Path) -> None:
        (folder / "program.py").write_text(PROGRAM)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [sys.executable, "-m", "durable_swarm", "serve", "program:swarm", "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "DURABLE_SWARM_SERVER_TOKEN": TOKEN, "DURABLE_SWARM_DATABASE_URL": "sqlite:///runs.sqlite"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def in_process(self) -> float:
        """Return the seconds of one run in the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            with_number = line.strip().replace(".", "", 1).isdigit()
            if with_number:
                return float(line)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of an answer."""
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def by_api(self) -> float:
        """Return the seconds of one run through the door, until its last event has come."""
        begun = time.perf_counter()
        run = self.ask("POST", "/api/runs", {"agent": "Clerk", "message": "Go on."})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", f"/api/runs/{run['id']}/events", headers={"authorization": f"Bearer {TOKEN}"})
        connection.getresponse().read()
        connection.close()
        return time.perf_counter() - begun

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()


def _request(port: int, run_id: str) -> bytes:
    headers = f"host: 127.0.0.1:{port}\r\nauthorization: Bearer {TOKEN}"
    return f"GET /api/runs/{run_id}/events HTTP/1.0\r\n{headers}\r\n\r\n".encode()


async def _reader(port: int, run_id: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(port, run_id))
    await writer.drain()
    found, rest = 0, b""
    while data := await reader.read(2**18):
        data = rest + data
        found += data.count(b"\nevent: ")
        rest = data[-7:]
        found -= rest.count(b"\nevent: ")
    writer.close()
    return found


async def _readers(port: int, run_id: str, number: int) -> None:
    begun = time.perf_counter()
    found = await asyncio.gather(*(_reader(port, run_id) for _ in range(number)))
    print(sum(found), min(found), time.perf_counter() - begun)


def read_by(port: int, run_id: str, number: int) -> tuple[int, int, float]:
    """Have readers in another process read a run; return all events, those of the one with fewest, and seconds."""
    command = [sys.executable, __file__, "--read", str(port), run_id, str(number)]
    all_, least, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(all_), int(least), float(seconds)


@contextmanager
def slow_readers(port: int, run_id: str, number: int) -> Iterator[None]:
    """Have connections open that ask for the events of a run and take nothing."""
    opened = []
    for _ in range(number):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(_request(port, run_id))
        opened.append(connection)
    time.sleep(2)
    yield
    for connection in opened:
        connection.close()


def api(server: Server, runs: int) -> None:
    """Print what the door adds to a run."""
    here, there = [], []
    for number in range(runs + 1):
        for by_api in (True, False) if number % 2 else (False, True):
            (there if by_api else here).append(server.by_api() if by_api else server.in_process())
    ratio = statistics.median(there[1:]) / statistics.median(here[1:])
    print(
        f"a run of {TURNS} turns: {statistics.median(here[1:]) * 1000:.0f} ms in process, {ratio:.3f} times that by api"
    )


def readers(server: Server, number: int) -> None:
    """Print how many events many readers of one run get each second, while it goes on and when it has ended."""
    begun = time.perf_counter()
    server.ask("POST", "/api/runs", {"agent": "Clerk", "message": "Count.", "run_id": "unread"})
    while server.ask("GET", "/api/runs?limit=1")["runs"][0]["status"] != "done":
        time.sleep(0.05)
    print(f"the run without readers: {time.perf_counter() - begun:.2f} s")
    for name in ("that goes on", "that has ended"):
        server.ask("POST", "/api/runs", {"agent": "Clerk", "message": "Count.", "run_id": "story"})
        events, least, seconds = read_by(server.port, "story", number)
        rate = f"{events} events in {seconds:.2f} s, {events / seconds:.0f} a second; each has {least}"
        print(f"{number} readers of a run {name}: {rate}")


def slow(server: Server, number: int, runs: int) -> None:
    """Print what readers that take nothing cost a run."""
    ratios = []
    for _ in range(3):
        alone = statistics.median(server.in_process() for _ in range(runs))
        with slow_readers(server.port, "story", number):
            beside = statistics.median(server.in_process() for _ in range(runs))
        ratios.append(beside / alone)
    print(f"a run beside {number} readers that take nothing: {statistics.median(ratios):.3f} times that without")


def main() -> None:
    """Measure everything, and print."""
    if sys.argv[1:2] == ["--read"]:
        asyncio.run(_readers(int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--slow", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            api(server, given.runs)
            readers(server, given.readers)
            slow(server, given.slow, max(3, given.runs // 4))
        finally:
            server.end()


if __name__ == "__main__":
    main()
