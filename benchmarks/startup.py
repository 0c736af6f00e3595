"""Starting up: the cost of imports and of `--help`, and the time from a restart to the next model call of a killed run.

Run: python benchmarks/startup.py [DATABASE_URL]
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import os, sys, time
from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.testing import call
imported = time.time()

def reply(request):
    done = sum(message["role"] == "assistant" for message in request["messages"])
    if done == 3 and sys.argv[1] == "die":
        print("now", flush=True); time.sleep(60)
    if done == 3:
        print(time.time() - imported, flush=True)
    return [call(sys.argv[2], number=done)] if done < 4 else "Goodbye."

def plain(number: int) -> str:
    return "plain"

@step
def stepped(number: int) -> str:
    return "stepped"

from durable_swarm.testing import ScriptedModel
agent = Agent(name="Stamper", functions=[plain, stepped])
swarm = DurableSwarm(ScriptedModel(reply), database=os.environ["URL"])
if sys.argv[3] == "named":
    swarm.run(agent, [{"role": "user", "content": "Go on."}], run_id=os.environ["RUN"])
else:
    for run in swarm.recover() or swarm.runs(limit=1):
        run.result()
"""


STARTS = {
    "import click": ["-c", "import click"],
    "import pydantic": ["-c", "import pydantic"],
    "import dbos, openai": ["-c", "import dbos, openai"],
    "import durable_swarm": ["-c", "import durable_swarm"],
    "from durable_swarm import Agent, Swarm": ["-c", "from durable_swarm import Agent, Swarm"],
    "from durable_swarm import DurableSwarm": ["-c", "from durable_swarm import DurableSwarm"],
    "durable-swarm --help": ["-m", "durable_swarm", "--help"],
    "durable-swarm --version": ["-m", "durable_swarm", "--version"],
}


def processor_seconds(arguments: list[str], rounds: int = 7) -> float:
    """Return the median processor time, in seconds, of a fresh interpreter with these arguments."""
    times = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times)


def print_starts() -> None:
    """Print the processor time of each start, and its ratio to importing click and pydantic."""
    bare = processor_seconds(["-c", "pass"])
    taken = {name: processor_seconds(arguments) - bare for name, arguments in STARTS.items()}
    both = taken["import click"] + taken["import pydantic"]
    for name, seconds in taken.items():
        print(f"{name}: {seconds:.3f} s of CPU beyond the interpreter's, {seconds / both:.1f}x click + pydantic")


def restart_ms(url: str, tool: str, how: str, run: str) -> float:
    """Kill a run in its fourth model call; give the milliseconds from the restart's imports to that call made again."""
    environment = {**os.environ, "URL": url, "RUN": run}
    command = [sys.executable, "-c", PROGRAM]
    first = subprocess.Popen([*command, "die", tool, "named"], env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run([*command, "live", tool, how], env=environment, capture_output=True, text=True, check=True)
    return float(second.stdout.splitlines()[0]) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    options = parser.parse_args()
    print_starts()
    with tempfile.TemporaryDirectory() as folder:
        for tool in ("stepped", "plain"):
            for how in ("named", "by itself"):
                times = []
                for index in range(5):
                    name = f"{tool}-{how}-{index}"
                    url = options.database or f"sqlite:///{Path(folder) / f'{name}.sqlite'}"
                    times.append(restart_ms(url, tool, how.split()[0], f"{name}-{time.time()}"))
                print(
                    f"restart to first new model call, {tool} tools, continued {how}: {statistics.median(times):.0f} ms"
                )


if __name__ == "__main__":
    main()
