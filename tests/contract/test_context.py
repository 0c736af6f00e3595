"""Context variables: in instructions, in tools, and how their changes travel."""

from __future__ import annotations

from typing import Any

import pytest

from durable_swarm import Agent, Result
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, system_prompts, tool_contents, user


def test_instructions_get_the_context(make_swarm: MakeSwarm, run: Run) -> None:
    """Callable instructions are called with the context variables for every model call."""

    def instructions(context_variables: dict[str, Any]) -> str:
        return f"Help {context_variables['user_name']}, turn {context_variables['turn']}."

    def go_on() -> Result:
        return Result(value="ok", context_variables={"turn": 2})

    model = ScriptedModel([["go_on"], "Done"])
    agent = Agent(instructions=instructions, functions=[go_on])
    run(make_swarm(model), agent, user(), {"user_name": "John", "turn": 1})
    assert system_prompts(model.calls) == ["Help John, turn 1.", "Help John, turn 2."]


def test_missing_key_in_instructions_is_empty(make_swarm: MakeSwarm) -> None:
    """Instructions that ask for a variable that is not there get an empty string, and do not add it."""
    model = ScriptedModel(["Hello"])
    agent = Agent(instructions=lambda context: f"Help <{context['nobody']}>.")
    response = make_swarm(model).run(agent, user(), {"name": "Ada"})
    assert system_prompts(model.calls) == ["Help <>."]
    assert response.context_variables == {"name": "Ada"}


def test_instructions_without_parameter(make_swarm: MakeSwarm) -> None:
    """Callable instructions need not take the context variables."""
    model = ScriptedModel(["Hello"])
    make_swarm(model).run(Agent(instructions=lambda: "Be brief."), user(), {"name": "Ada"})
    assert system_prompts(model.calls) == ["Be brief."]


def test_instructions_that_raise_end_the_run(make_swarm: MakeSwarm, run: Run) -> None:
    """An exception in callable instructions is the program's own and reaches the caller as it is."""

    def instructions(context_variables: dict[str, Any]) -> str:
        raise LookupError("no such template")

    model = ScriptedModel([])
    with pytest.raises(LookupError, match="no such template"):
        run(make_swarm(model), Agent(instructions=instructions), user())
    assert model.calls == []


def test_tool_gets_the_context(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool with a parameter `context_variables` gets them beside the model's arguments, wherever it stands."""

    def greet(context_variables: dict[str, Any], language: str) -> str:
        greeting = "Hola" if language.lower() == "spanish" else "Hello"
        return f"{greeting}, {context_variables['user_name']}!"

    def leave(name: str, *, context_variables: dict[str, Any]) -> str:
        return f"{name} leaves {context_variables['user_name']}"

    calls = [("greet", {"language": "Spanish"}), ("leave", {"name": "Eve"})]
    agent = Agent(functions=[greet, leave])
    response = run(make_swarm(ScriptedModel([calls, "Done"])), agent, user(), {"user_name": "John"})
    assert tool_contents(response) == ["Hola, John!", "Eve leaves John"]


def test_context_is_hidden_from_the_model(make_swarm: MakeSwarm) -> None:
    """The model's schema of a tool does not show `context_variables`, as parameter or as required."""

    def greet(context_variables: dict[str, Any], language: str) -> str:
        return "Hello"

    model = ScriptedModel(["Hello"])
    make_swarm(model).run(Agent(functions=[greet]), user())
    parameters = model.calls[0]["tools"][0]["function"]["parameters"]
    assert parameters == {
        "type": "object",
        "properties": {"language": {"type": "string"}},
        "required": ["language"],
    }


def test_the_model_cannot_forge_the_context(make_swarm: MakeSwarm) -> None:
    """A `context_variables` among the model's arguments never reaches the tool."""
    seen: list[dict[str, Any]] = []

    def who(context_variables: dict[str, Any]) -> str:
        seen.append(dict(context_variables))
        return "known"

    forged = {"context_variables": {"user": "mallory"}}
    model = ScriptedModel([[("who", forged)], "Done"])
    response = make_swarm(model).run(Agent(functions=[who]), user(), {"user": "ada"})
    assert {"user": "mallory"} not in seen
    assert response.context_variables == {"user": "ada"}


def test_a_local_name_is_no_parameter(make_swarm: MakeSwarm) -> None:
    """A tool with a mere local variable called `context_variables` is called with the model's arguments only."""

    def count(text: str) -> str:
        context_variables = len(text)
        return str(context_variables)

    model = ScriptedModel([[("count", {"text": "four"})], "Done"])
    response = make_swarm(model).run(Agent(functions=[count]), user())
    assert tool_contents(response) == ["4"]


def test_result_updates_after_the_batch(make_swarm: MakeSwarm, run: Run) -> None:
    """What a Result says about the context is seen by the next turn, not by the next call of the same reply."""

    def choose() -> Result:
        return Result(value="chosen", context_variables={"colour": "red"})

    def look(context_variables: dict[str, Any]) -> str:
        return str(context_variables.get("colour"))

    model = ScriptedModel([["choose", "look"], ["look"], "Done"])
    response = run(make_swarm(model), Agent(functions=[choose, look]), user(), {"colour": "blue"})
    assert tool_contents(response) == ["chosen", "blue", "red"]
    assert response.context_variables == {"colour": "red"}


def test_later_result_wins(make_swarm: MakeSwarm) -> None:
    """Where several Results of one reply set the same variable, the last call's value stays; others are merged."""

    def choose(colour: str) -> Result:
        return Result(value=colour, context_variables={"colour": colour, colour: True})

    calls = [("choose", {"colour": "red"}), ("choose", {"colour": "green"})]
    response = make_swarm(ScriptedModel([calls, "Done"])).run(Agent(functions=[choose]), user(), {"kept": 1})
    assert response.context_variables == {"kept": 1, "red": True, "green": True, "colour": "green"}


def test_change_in_place_is_seen_by_the_next_call(make_swarm: MakeSwarm, run: Run) -> None:
    """What a tool changes in place is seen by the next call of the same reply, and kept."""

    def add(item: str, context_variables: dict[str, Any]) -> str:
        context_variables["cart"].append(item)
        context_variables["count"] = context_variables.get("count", 0) + 1
        return ", ".join(context_variables["cart"])

    calls = [("add", {"item": "tea"}), ("add", {"item": "milk"})]
    model = ScriptedModel([calls, [("add", {"item": "jam"})], "Done"])
    response = run(make_swarm(model), Agent(functions=[add]), user(), {"cart": []})
    assert tool_contents(response) == ["tea", "tea, milk", "tea, milk, jam"]
    assert response.context_variables == {"cart": ["tea", "milk", "jam"], "count": 3}


def test_removal_in_place_is_kept(make_swarm: MakeSwarm, run: Run) -> None:
    """A variable that a tool deletes is gone for the next call, the next turn and the response."""

    def forget(context_variables: dict[str, Any]) -> str:
        del context_variables["secret"]
        return "forgotten"

    def look(context_variables: dict[str, Any]) -> str:
        return str("secret" in context_variables)

    model = ScriptedModel([["look", "forget", "look"], ["look"], "Done"])
    context = {"secret": "x", "name": "Ada"}
    response = run(make_swarm(model), Agent(functions=[forget, look]), user(), context)
    assert tool_contents(response) == ["True", "forgotten", "False", "False"]
    assert response.context_variables == {"name": "Ada"}


def test_result_beats_a_change_in_place(make_swarm: MakeSwarm) -> None:
    """A variable set both in place and by the Result has the Result's value after the batch."""

    def choose(context_variables: dict[str, Any]) -> Result:
        context_variables["colour"] = "in place"
        return Result(value="chosen", context_variables={"colour": "by result"})

    def look(context_variables: dict[str, Any]) -> str:
        return str(context_variables["colour"])

    model = ScriptedModel([["choose", "look"], "Done"])
    response = make_swarm(model).run(Agent(functions=[choose, look]), user())
    assert tool_contents(response) == ["chosen", "in place"]
    assert response.context_variables == {"colour": "by result"}


def test_async_tools_of_one_reply_keep_all_changes(make_swarm: MakeSwarm, run: Run) -> None:
    """Async tools that run together and change different variables in place lose none of the changes."""

    async def mark(name: str, context_variables: dict[str, Any]) -> str:
        context_variables[name] = True
        return name

    calls = [("mark", {"name": "a"}), ("mark", {"name": "b"}), ("mark", {"name": "c"})]
    response = run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[mark]), user())
    assert response.context_variables == {"a": True, "b": True, "c": True}


def test_context_survives_handoffs(make_swarm: MakeSwarm) -> None:
    """The new agent's instructions and tools see the context as the old agent left it."""

    def to_second(context_variables: dict[str, Any]) -> Agent:
        context_variables["from"] = "first"
        return second

    def look(context_variables: dict[str, Any]) -> str:
        return str(context_variables["from"])

    second = Agent(name="Second", instructions=lambda context: f"Came from {context['from']}.", functions=[look])
    model = ScriptedModel([["to_second"], ["look"], "Done"])
    response = make_swarm(model).run(Agent(name="First", functions=[to_second]), user())
    assert system_prompts(model.calls)[1:] == ["Came from first.", "Came from first."]
    assert tool_contents(response)[1] == "first"
