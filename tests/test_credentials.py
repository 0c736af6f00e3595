"""Secrets in errors are masked by their kind: headers, assignments, credentials of HTTP, URLs, forms that are known."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from durable_swarm import Agent, DurableSwarm, RunFailed, credentials, step
from durable_swarm.cli import main
from durable_swarm.credentials import without_secrets
from durable_swarm.testing import ScriptedModel
from tests.support.patience import PATIENCE

SECRET = "canary7Qf"
BASIC = base64.b64encode(f"ada:{SECRET}".encode()).decode()
TOLD = [
    f"x-secret: {SECRET}",
    f"X-Vault-Token: {SECRET} was refused",
    f"Ocp-Apim-Subscription-Key: {SECRET}",
    f"authorization: {SECRET}",
    f"Proxy-Authorization: Basic {BASIC}",
    f"sent Basic {BASIC}",
    f"sent Bearer {SECRET}",
    f"{{'headers': {{'X-My-Key': '{SECRET}'}}}}",
    f"[(b'x-secret', b'{SECRET}')]",
    f'{{"client_secret": "{SECRET}"}}',
    f"https://h.example/p?a=1&api_key={SECRET}&b=2",
    f"https://h.example/p?token={SECRET}",
    f"connect(key={SECRET}, timeout=3)",
    f"apiKey: {SECRET}",
    f"AccountKey={SECRET};EndpointSuffix=x",
    f"PGPASSWORD={SECRET}",
    f"--token {SECRET}1",
    f"postgresql://ada:{SECRET}@h/db",
    f"redis://:p@{SECRET}@h:6379",
    f"https://{SECRET}@github.com/x",
    f"sk-proj-{SECRET}",
    f"set-cookie: session={SECRET}",
]
PLAIN = [
    "KeyError: 'price'",
    "max_tokens=8 is too small; prompt_tokens: 30",
    "Basic authentication failed",
    "Bearer of bad news; Bearer token is missing",
    "invalid token: }",
    "sorted(rows, key=lambda row: row.n)",
    "missing key: name",
    "def look(key: str, token: str)",
    "postgresql://ada@h/db",
    "keyword=3, monkey: 5, keys=2",
]


@pytest.mark.parametrize("text", TOLD)
def test_a_secret_is_masked_by_its_kind(text: str) -> None:
    """What a name, a scheme, a URL or its own form marks as a secret is masked."""
    masked = without_secrets(text)
    assert SECRET not in masked
    assert BASIC not in masked
    assert "***" in masked


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_stays(text: str) -> None:
    """Words of errors that only resemble a secret's name stay readable."""
    assert without_secrets(text) == text


def test_secrets_of_a_client() -> None:
    """What a client sends is masked, wherever a provider repeats it: key, own headers, the password of its URL."""
    with openai.OpenAI(
        api_key="key-of-client-1",
        base_url=f"http://ada:{SECRET}@127.0.0.1:9/v1",
        default_headers={"X-Own": "own-9-value"},
    ) as client:
        credentials.remember(client)
    masked = without_secrets(f"you sent key-of-client-1, own-9-value, {SECRET} and {BASIC}")
    assert masked == "you sent ***, ***, *** and ***"


@step
def in_step() -> str:
    """Fail in a step."""
    raise ValueError(f"the server answered: x-secret: {SECRET}")


def around() -> str:
    """Call the step."""
    return in_step()


def plain() -> str:
    """Fail in the tool."""
    raise LookupError(f"no answer from https://h.example/?api_key={SECRET}")


@pytest.mark.parametrize("tool", [in_step, around, plain])
def test_no_record_holds_it(tool: Callable[[], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the database nor any command shows a secret that a tool's or a step's exception repeats."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    name = str(getattr(tool, "__name__", ""))
    with DurableSwarm(ScriptedModel([[name]]), database=url) as swarm:
        with pytest.raises((ValueError, LookupError)):
            swarm.run(Agent(functions=[tool]), [{"role": "user", "content": "Go"}], run_id="r")
        with pytest.raises(RunFailed) as told:
            swarm.get("r").result(PATIENCE)
        assert SECRET not in str(told.value) + told.value.traceback
        assert SECRET not in json.dumps([event.data for event in swarm.get("r").events()])
    for command in (("show", "r"), ("show", "r", "--json"), ("watch", "r"), ("runs",)):
        main([*command, "--database", url])
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert [path for path in tmp_path.iterdir() if SECRET.encode() in path.read_bytes()] == []
