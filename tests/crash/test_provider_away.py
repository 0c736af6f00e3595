"""Programs and workers killed while their provider is away: what they wait for afterwards, and what is asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from durable_swarm import Agent, DurableSwarm, ModelError
from durable_swarm.testing import ScriptedServer, http_error, rate_limited, serve_scripted
from tests.crash.lives import Lives
from tests.crash.workers import Workers
from tests.engine.helpers import change, rows, unique, user, wait_until
from tests.support.patience import PATIENCE

RUN = "run-away"
FAR = 3600


class Provider:
    """A provider over HTTP that is away until it is back."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.retry_after = FAR
        self.server: ScriptedServer = serve_scripted(self._reply)

    def _reply(self, request: dict[str, object]) -> object:
        if self.back.is_set():
            return "Hello"
        return rate_limited(self.retry_after) if self.retry_after else http_error(503)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that is away."""
    found = Provider()
    with found.server:
        yield found


def program(url: str, base_url: str, name: str, colour: str, patience: float) -> str:
    """Ask one question, and return the answer, or the error in words."""
    make = openai.OpenAI if colour == "sync" else openai.AsyncOpenAI
    swarm = DurableSwarm(make(base_url=base_url, api_key="sk-test", max_retries=0), database=url)
    try:
        return str(swarm.run(Agent(name=name), user(), run_id=RUN, provider_patience=patience).messages[-1]["content"])
    except ModelError as error:
        return str(error)


def waits_in(url: str) -> str:
    """Return what the run waits for, as a process sees it that executes nothing; '' if it does not wait."""
    from durable_swarm.service import open_runs

    with open_runs(url) as runs:
        found = runs.view(RUN)
        return str(found.waits_for) if found.status == "waiting" else ""


def try_now(url: str) -> None:
    """Make the next try due."""
    change(url, "UPDATE {schema}durable_swarm_outages SET next_at = 1 WHERE elected = ''")


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_killed_program_waits_on(
    colour: str, lives: Lives, provider: Provider, tmp_path: Path, database_url: str
) -> None:
    """Killed in an outage and started again, a program waits since and until the same time, and asks once more."""
    task = program, database_url, provider.server.base_url, unique(), colour, FAR
    life = lives.start(*task, ledger=tmp_path / "ledger")
    wait_until(lambda: rows(database_url, "next_at", "durable_swarm_outages"), 45)
    told = wait_until(lambda: waits_in(database_url))
    life.kill()
    assert waits_in(database_url) == told
    again = lives.start(*task, ledger=tmp_path / "ledger")
    wait_until(lambda: [row[0] for row in rows(database_url, "status")] == ["PENDING"])
    assert len(provider.server.calls) == 1
    provider.back.set()
    try_now(database_url)
    assert again.end().value == "Hello"
    assert len(provider.server.calls) == 2


def test_patience_counts_from_the_first_failure(
    lives: Lives, provider: Provider, tmp_path: Path, database_url: str
) -> None:
    """A program that is started again when its patience is over fails at once, without another try."""
    task = program, database_url, provider.server.base_url, unique(), "sync", FAR
    life = lives.start(*task, ledger=tmp_path / "ledger")
    wait_until(lambda: rows(database_url, "next_at", "durable_swarm_outages"), 45)
    wait_until(lambda: waits_in(database_url))
    life.kill()
    noted = "attributes" if database_url.startswith("sqlite") else "attributes::text"
    found = str(rows(database_url, noted)[0][0])
    earlier = re.sub(r"(?<=\"since\":)\s*\d+", lambda at: str(int(at[0]) - 2 * FAR * 1000), found)
    cast = ":notes" if database_url.startswith("sqlite") else "CAST(:notes AS jsonb)"
    change(database_url, f"UPDATE {{schema}}workflow_status SET attributes = {cast}", notes=earlier)
    told = lives.live(*task, ledger=tmp_path / "ledger").value
    assert "was away for 72" in told
    assert "provider_patience" in told
    assert len(provider.server.calls) == 1


APP = """
    import openai, os
    from durable_swarm import Agent, DurableSwarm

    clerk = Agent(name="AwayClerk")
    swarm = DurableSwarm(openai.OpenAI(base_url=os.environ["BASE"], api_key="sk-test", max_retries=0))
"""


def test_workers_killed_in_an_outage_stampede_nobody(provider: Provider, database_url: str) -> None:
    """Two workers wait for a provider, one is killed and another started: each run asks once when it is back."""
    count, environment = 12, {"BASE": provider.server.base_url}
    workers = Workers(database_url, APP)
    try:
        first, _ = [workers.start("app:swarm", "--concurrency", "4", **environment) for _ in range(2)]
        with DurableSwarm(database=database_url) as swarm:
            runs = [swarm.enqueue("AwayClerk", user(), run_id=f"w{number}") for number in range(count)]
            wait_until(lambda: len(swarm.runs("waiting")) == count, 60)
            tried = len(provider.server.calls)
            assert tried <= 8
            workers.kill(first)
            workers.start("app:swarm", "--concurrency", "4", **environment)
            provider.back.set()
            try_now(database_url)
            assert [run.result(PATIENCE).messages[-1]["content"] for run in runs] == ["Hello"] * count
        assert len(provider.server.calls) == tried + count
    finally:
        workers.end()
