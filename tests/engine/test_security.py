"""Secrets stay out: of the database file, its log, errors, and everything that is logged."""

from __future__ import annotations

import asyncio
import base64
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from durable_swarm import Agent, DurableSwarm, ModelError, step
from durable_swarm.cli import main
from durable_swarm.encryption import new_key
from durable_swarm.testing import ScriptedModel, ScriptedServer, http_error, serve_scripted
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, stored_texts, unique, user

ENVIRONMENT_KEY = "canary-env-9f31"
CLIENT_KEY = "canary-client-77aa"
HEADER = "canary-header-c0de"
CANARIES = [ENVIRONMENT_KEY, CLIENT_KEY, HEADER]


class Customer:
    """An object of the program with a secret in it."""

    def __init__(self, password: str) -> None:
        self.password = password

    def greet(self, name: str) -> str:
        """Greet somebody, a bound method as a tool."""
        return f"Hello {name}"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A provider to which the environment points."""
    with serve_scripted([[("greet", {"name": "Ada"}), ("note", {})], "Done"]) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", ENVIRONMENT_KEY)
        yield running


@step
def note() -> str:
    """Note something."""
    return "noted"


def assert_clean(folder: Path, *texts: str) -> None:
    """Check that no canary stands in any file of the folder, or in the texts, as it is or in base64."""
    found = {path.name: path.read_bytes() for path in folder.glob("runs.sqlite*")}
    assert len(found["runs.sqlite"]) > 1000
    found |= {f"text {number}": text.encode() for number, text in enumerate(texts)}
    for canary in CANARIES:
        for spelled in (canary.encode(), base64.b64encode(canary.encode())[2:-4], canary.encode("utf-16-le")):
            assert [name for name, content in found.items() if spelled in content] == []


@pytest.mark.parametrize("client", ["of the environment", "given", "given, async"])
def test_secrets_of_a_good_run(
    provider: ScriptedServer, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, client: str
) -> None:
    """Keys, headers, the client itself and objects behind the tools reach neither the database nor the log."""
    caplog.set_level(logging.DEBUG)
    options: dict[str, Any] = {"api_key": CLIENT_KEY, "default_headers": {"X-Secret": HEADER}}
    kinds: dict[str, Any] = {"given": openai.OpenAI, "given, async": openai.AsyncOpenAI}
    made: Any = kinds[client](**options) if client in kinds else None
    customer = Customer("canary-object")
    agent = Agent(functions=[customer.greet, note], model_settings={"extra_headers": {"X-More": HEADER}})

    async def run(swarm: DurableSwarm) -> None:
        await swarm.run_async(agent, user(), run_id="r")
        if client == "given, async":
            await made.close()

    with DurableSwarm(made, database=url) as swarm:
        if client == "given":
            swarm.run(agent, user(), run_id="r")
            made.close()
        else:
            asyncio.run(run(swarm))
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"
        told = repr(swarm.get("r").steps()) + repr(swarm.get("r").messages()) + repr(swarm)
        assert "canary-object" not in (tmp_path / "runs.sqlite-wal").read_bytes().decode("latin1")
        assert_clean(tmp_path, told, _logged(caplog))
    assert_clean(tmp_path)


def _logged(caplog: pytest.LogCaptureFixture) -> str:
    """Give what this package and DBOS logged; the HTTP library's own debug log is not ours."""
    ours = [record for record in caplog.records if record.name.startswith(("durable_swarm", "dbos"))]
    return "\n".join(record.getMessage() + (record.exc_text or "") for record in ours)


@pytest.mark.parametrize("given", [False, True])
def test_secrets_of_a_failed_run(
    provider: ScriptedServer, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    """A key that the provider repeats in its refusal reaches neither the error nor the traceback nor the database."""
    caplog.set_level(logging.DEBUG)
    key = CLIENT_KEY if given else ENVIRONMENT_KEY
    refusal = http_error(401, f"Incorrect API key provided: {key}. You sent 'Authorization: Bearer {key}'")
    provider.inject(refusal, refusal)  # Nothing is recorded of the first one, so the second start asks again.
    client = openai.OpenAI(api_key=CLIENT_KEY) if given else None
    with DurableSwarm(client, database=url) as swarm:
        with pytest.raises(ModelError, match="Incorrect API key provided") as caught:
            swarm.run(Agent(name=unique(), functions=[note]), user(), run_id="r")
        assert_clean(tmp_path, "".join(traceback.format_exception(caught.value)), _logged(caplog))
    with DurableSwarm(client, database=url) as swarm, pytest.raises(ModelError) as later:
        swarm.get("r").result(PATIENCE)
    assert_clean(tmp_path, str(later.value))
    if client is not None:
        client.close()


@pytest.mark.parametrize("tool_errors", ["raise", "tell"])
def test_secrets_in_a_tools_exception(provider: ScriptedServer, url: str, tmp_path: Path, tool_errors: str) -> None:
    """The key in the text of a tool's exception reaches neither the database nor the model."""

    def greet(name: str) -> str:
        raise ConnectionError(f"refused: api key {ENVIRONMENT_KEY}")

    def note() -> str:
        raise LookupError(f"header was Authorization: Bearer {ENVIRONMENT_KEY}")

    with DurableSwarm(database=url, tool_errors=tool_errors) as swarm:
        agent = Agent(functions=[greet, note])
        if tool_errors == "raise":
            with pytest.raises(ConnectionError):
                swarm.run(agent, user())
        else:
            response = swarm.run(agent, user())
            assert response.messages[1]["content"] == "Error: ConnectionError: refused: api key ***"
            assert ENVIRONMENT_KEY not in str(provider.requests[1].body)
        assert_clean(tmp_path)


def test_values_of_statements_are_not_logged(
    provider: ScriptedServer, url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing of what users say and tools return is logged or printed by an ordinary run."""
    caplog.set_level(logging.DEBUG)
    with DurableSwarm(database=url) as swarm:
        swarm.run(Agent(functions=[Customer("x").greet, note]), user("private words"))
    assert "private words" not in _logged(caplog)
    assert "Hello Ada" not in _logged(caplog)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


DATABASE_PASSWORD = "canary-password-5b1d"
ENCRYPTION_KEY = new_key()


def test_secrets_of_the_environment_in_an_exception(
    make: Make,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Encryption keys and the passwords of URLs in a tool's exception reach no file, no log and no output."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", ENCRYPTION_KEY)

    def connect(context_variables: dict[str, Any]) -> str:
        context_variables["key"] = "kept"
        raise ConnectionError(f"postgresql://ada:{DATABASE_PASSWORD}@host/db with {ENCRYPTION_KEY}")

    with make(ScriptedModel([["connect"]])) as swarm, pytest.raises(ConnectionError):
        swarm.run(Agent(name=unique(), functions=[connect]), user(), run_id="r")
    for options in (["r"], ["r", "--json"]):
        assert main(["show", *options, "--database", url]) == 0
    shown = capsys.readouterr()
    assert "postgresql://ada:***@host/db with ***" in shown.out
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("runs.sqlite*"))
    for secret in (DATABASE_PASSWORD, ENCRYPTION_KEY):
        assert secret not in shown.out + shown.err + _logged(caplog)
        assert secret.encode() not in stored


def test_only_the_context_is_stored_of_a_program(make: Make, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment, nor instructions, nor settings of the model, nor what a closure holds is stored."""
    canaries = {name: f"canary-{name}-71" for name in ("environment", "instructions", "settings", "closure", "global")}
    monkeypatch.setenv("SOME_TOKEN", canaries["environment"])
    monkeypatch.setitem(globals(), "SOME_GLOBAL", canaries["global"])
    held = canaries["closure"]

    def look() -> str:
        return str(len(held))

    settings = {"extra_headers": {"X": canaries["settings"]}}
    agent = Agent(name=unique(), functions=[look], instructions=canaries["instructions"], model_settings=settings)
    with make(ScriptedModel([["look"], "Done"])) as swarm:
        swarm.run(agent, user("hello there"))
    texts = "\n".join(stored_texts(url))
    assert "hello there" in texts
    assert [name for name, canary in canaries.items() if canary in texts] == []
