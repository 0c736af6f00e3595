"""A provider that is away for a minute: how often it is asked meanwhile, and how soon all runs are done afterwards.

    python benchmarks/outage.py [URL] [RUNS] [SECONDS] [503|429]

Two workers have 200 queued runs of one model call each. The provider is a local server that answers each request with
status 503, or 429 with `Retry-After: 2`, for a minute, and "Hello" afterwards. Printed are its requests in the outage
(in all, in the busiest second, and in the busiest one after the first five), the time from its return to the end of the
last run, and its requests after its return: one for each run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

from durable_swarm import DurableSwarm
from durable_swarm.testing import http_error, rate_limited, serve_scripted

APP = """
    import os, openai
    from durable_swarm import Agent, DurableSwarm

    clerk = Agent(name="OutageClerk")
    swarm = DurableSwarm(openai.OpenAI(base_url=os.environ["PROVIDER"], api_key="sk-test", max_retries=2))
"""


class Provider:
    """Notes when it is asked, and is away until it is back."""

    def __init__(self, status: str) -> None:
        self.fault = rate_limited(2) if status == "429" else http_error(503)
        self.asked: list[float] = []
        self.back_at = 0.0

    def __call__(self, request: dict[str, Any]) -> Any:
        self.asked.append(time.time())
        return "Hello" if self.back_at else self.fault


def busiest(moments: list[float]) -> int:
    """Return the greatest number of these moments within one second."""
    return max((sum(0 <= other - moment < 1 for other in moments) for moment in moments), default=0)


def worker(url: str, provider: str) -> subprocess.Popen[str]:
    """Start a worker and wait until it works."""
    started = subprocess.Popen(
        [sys.executable, "-m", "durable_swarm", "worker", "app:swarm", "--database", url],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PROVIDER": provider},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert started.stdout is not None
    started.stdout.readline()
    return started


def measure(url: str, count: int, seconds: float, status: str) -> None:
    """Have two workers wait for a provider, and print the figures."""
    provider = Provider(status)
    with serve_scripted(provider) as server, DurableSwarm(database=url) as swarm:
        asked = [{"role": "user", "content": "Hi"}]
        runs = [swarm.enqueue("OutageClerk", asked, run_id=f"o{number}") for number in range(count)]
        workers = [worker(url, server.base_url) for _ in range(2)]
        began = time.time()
        time.sleep(seconds)
        waiting = len(swarm.runs("waiting", limit=count))
        provider.back_at = back = time.time()
        away = [moment for moment in provider.asked if moment < back]
        for run in runs:
            run.result(120)
        done = time.time() - back
        for process in workers:
            process.terminate()
            process.communicate()
    late = [moment for moment in away if moment - began > 5]
    print(f"{status}, {count} runs, 2 workers, away {seconds:g} s: {waiting} waiting at its end")
    print(f"  asked {len(away)} times, at most {busiest(away)} a second, and {busiest(late)} after 5 s")
    print(f"  all done {done:.1f} s after the return, {len(provider.asked) - len(away)} requests")


def main() -> None:
    """Measure on a fresh SQLite file, or on the database of a URL."""
    defaults = ["", "200", "60", "503"]
    url, count, seconds, status = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("app.py").write_text(textwrap.dedent(APP), encoding="utf-8")
        measure(url or f"sqlite:///{folder}/outage.sqlite", int(count), float(seconds), status)


if __name__ == "__main__":
    main()
