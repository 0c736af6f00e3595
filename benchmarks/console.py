"""The web console beside workers: what twenty open pages cost, how soon a page is painted, how soon the console ends.

python benchmarks/console.py [URL] [--seconds 20] [--pairs 5]

`pages` has a program execute runs in one process, with and without twenty open pages that ask for changes every three
seconds, as browsers do; the two take turns, and the ratio of runs a second is the median of the pairs. The processor
time is that of the console, and on PostgreSQL that of its connections, while nothing runs. `paint` needs Chromium and
playwright: the first paint of the list and of a run, the median of 15 loads after one. `ending` sends SIGTERM to the
console while three streams of a run are open. Without a URL it is a SQLite file.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import sqlalchemy

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, slowly

TOKEN = "the-token-of-the-benchmark"
PAGES = [*["/runs"] * 10, *["/inbox"] * 5, *["/workers"] * 5]
EACH = 3.0
"""Seconds between two questions of a page."""
USER = [{"role": "user", "content": "Where is order A1?"}]
WORK = """
import sys, time
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel

agent, done = Agent(name="Clerk"), 0
with DurableSwarm(ScriptedModel(lambda _: "It is on its way."), database=sys.argv[1]) as swarm:
    swarm.run(agent, [{"role": "user", "content": "Hi"}])
    begun = time.perf_counter()
    while time.perf_counter() - begun < float(sys.argv[2]):
        swarm.run(agent, [{"role": "user", "content": "Hi"}])
        done += 1
    print(done / (time.perf_counter() - begun))
"""
PAINTED = """() => new Promise(tell => new PerformanceObserver(
    list => tell(list.getEntries()[0].startTime)).observe({type: "paint", buffered: true}))"""


class Console:
    """A console in a process of its own."""

    def __init__(self, url: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = ["console", "--database", url, "--port", str(self.port), "--no-browser"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "durable_swarm", *command], text=True, stdout=subprocess.PIPE,
            env={**os.environ, "DURABLE_SWARM_SERVER_TOKEN": TOKEN},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()
        while not self._answers():
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/healthz"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        """Return a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"authorization": f"Bearer {TOKEN}"})
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def stream(self, path: str) -> http.client.HTTPResponse:
        """Return an open stream that has said something."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        answer.readline()
        return answer

    def end(self) -> float:
        """End it by SIGTERM, and return the seconds that it took."""
        begun = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.perf_counter() - begun


@contextmanager
def open_pages(console: Console) -> Iterator[None]:
    """Have twenty pages open, each of which asks for changes as its HTML says."""
    closed = threading.Event()

    def watch(path: str, delay: float) -> None:
        asks = re.search(r'hx-get="([^"]+)" hx-trigger="every', console.get(path))
        assert asks is not None
        closed.wait(delay)
        while not closed.wait(EACH):
            found = re.search(r'hx-get="([^"]+)" hx-trigger="every', text := console.get(unescape(asks[1])))
            asks = found if text and found else asks

    threads = [
        threading.Thread(target=watch, args=(path, EACH * number / len(PAGES))) for number, path in enumerate(PAGES)
    ]
    for thread in threads:
        thread.start()
    yield
    closed.set()
    for thread in threads:
        thread.join()


def runs_each_second(url: str, seconds: float) -> float:
    """Return how many runs a program executes each second."""
    done = subprocess.run([sys.executable, "-c", WORK, url, str(seconds)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def worked(pids: list[int]) -> float:
    """Return the processor time of processes, in seconds."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def connections(url: str) -> list[int]:
    """Return the processes of the server that serve this database; none for SQLite."""
    if url.startswith("sqlite"):
        return []
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    mine = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        found = [int(row[0]) for row in connection.exec_driver_sql(mine)]
    engine.dispose()
    return found


def pages(url: str, seconds: float, pairs: int) -> None:
    """Print what twenty open pages cost."""
    console, ratios = Console(url), []
    with open_pages(console):
        time.sleep(2 * EACH)
        served = connections(url)
        before, at = (worked([console.process.pid]), worked(served)), time.perf_counter()
        time.sleep(seconds)
        took = time.perf_counter() - at
        print(f"console: {100 * (worked([console.process.pid]) - before[0]) / took:.1f} % of a core")
        if served:
            print(f"its connections to PostgreSQL: {100 * (worked(served) - before[1]) / took:.1f} % of a core")
    for number in range(pairs):
        found: dict[bool, float] = {}
        for beside in (True, False) if number % 2 else (False, True):
            if beside:
                with open_pages(console):
                    found[True] = runs_each_second(url, seconds)
            else:
                found[False] = runs_each_second(url, seconds)
        ratios.append(found[True] / found[False])
        print(f"runs a second: {found[False]:.1f} without, {found[True]:.1f} beside twenty pages: {ratios[-1]:.3f}")
    print(f"median of the ratios: {statistics.median(ratios):.3f}")
    console.end()


def paint(url: str) -> None:
    """Print the first paint of two pages."""
    from playwright.sync_api import sync_playwright

    console = Console(url)
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{console.port}/runs?token={TOKEN}")
        for shown in ("/runs", "/runs/story"):
            took = []
            for _ in range(16):
                page.goto(f"http://127.0.0.1:{console.port}{shown}")
                took.append(page.evaluate(PAINTED))
            print(f"first paint of {shown}: {statistics.median(took[1:]):.0f} ms, median of {len(took) - 1}")
        browser.close()
    console.end()


def ending(url: str) -> None:
    """Print how soon the console ends while streams are open."""
    model = ScriptedModel(lambda _: slowly(" ".join(["word"] * 600), pace=0.1))
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.start(Agent(name="Teller"), USER, run_id="story")
        console = Console(url)
        streams = [console.stream("/runs/story/events") for _ in range(3)]
        print(f"SIGTERM with {len(streams)} streams open: ended in {console.end():.2f} s")
        run.cancel()


def main() -> None:
    """Measure everything, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"sqlite:///{Path(folder) / 'runs.sqlite'}"
        ending(url)
        if shutil.which("chromium") or shutil.which("google-chrome"):
            paint(url)
        pages(url, given.seconds, given.pairs)


if __name__ == "__main__":
    main()
