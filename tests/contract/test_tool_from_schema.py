"""Tools whose JSON schema is given and not read off a signature."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, current_call, step, tool_from_schema
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import MakeSwarm, Run, tool_contents, user

SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "what to look for"},
        "page-size": {"type": "integer", "minimum": 1},
        "sort": {"$ref": "#/$defs/Sort"},
    },
    "required": ["query"],
    "additionalProperties": False,
    "$defs": {"Sort": {"enum": ["new", "old"]}},
}


def search(**arguments: Any) -> str:
    return str(sorted(arguments.items()))


def test_the_schema_is_sent_and_arguments_come_as_keywords(make_swarm: MakeSwarm, run: Run) -> None:
    """The model gets the schema as it was given; the function what the model said, odd names too."""
    model = ScriptedModel([[("find", {"query": "x", "page-size": 3})], "Done"])
    agent = Agent(functions=[tool_from_schema("find", "Find it.", SEARCH, search)])
    response = run(make_swarm(model), agent, user())
    told = model.calls[0]["tools"][0]["function"]
    assert told == {"name": "find", "description": "Find it.", "parameters": SEARCH}
    assert tool_contents(response) == ["[('page-size', 3), ('query', 'x')]"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "'query' is a required property"),
        ({"query": 5}, "query: 5 is not of type 'string'"),
        ({"query": "x", "page-size": 0}, "page-size: 0 is less than the minimum"),
        ({"query": "x", "sort": "best"}, "sort: 'best' is not one of"),
        ({"query": "x", "more": 1}, "'more' was unexpected"),
    ],
)
def test_arguments_that_do_not_fit_are_told(make_swarm: MakeSwarm, arguments: dict[str, Any], problem: str) -> None:
    """The model is told what is wrong and what is expected, and the function is not entered."""

    def never(**arguments: Any) -> str:
        raise AssertionError("entered")

    model = ScriptedModel([[("find", arguments)], "Done"], strict=False)
    agent = Agent(functions=[tool_from_schema("find", "Find it.", SEARCH, never)])
    (told,) = tool_contents(make_swarm(model).run(agent, user()))
    assert told.startswith("Error: The arguments for find do not fit")
    assert problem in told
    assert "query (string)" in told


def test_async_functions_and_what_tools_use(make_swarm: MakeSwarm, run: Run) -> None:
    """An async function knows its call, gets the context variables and has steps that are recorded."""

    @step
    async def save(text: str) -> str:
        await asyncio.sleep(0)
        return f"saved {text}"

    async def keep(text: str, context_variables: dict[str, Any]) -> str:
        context_variables["last"] = text
        return f"{await save(text)} by {current_call().tool}"

    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    agent = Agent(functions=[tool_from_schema("keep_it", "Keep.", schema, keep)])
    swarm = make_swarm(ScriptedModel([[call("keep_it", text="a")], "Done"]))
    response = run(swarm, agent, user())
    assert tool_contents(response) == ["saved a by keep_it"]
    assert response.context_variables == {"last": "a"}
    if isinstance(swarm, DurableSwarm):
        assert "save" in [made.name for made in swarm.get(response.run_id or "").steps()]


def test_approvals_by_rule(make_swarm: MakeSwarm) -> None:
    """A rule may ask for arguments that the schema names; `effect` is the tool's."""

    def pay(amount: int) -> str:
        return f"paid {amount}"

    schema = {"properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
    paying = tool_from_schema("pay", "Pay.", schema, pay, effect="once", approval=lambda amount: amount > 100)
    response = make_swarm(ScriptedModel([[call("pay", amount=5)], "Done"])).run(Agent(functions=[paying]), user())
    assert tool_contents(response) == ["paid 5"]
    with pytest.raises(ConfigurationError, match="approval asks for 'price'"):
        tool_from_schema("pay", "Pay.", schema, pay, approval=lambda price: True)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (None, "must be a JSON schema"),
        ({"type": "array"}, "must describe an object"),
        ({"properties": {"a": {"type": "text"}}}, "not a valid JSON schema: properties.a.type"),
        ({"properties": {"a": {"pattern": "("}}}, "not a valid JSON schema: properties.a.pattern"),
        ({"required": "a"}, "not a valid JSON schema: required"),
        ({"properties": {"a": {"$ref": "#/$defs/A"}}}, "refer to '#/\\$defs/A'"),
        ({"properties": {"a": {"$ref": "https://example.org/a.json"}}}, "refer to 'https"),
        ({"properties": {"a": {"default": object()}}}, "must be plain JSON"),
    ],
)
def test_schemas_that_are_none(parameters: Any, problem: str) -> None:
    """A schema that nobody could check arguments against is one clear error where the tool is made."""
    with pytest.raises(ConfigurationError, match=f"tool_from_schema: the parameters of 'find' .*{problem}"):
        tool_from_schema("find", "Find it.", parameters, search)


@pytest.mark.parametrize("name", ["find.it", "", "f" * 65, "größe"])
def test_names_that_no_provider_takes(name: str) -> None:
    """The name is checked where the tool is made."""
    with pytest.raises(ConfigurationError, match="1 to 64 letters"):
        tool_from_schema(name, "Find it.", SEARCH, search)
