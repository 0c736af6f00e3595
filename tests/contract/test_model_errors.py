"""Model calls that fail: what is tried again, and what the program gets in the end."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import openai
import pytest

from durable_swarm import Agent, ModelError
from durable_swarm.testing import ProviderError, ScriptedModel
from tests.contract.helpers import (
    MakeSwarm,
    Run,
    async_mock_client,
    completion,
    mock_client,
    roles,
    tool_contents,
    user,
)

TRANSIENT = {
    "rate limit": ProviderError("slow down", status_code=429, retry_after=0),
    "server error": ProviderError("oops", status_code=500, retry_after=0),
    "overloaded": ProviderError("busy", status_code=503, retry_after=0),
    "lost connection of openai": openai.APIConnectionError(request=MagicMock()),
    "timeout of openai": openai.APITimeoutError(request=MagicMock()),
    "lost connection": ConnectionResetError("reset by peer"),
}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient_errors_are_tried_again(make_swarm: MakeSwarm, kind: str) -> None:
    """After a failure that may pass the same request is made again, and the run does not show it."""
    model = ScriptedModel([TRANSIENT[kind], "Hello"])
    response = make_swarm(model).run(Agent(), user())
    assert [message["content"] for message in response.messages] == ["Hello"]
    assert len(model.calls) == 2
    assert model.calls[0] == model.calls[1]


@pytest.mark.parametrize("client", [mock_client, async_mock_client])
def test_transient_errors_on_all_faces(make_swarm: MakeSwarm, run: Run, client: Any) -> None:
    """Sync and async clients are tried again on both faces."""
    model = client(ProviderError("slow down", status_code=429, retry_after=0), completion("Hello"))
    assert run(make_swarm(model), Agent(), user()).messages[-1]["content"] == "Hello"
    assert model.chat.completions.create.call_count == 2


def test_tools_are_not_called_again_by_a_retry(make_swarm: MakeSwarm, run: Run) -> None:
    """A failure in the second turn repeats that model call only."""
    made: list[str] = []

    def note() -> str:
        made.append("noted")
        return "noted"

    model = ScriptedModel([["note"], ProviderError("busy", status_code=503, retry_after=0), "Done"])
    response = run(make_swarm(model), Agent(functions=[note]), user())
    assert roles(response) == ["assistant", "tool", "assistant"]
    assert tool_contents(response) == ["noted"]
    assert made == ["noted"]
    assert len(model.calls) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusals_are_not_tried_again(make_swarm: MakeSwarm, status: int) -> None:
    """A refusal that will not change ends the run at once, with the status in the error."""
    model = ScriptedModel([ProviderError("not like this", status_code=status), "never"])
    with pytest.raises(ModelError, match="not like this") as caught:
        make_swarm(model).run(Agent(), user())
    assert caught.value.status == status
    assert caught.value.error_type == "ProviderError"
    assert caught.value.tries == 1
    assert len(model.calls) == 1


def test_retries_are_spent(make_swarm: MakeSwarm, run: Run) -> None:
    """A failure that stays ends the run, with its status and the number of tries in the error."""
    model = ScriptedModel([ProviderError("slow down", status_code=429, retry_after=0)] * 50)
    with pytest.raises(ModelError, match="slow down") as caught:
        run(make_swarm(model), Agent(), user())
    assert caught.value.status == 429
    assert caught.value.tries == len(model.calls)
    assert 1 < len(model.calls) < 50


@pytest.mark.parametrize("in_session", [False, True], ids=["run", "session"])
def test_a_run_waits_as_long_as_it_is_told(make_swarm: MakeSwarm, in_session: bool) -> None:
    """A run that was given patience waits for a provider that is away, after the client's own retries."""
    model = ScriptedModel([*[ProviderError("busy", status_code=503, retry_after=0.01)] * 10, "Hello"])
    swarm, name = make_swarm(model), f"patient-{in_session}"
    if in_session:
        response = swarm.session(name, Agent(name=name)).run("Hi", provider_patience=60)
    else:
        response = swarm.run(Agent(name=name), user(), provider_patience=60)
    assert response.messages[-1]["content"] == "Hello"
    assert len(model.calls) == 11


def test_the_original_error_is_shown_as_the_cause(make_swarm: MakeSwarm) -> None:
    """A `ModelError` in the process where it arose has the client's own error as its cause."""
    refusal = ProviderError("not like this", status_code=400)
    with pytest.raises(ModelError) as caught:
        make_swarm(ScriptedModel([refusal])).run(Agent(), user())
    assert caught.value.__context__ is refusal


def test_empty_choices_are_tried_again(make_swarm: MakeSwarm, run: Run) -> None:
    """An answer without choices, as overloaded gateways give, is no answer: the request is made again."""
    empty = completion("unused")
    empty.choices = []
    client = mock_client(empty, completion("Hello"))
    response = run(make_swarm(client), Agent(), user())
    assert [message["content"] for message in response.messages] == ["Hello"]
    assert client.chat.completions.create.call_count == 2


def test_an_error_of_the_program_passes(make_swarm: MakeSwarm, run: Run) -> None:
    """An exception of the client that does not speak of the provider reaches the caller as it is, at once."""
    client = mock_client(ZeroDivisionError("in the client"), completion("never"))
    with pytest.raises(ZeroDivisionError, match="in the client"):
        run(make_swarm(client), Agent(), user())
    assert client.chat.completions.create.call_count == 1


def test_the_swarm_is_usable_after_a_model_error(make_swarm: MakeSwarm, run: Run) -> None:
    """A run that a refusal ended does not hinder the next."""
    swarm = make_swarm(ScriptedModel([ProviderError("no", status_code=400), "Hello"]))
    with pytest.raises(ModelError):
        run(swarm, Agent(), user())
    assert run(swarm, Agent(), user()).messages[-1]["content"] == "Hello"
