"""Starting up: imports and commands, a first run beside a DBOS program written by hand, and a restart after a kill.

All modules are compiled before anything is measured, also with PYTHONDONTWRITEBYTECODE set, as an installation does.

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
import os, time
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel

def reply(request):
    print(time.time(), flush=True)
    return "Hello"

DurableSwarm(ScriptedModel(reply), database=os.environ["URL"]).run(Agent(name="A"), [{"role": "user", "content": "Hi"}])
"""
BY_HAND = """
import os, time
from dbos import DBOS
from durable_swarm.testing import ScriptedModel

def reply(request):
    print(time.time(), flush=True)
    return "Hello"

client = ScriptedModel(reply)
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


def cold_ms(program: str, url: str) -> float:
    """Return the milliseconds from the start of a process to its first model call."""
    begun = time.time()
    child = subprocess.Popen(
        [sys.executable, "-c", program], env={**COMPILING, "URL": url}, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    asked = float(child.stdout.readline())
    child.wait()
    return (asked - begun) * 1000


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
        for title, program in (("ours", OURS), ("DBOS by hand", BY_HAND)):
            urls = [options.database or f"sqlite:///{Path(folder) / f'{title}-{index}.sqlite'}" for index in range(6)]
            cold = [cold_ms(program, url) for url in urls]
            print(f"cold start to first model call, {title}: {statistics.median(cold[1:]):.0f} ms")
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
