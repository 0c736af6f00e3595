"""What encryption costs per turn: the same runs with and without `EncryptionCodec`, alternating in one process.

A turn is one model call and one `@step` tool call whose result has the given size. Prints the ratio of the medians.
Run: python benchmarks/encryption.py [DATABASE_URL] [--turns 50] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.redaction import Redacting
from durable_swarm.testing import ScriptedModel, call

USER = [{"role": "user", "content": "Go on until you are done."}]
SIZES = {"100 bytes": 100, "10 kB": 10_000, "1 MB": 1_000_000}


def scripted(turns: int, size: int) -> ScriptedModel:
    """Give a model that calls the tool once a turn and then says goodbye."""

    def reply(request: dict[str, Any]) -> Any:
        done = sum(message["role"] == "assistant" for message in request["messages"])
        return [call("fetch", size=size)] if done < turns else "Goodbye."

    return ScriptedModel(reply, strict=False)


@step
def fetch(size: int) -> str:
    """Fetch a text."""
    return "x" * size


def measure(url: str, size: int, turns: int, rounds: int) -> dict[str, float]:
    """Give the milliseconds of a turn, the median of the rounds, by codec."""
    agent, encryption = Agent(name="Bench", functions=[fetch]), EncryptionCodec(new_key())
    codecs: dict[str, Any] = {
        "no codec": None,
        "encrypted": encryption,
        "redacted, encrypted": Redacting([r"sk-\w{20,}", r"\b\d{16}\b"], encryption),
    }
    swarms = {
        name: DurableSwarm(scripted(turns, size), database=url, name=name.replace(", ", "-"), codec=codec)
        for name, codec in codecs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in swarms}
    for _ in range(rounds + 1):
        for name, swarm in swarms.items():
            begun = time.perf_counter()
            swarm.run(agent, USER)
            times[name].append((time.perf_counter() - begun) / turns * 1000)
    for swarm in swarms.values():
        swarm.close()
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    for label, size in SIZES.items():
        turns = options.turns if size < 1_000_000 else max(options.turns // 10, 1)
        with tempfile.TemporaryDirectory() as folder:
            url = options.database or f"sqlite:///{Path(folder) / 'bench.sqlite'}"
            medians = measure(url, size, turns, options.rounds)
        print(f"{url.split(':')[0]}, results of {label}, {turns} turns, median of {options.rounds} alternating rounds")
        for name, value in medians.items():
            print(f"  {name:20} {value:7.2f} ms a turn   {value / medians['no codec']:5.2f}x")


if __name__ == "__main__":
    main()
