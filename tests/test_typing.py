"""What a type checker makes of a user's program: plain programs stay clean, and outputs have their agents' types."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
from typing import Any, Literal

from pydantic import BaseModel

from durable_swarm import Agent, DurableSwarm, Response, Result, Run, Swarm


class Refund(BaseModel):
    amount: int


class Named(Agent):
    region: str = "EU"


def transfer() -> Agent:
    return refunds


def result(context_variables: dict[str, Any]) -> Result:
    return Result(value="done", agent=refunds)


plain = Agent(name="Plain", functions=[transfer], model_settings={"seed": 1})
refunds = Agent(name="Refunds", output_type=Refund, output_retries=3)
many = Agent(name="Many", output_type=list[Refund])
either = Agent(name="Either", output_type=Refund | None)
choice = Agent(name="Choice", output_type=Literal["yes", "no"])
named = Named(name="Named", region="US")
plain.functions.append(result)
plain.output_type = Refund
agents: list[Agent] = [plain, refunds, many, either, choice, named]
messages = [{"role": "user", "content": "Hi"}]


def ask(swarm: Swarm, agent: Agent, flag: bool) -> str:
    response: Response = swarm.run(agent, messages)
    swarm.run(agent, messages, stream=flag)
    return str(response.messages[-1]["content"])


async def ask_async(swarm: DurableSwarm) -> None:
    reveal_type((await swarm.run_async(refunds, messages)).output)
    run: Run = await swarm.start_async(many, messages)
    reveal_type(await run.result_async())
    reveal_type(run.output(Refund))
    reveal_type(run.output())


reveal_type(Swarm().run(refunds, messages).output)
reveal_type(Swarm().run(many, messages, max_turns=3).output)
reveal_type(Swarm().run(either, messages).output)
reveal_type(Swarm().run(plain, messages).output)
reveal_type(Swarm().run(plain, messages))
reveal_type(Swarm().run(plain, messages, stream=True))
reveal_type(Swarm().run(object(), messages))
"""

REVEALED = [
    "app.Refund | None",
    "durable_swarm.types.Response[Any]",
    "app.Refund | None",
    "Any",
    "app.Refund | None",
    "list[app.Refund] | None",
    "app.Refund | None",
    "Any | None",
    "durable_swarm.types.Response[Any]",
    "typing.Iterator[dict[str, Any]]",
    "durable_swarm.types.Response[Any]",
]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_users_program_is_clean_and_typed(tmp_path: Path) -> None:
    """`mypy --strict` finds nothing in a program, and knows the type of an output where the agent's type says it."""
    (tmp_path / "app.py").write_text(PROGRAM)
    # The cache of `make check`, where there is one, saves reading the package once more.
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "app.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.findall(r'Revealed type is "(.*)"', checked.stdout) == REVEALED
