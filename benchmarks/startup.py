"""Starting up: imports and commands, a first run beside a DBOS program written by hand, and a restart after a kill.

All modules are compiled before anything is measured, as an installation does, also with PYTHONDONTWRITEBYTECODE set.
The first run and the program by hand ask the same local server with the official client.

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
from typing import Any

from durable_swarm.testing import serve_scripted

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
        print(imported, time.time(), flush=True)
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

OURS = """
import os
from openai import OpenAI
from durable_swarm import Agent, DurableSwarm

swarm = DurableSwarm(OpenAI(), database=os.environ["URL"])
swarm.run(Agent(name="A"), [{"role": "user", "content": "Hi"}])
"""
BY_HAND = """
import os
from openai import OpenAI
from dbos import DBOS

client = OpenAI()
url = os.environ["URL"]
DBOS(config={"name": "app", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})

@DBOS.step()
def ask():
    answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
    return answer.choices[0].message.content

@DBOS.workflow()
def loop():
    return ask()

DBOS.launch()
loop()
"""

RUNS = """
import os
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, call

def note(text: str) -> str:
    return "Noted."

def reply(request):
    return "Goodbye." if len(request["messages"]) > 2 else [call("note", text="milk")]

agent = Agent(name="Clerk", functions=[note])
swarm = DurableSwarm(ScriptedModel(reply), database=os.environ["URL"])
for number in range(10):
    swarm.run(agent, [{"role": "user", "content": "Note milk."}], run_id=f"listed-{number}")
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
    **{
        f"durable-swarm {' '.join(words)}, ten runs": ["-m", "durable_swarm", *words]
        for words in (["runs"], ["show", "listed-7"], ["inbox"])
    },
}

COMPILING = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment of all processes: without compiled modules each would spend half of its time compiling them."""


def processor_seconds(arguments: list[str], url: str = "", rounds: int = 7) -> float:
    """Return the median processor time, in seconds, of a fresh interpreter with these arguments."""
    environment = {**COMPILING, "DURABLE_SWARM_DATABASE_URL": url}
    subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    times = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times)


def print_starts(url: str) -> None:
    """Print the processor time of each start, and its ratio to importing click and pydantic."""
    subprocess.run([sys.executable, "-c", RUNS], check=True, env={**COMPILING, "URL": url})
    bare = processor_seconds(["-c", "pass"])
    taken = {name: processor_seconds(arguments, url) - bare for name, arguments in STARTS.items()}
    both = taken["import click"] + taken["import pydantic"]
    for name, seconds in taken.items():
        print(f"{name}: {seconds:.3f} s of CPU beyond the interpreter's, {seconds / both:.1f}x click + pydantic")


def print_cold(folder: Path, database: str | None, rounds: int = 5) -> None:
    """Print the time from the start of a process to its first request to the provider, ours beside one by hand."""
    asked: list[float] = []

    def reply(_request: dict[str, Any]) -> str:
        asked.append(time.time())
        return "Hello"

    cold: dict[str, list[float]] = {"ours": [], "DBOS by hand": []}
    with serve_scripted(reply) as server:
        provider = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": server.api_key}
        for index in range(rounds + 1):
            for title, program in (("ours", OURS), ("DBOS by hand", BY_HAND)):
                url = database or f"sqlite:///{folder / f'cold-{title}-{index}.sqlite'}"
                asked.clear()
                begun = time.time()
                environment = {**COMPILING, **provider, "URL": url}
                subprocess.run([sys.executable, "-c", program], check=True, env=environment)
                cold[title].append((asked[0] - begun) * 1000)
    taken = {title: statistics.median(times[1:]) for title, times in cold.items()}
    for title, milliseconds in taken.items():
        ratio = milliseconds / taken["DBOS by hand"]
        print(f"cold start to first request, {title}: {milliseconds:.0f} ms, {ratio:.2f}x by hand")


def restart_ms(url: str, tool: str, how: str, run: str) -> tuple[float, float]:
    """Kill a run in its fourth model call.

    Returns the milliseconds from the restart's imports, and from the kill, to that call made again.
    """
    environment = {**COMPILING, "URL": url, "RUN": run}
    command = [sys.executable, "-c", PROGRAM]
    first = subprocess.Popen([*command, "die", tool, "named"], env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    killed = time.time()
    first.wait()
    second = subprocess.run([*command, "live", tool, how], env=environment, capture_output=True, text=True, check=True)
    imported, asked = map(float, second.stdout.splitlines()[0].split())
    return (asked - imported) * 1000, (asked - killed) * 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print_starts(options.database or f"sqlite:///{Path(folder) / 'starts.sqlite'}")
        print_cold(Path(folder), options.database)
        for tool in ("stepped", "plain"):
            for how in ("named", "by itself"):
                times = []
                for index in range(5):
                    name = f"{tool}-{how}-{index}"
                    url = options.database or f"sqlite:///{Path(folder) / f'{name}.sqlite'}"
                    times.append(restart_ms(url, tool, how.split()[0], f"{name}-{time.time()}"))
                imports, kill = (statistics.median(column) for column in zip(*times, strict=True))
                print(f"next model call, {tool} tools, continued {how}: {imports:.0f} ms, from the kill {kill:.0f} ms")


if __name__ == "__main__":
    main()
