"""Programs whose main thread ends while other threads wait for runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

WAITS = {
    "result": "handle.result()",
    "result_async": "asyncio.run(handle.result_async())",
    "events": "list(handle.events())",
    "events_async": "asyncio.run(read(handle))",
    "run_async": "asyncio.run(swarm.run_async(agent, messages, run_id='queued'))",
    "run": "swarm.run(agent, messages, run_id='queued')",
    "stream": "list(swarm.run(agent, messages, run_id='queued', stream=True))",
    "stream_async": "asyncio.run(stream())",
}
PROGRAM = """
    import asyncio, sys, threading, time
    from durable_swarm import Agent, DurableSwarm, DurableSwarmError
    from durable_swarm.testing import ScriptedModel

    agent, messages = Agent(name="Clerk"), [{"role": "user", "content": "Go."}]
    swarm = DurableSwarm(ScriptedModel(["Done."]), database="sqlite:///runs.sqlite")
    handle = swarm.start(agent, messages, run_id="queued", queue=True)  # No worker is there to take it.

    async def read(handle):
        return [event async for event in handle.events_async()]

    async def stream():
        return [item async for item in swarm.run_async(agent, messages, run_id="queued", stream=True)]

    def wait():
        try:
            WAIT
        except DurableSwarmError as error:
            print("the thread got", type(error).__mro__[1].__name__)

    threading.Thread(target=wait).start()
    time.sleep(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", WAITS)
def test_a_program_that_has_ended_waits_for_no_run(way: str, tmp_path: Path) -> None:
    """A thread that waits for a run which others are to execute gets an error when the program ends, and it ends."""
    program = textwrap.dedent(PROGRAM).replace("WAIT", WAITS[way])
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=40
    )
    assert (ended.returncode, ended.stdout) == (0, "the thread got ConfigurationError\n"), ended.stderr
