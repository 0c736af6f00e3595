"""Answers as values of a type: asked for, checked, sent back to the model if they do not fit."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from durable_swarm import Agent, ConfigurationError, InvalidOutput, Response
from durable_swarm.testing import AsyncScriptedModel, ScriptedModel, cut_off
from tests.contract.helpers import MakeSwarm, Run, roles, tool_contents, user
from tests.engine.helpers import unique

GOOD = '{"amount": 3, "reason": "broken"}'
MISFITS: dict[str, Any] = {
    "no JSON": "I refund three.",
    "broken": '{"amount": 3,, "reason": "broken"}',
    "half": '{"amount": 3, "rea',
    "extra text": f"Here you are: {GOOD}",
    "wrong type": '{"amount": "three", "reason": "broken"}',
    "too little": '{"amount": 3}',
    "no object": "[]",
    "empty": "",
    "refusal": {"role": "assistant", "refusal": "I will not."},
}
MODES: dict[str, tuple[str, ...]] = {"schema": (), "tool": ("response_format",)}


class Refund(BaseModel):
    """What is paid back."""

    amount: int = Field(ge=1)
    reason: str


def final(text: Any) -> Any:
    """The reply of a model that is given a final tool: its answer by a call of it, or as it is."""

    def reply(request: dict[str, Any]) -> Any:
        names = [tool["function"]["name"] for tool in request.get("tools") or ()]
        return [("final_answer", text)] if isinstance(text, str) and "final_answer" in names else text

    return reply


def model_of(mode: str, *texts: Any, kind: Any = ScriptedModel) -> Any:
    """Make a model with these answers, which it gives as text or by a final tool."""
    return kind([final(text) for text in texts], refuses=MODES[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [ScriptedModel, AsyncScriptedModel])
def test_an_answer_is_a_value(make_swarm: MakeSwarm, run: Run, mode: str, kind: Any) -> None:
    """The answer is a value of the agent's type, and its text the last message, however the provider was asked."""
    agent = Agent(name=unique(), output_type=Refund)
    response = run(make_swarm(model_of(mode, GOOD, kind=kind)), agent, user())
    assert response.output == Refund(amount=3, reason="broken")
    assert response.ended_by == "answer"
    assert roles(response) == ["assistant"]
    assert response.messages[0]["content"] == GOOD
    assert response.messages[0]["tool_calls"] is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", MISFITS)
def test_a_misfit_goes_back_to_the_model(make_swarm: MakeSwarm, run: Run, mode: str, fault: str) -> None:
    """An answer that does not fit is followed by a message that says what is wrong, and by another answer."""
    agent = Agent(name=unique(), output_type=Refund)
    model = model_of(mode, MISFITS[fault], GOOD)
    response = run(make_swarm(model), agent, user())
    assert response.output == Refund(amount=3, reason="broken")
    assert roles(response) == ["assistant", "user", "assistant"]
    told = response.messages[1]["content"]
    assert told.startswith("Error: your answer does not fit: ")
    assert model.calls[-1]["messages"][-1] == {"role": "user", "content": told}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("retries", "answers"), [(0, 1), (2, 3)])
def test_the_last_misfit_fails_the_run(
    make_swarm: MakeSwarm, plain_run: Run, mode: str, retries: int, answers: int
) -> None:
    """After `output_retries` corrections the run fails with the last answer, its problems, and how many did not fit."""
    agent = Agent(name=unique(), output_type=Refund, output_retries=retries)
    model = model_of(mode, *['{"amount": 0, "reason": "x"}'] * answers, GOOD)
    with pytest.raises(InvalidOutput, match="amount: Input should be greater") as caught:
        plain_run(make_swarm(model), agent, user())
    assert caught.value.text == '{"amount": 0, "reason": "x"}'
    assert len(caught.value.problems) == 1
    assert caught.value.tries == answers


@pytest.mark.parametrize("mode", MODES)
def test_tools_come_first(make_swarm: MakeSwarm, run: Run, mode: str) -> None:
    """An agent with a type calls its tools, and only a reply without calls is its answer."""

    def look_up(order: str) -> str:
        return f"{order} is broken"

    agent = Agent(name=unique(), functions=[look_up], output_type=Refund)
    beside: Any = {"content": "I look.", "tool_calls": [("look_up", {"order": "A1"})]}
    model = model_of(mode, beside, "What?", [("look_up", {"order": "B2"})], GOOD)
    response = run(make_swarm(model), agent, user())
    assert response.output == Refund(amount=3, reason="broken")
    assert tool_contents(response) == ["A1 is broken", "B2 is broken"]
    assert roles(response) == ["assistant", "tool", "assistant", "user", "assistant", "tool", "assistant"]


def test_a_final_call_beside_others_is_a_text(make_swarm: MakeSwarm, run: Run) -> None:
    """A final call beside calls of tools ends nothing: the tools are called, and the model answers again."""

    def look_up() -> str:
        return "broken"

    agent = Agent(name=unique(), functions=[look_up], output_type=Refund)
    both: Any = {"content": "Wait.", "tool_calls": ["look_up", ("final_answer", GOOD)]}
    response = run(make_swarm(model_of("tool", both, GOOD)), agent, user())
    assert response.output == Refund(amount=3, reason="broken")
    assert tool_contents(response) == ["broken"]
    assert [call["function"]["name"] for call in response.messages[0]["tool_calls"]] == ["look_up"]


def test_the_last_agents_type_counts(make_swarm: MakeSwarm, run: Run) -> None:
    """After a handoff the answer is a value of the other agent's type, and its misfits are counted anew."""
    expert = Agent(name=unique(), output_type=list[int])

    def ask_expert() -> Agent:
        return expert

    triage = Agent(name=unique(), functions=[ask_expert], output_type=Refund, output_retries=1)
    model = ScriptedModel(["x", ["ask_expert"], "y", "z", '{"value": [1, 2]}'])
    response = run(make_swarm(model), triage, user())
    assert response.output == [1, 2]
    formats = [request["response_format"]["json_schema"]["name"] for request in model.calls]
    assert formats == ["Refund", "Refund", "output", "output", "output"]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (list[Refund], '{"value": [{"amount": 1, "reason": "x"}]}', [Refund(amount=1, reason="x")]),
        (list[int], "[1]", [1]),
        (Literal["yes", "no"], '{"value": "yes"}', "yes"),
        (bool, "true", True),
        (Refund | None, '{"value": null}', None),
        (dict[str, int], '{"value": 1}', {"value": 1}),
        (tuple[int, str], '{"value": [1, "a"]}', (1, "a")),
    ],
)
def test_types_that_are_no_objects(make_swarm: MakeSwarm, plain_run: Run, kind: Any, text: str, value: Any) -> None:
    """A type of other values than objects is sent wrapped in one, and unwrapped in the output."""
    response = plain_run(make_swarm(ScriptedModel([text])), Agent(name=unique(), output_type=kind), user())
    assert response.output == value
    assert type(response.output) is type(value)


@pytest.mark.parametrize(
    ("replies", "options", "ended_by"),
    [
        ([cut_off('{"amount": 3', "length")], {}, "length"),
        (["x"], {"max_turns": 1}, "max_turns"),
        ([["look"]], {"execute_tools": False}, "answer"),
    ],
)
def test_ends_without_a_value(
    make_swarm: MakeSwarm, run: Run, replies: list[Any], options: dict[str, Any], ended_by: str
) -> None:
    """A reply that was cut, the limit of turns, and calls that are not made end a run without an output."""

    def look() -> str:
        return "seen"

    agent = Agent(name=unique(), functions=[look], output_type=Refund)
    response = run(make_swarm(ScriptedModel(replies)), agent, user(), **options)
    assert (response.output, response.ended_by) == (None, ended_by)


def test_an_agent_without_type_answers_in_text(make_swarm: MakeSwarm, run: Run) -> None:
    """Without `output_type` a request says nothing of a format, and there is no output."""
    model = ScriptedModel([GOOD])
    response = run(make_swarm(model), Agent(name=unique()), user())
    assert response.output is None
    assert "response_format" not in model.calls[0]


def test_the_refusal_is_remembered(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A client whose model has refused `response_format` is given a final tool at once from then on."""
    model, swarm = model_of("tool", "x", GOOD, GOOD), None
    swarm = make_swarm(model)
    for _ in range(2):
        assert plain_run(swarm, Agent(name=unique(), output_type=Refund), user()).output is not None
    assert ["response_format" in request for request in model.calls] == [True, False, False, False]
    final_tool = model.calls[-1]["tools"][-1]["function"]
    assert final_tool["parameters"]["required"] == ["amount", "reason"]
    assert model.calls[-1]["tool_choice"] == "required"


def test_another_refusal_is_an_error(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A refusal of another argument is the caller's mistake, as without a type."""
    agent = Agent(name=unique(), output_type=Refund, model_settings={"seed": 1})
    with pytest.raises(Exception, match="Unsupported parameter: 'seed'"):
        plain_run(make_swarm(ScriptedModel([GOOD], refuses=["seed"])), agent, user())


@pytest.mark.parametrize("kind", [object(), lambda: None, 3])
def test_what_is_no_type_is_refused(make_swarm: MakeSwarm, plain_run: Run, kind: Any) -> None:
    """A type without a JSON schema is an error before the model is asked, which names the agent."""
    model = ScriptedModel([GOOD])
    with pytest.raises(ConfigurationError, match=r"agent 'Clerk-.*': output_type .* has no JSON schema"):
        plain_run(make_swarm(model), Agent(name=unique(), output_type=kind), user())
    assert model.calls == []


def test_a_foreign_agent_may_have_a_type(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Any object with an agent's attributes may have an output type, too."""

    class Foreign:
        name = unique()
        model, instructions, functions, output_type = "gpt-4o", "Help.", (), Refund

    response: Response[Any] = plain_run(make_swarm(ScriptedModel(["x", GOOD])), Foreign(), user())
    assert response.output == Refund(amount=3, reason="broken")


def test_a_sub_agent_gives_its_output(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """An agent that is a tool gives its output as JSON, without the object that a value is wrapped in."""
    expert = Agent(name=unique("Expert"), output_type=list[Refund])
    boss = Agent(name=unique(), functions=[expert.as_tool(name="expert")])
    model = ScriptedModel([[("expert", {"message": "How much?"})], f'{{"value": [{GOOD}]}}', "Done."])
    response = plain_run(make_swarm(model), boss, user())
    assert tool_contents(response) == ['[{"amount":3,"reason":"broken"}]']


def test_a_validator_that_raises_is_a_failure(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """What a validator raises beside a refusal of the value is a fault of the program, and fails the run with it."""

    class Broken(BaseModel):
        amount: int

        def model_post_init(self, _context: Any) -> None:
            raise LookupError("no table of refunds")

    agent = Agent(name=unique(), output_type=Broken)
    with pytest.raises(LookupError, match="no table of refunds"):
        plain_run(make_swarm(ScriptedModel([json.dumps({"amount": 1})])), agent, user())
