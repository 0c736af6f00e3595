"""Statements that an idle program sends to its database each second, beside a program written by hand with DBOS.

python benchmarks/idle.py [RUNS] [DATABASE_URL]

Each program is a process with a database of its own, and all run at once. The second count begins more than a minute
after the start: until then DBOS looks for its own schedules once a second, later every 30 seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from dbos import DBOS
from support.idleness import idle
from waiting import AGENT, fill, reply

from durable_swarm import DurableSwarm
from durable_swarm.engine.database import connection, urls
from durable_swarm.testing import ScriptedModel

SETTLED, MINUTE, COUNTED = 10.0, 75.0, 20.0
"""Seconds until the first count, until the second one, and for which each lasts."""
PROGRAMS = {
    "hand": "DBOS by hand",
    "queue": "DBOS by hand, with a queue",
    "idle": "DurableSwarm",
    "waits": "DurableSwarm, {} runs wait",
}


@contextmanager
def by_hand(url: str, *, queue: bool) -> Iterator[None]:
    """Launch DBOS with its own settings, and with a queue if asked."""
    DBOS(config={"name": "by-hand", "system_database_url": url, "log_level": "CRITICAL"})
    DBOS.launch()
    if queue:
        DBOS.register_queue("work")
    yield


@contextmanager
def durable(url: str, waiting: int) -> Iterator[None]:
    """Open a swarm that has executed a run, and in which some runs wait."""
    client = ScriptedModel(reply)
    with DurableSwarm(client, database=url) as swarm:
        swarm.run(AGENT, [{"role": "user", "content": "nothing"}], max_turns=0)
        fill(swarm, client, waiting)
        yield


def measure(program: str, url: str, waiting: int) -> None:
    """Start a program, and print what it takes."""
    began = time.monotonic()
    hand = program in ("hand", "queue")
    with by_hand(url, queue=program == "queue") if hand else durable(url, waiting if program == "waits" else 0):
        ready = time.monotonic()
        time.sleep(SETTLED)
        _, early = idle(COUNTED)
        time.sleep(max(0.0, max(began + MINUTE, ready) - time.monotonic()))
        core, later = idle(COUNTED)
        first = f"{early:.1f} in the first minute, " if ready - began < SETTLED else ""
        line = f"{later:4.1f} statements a second, {first}{core:.1f} % of a core"
        print(f"{PROGRAMS[program].format(waiting):32} {line}", flush=True)
        os._exit(0)


def main() -> None:
    """Measure all programs at once."""
    arguments = sys.argv[1:]
    waiting = arguments.pop(0) if arguments and arguments[0].isdigit() else "2000"
    with tempfile.TemporaryDirectory() as folder:
        given = sqlalchemy.make_url(arguments[0] if arguments else f"sqlite:///{folder}/idle.sqlite")
        of = {name: given.set(database=f"{given.database}_{name}") for name in PROGRAMS}
        shown = {name: url.render_as_string(hide_password=False) for name, url in of.items()}
        processes = [
            subprocess.Popen([sys.executable, __file__, "measure", name, url, waiting]) for name, url in shown.items()
        ]
        ended = [process.wait() for process in processes]
        for url in shown.values():
            if not urls.is_sqlite(chosen := urls.choose(url)):
                connection.drop(chosen)
    sys.exit(max(ended))


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
