"""What happens to very large values: each case in a process of its own, with its time and its peak memory.

Run: python benchmarks/sizes.py [DATABASE_URL] [--encrypt] [--huge] [--case NAME]. `--huge` adds values above a
gigabyte, which neither SQLite nor PostgreSQL stores; they need some ten gigabytes of memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, DurableSwarmError, step
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.testing import ScriptedModel, call

MB = 1_000_000
USER = [{"role": "user", "content": "Go on."}]


def give(size: int) -> str:
    """Give a text of so many bytes."""
    return "x" * size


@step
def give_as_step(size: int) -> str:
    """Give a text of so many bytes, as a step."""
    return "x" * size


def deepen(depth: int, context_variables: dict[str, Any]) -> str:
    """Nest lists in the context."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    context_variables["deep"] = value
    return "deep"


def keep(depth: Any) -> str:
    """Take whatever the model sends."""
    return "kept"


AGENT = Agent(name="Large", functions=[give, give_as_step, deepen, keep])


Case = tuple[list[Any], dict[str, Any]]
"""What the model says, and what `run` is given."""


def cases() -> dict[str, Callable[[], Case]]:
    """Give the cases by name."""
    nested = "[" * 10_000 + "]" * 10_000
    return {
        "tool result of 50 MB": lambda: ([[call("give", size=50 * MB)], "Done"], {}),
        "result of a @step tool of 50 MB": lambda: ([[call("give_as_step", size=50 * MB)], "Done"], {}),
        "context of 50 MB": lambda: (["Done"], {"context_variables": {"text": "x" * (50 * MB)}}),
        "message of 50 MB": lambda: (["Done"], {"messages": [{"role": "user", "content": "x" * (50 * MB)}]}),
        "reply of 50 MB": lambda: (["x" * (50 * MB)], {}),
        "history of a million messages": lambda: (
            ["Done"],
            {"messages": [{"role": "user", "content": f"message {number}"} for number in range(MB)]},
        ),
        "1,000 calls of a @step tool in a reply": lambda: ([[call("give_as_step", size=1)] * 1000, "Done"], {}),
        "1,000 calls of an undecorated tool in a reply": lambda: ([[call("give", size=1)] * 1000, "Done"], {}),
        "arguments nested 10,000 deep": lambda: ([[("keep", f'{{"depth": {nested}}}')], "Done"], {}),
        "context nested 90 deep": lambda: ([[call("deepen", depth=90)], "Done"], {}),
        "context nested 150 deep": lambda: ([[call("deepen", depth=150)], "Done"], {}),
    }


def huge() -> dict[str, Callable[[], Case]]:
    """Give the cases that no database takes."""
    return {
        "tool result of 1.1 GB": lambda: ([[call("give", size=1100 * MB)], "Done"], {}),
        "message of 1.1 GB": lambda: (["Done"], {"messages": [{"role": "user", "content": "x" * (1100 * MB)}]}),
    }


def perform(name: str, url: str, encrypt: bool) -> dict[str, Any]:
    """Perform a case: the run, and reading it back in a second opening."""
    logging.disable()
    replies, options = {**cases(), **huge()}[name]()
    codec = EncryptionCodec(new_key()) if encrypt else None
    found: dict[str, Any] = {"outcome": "works"}
    run_id = str(uuid.uuid4())
    begun = time.perf_counter()
    try:
        with DurableSwarm(ScriptedModel(replies, strict=False), database=url, codec=codec) as swarm:
            swarm.run(AGENT, **{"messages": USER, **options}, run_id=run_id)
        found["run"] = time.perf_counter() - begun
        begun = time.perf_counter()
        with DurableSwarm(ScriptedModel([]), database=url, codec=codec) as swarm:
            swarm.get(run_id).result()
        found["read"] = time.perf_counter() - begun
    except DurableSwarmError as error:
        found |= {"outcome": f"{type(error).__name__}: {error}"[:300], "run": time.perf_counter() - begun}
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--encrypt", action="store_true", help="with EncryptionCodec")
    parser.add_argument("--huge", action="store_true", help="values above a gigabyte too")
    parser.add_argument("--case", help="perform this one alone, and print JSON")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(perform(options.case, options.database, options.encrypt)))
        return
    print(f"{'case':48} {'run':>8} {'read':>8} {'memory':>9}")
    for name in {**cases(), **(huge() if options.huge else {})}:
        with tempfile.TemporaryDirectory() as folder:
            url = options.database or f"sqlite:///{Path(folder) / 'sizes.sqlite'}"
            command = [sys.executable, __file__, url, "--case", name, *(["--encrypt"] if options.encrypt else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:48} the process ended with {done.returncode}: {done.stderr.strip()[-200:]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        read = f"{found['read']:7.2f}s" if "read" in found else "       -"
        print(f"{name:48} {found['run']:7.2f}s {read} {found['memory']:6.0f} MB  {found['outcome']}")


if __name__ == "__main__":
    main()
