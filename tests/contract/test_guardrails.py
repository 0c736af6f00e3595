"""Guardrails: beside the first model call, before tools that change anything, and before the answer is given."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from pydantic import BaseModel

from durable_swarm import Agent, Block, Blocked, ConfigurationError, Limits, tool
from durable_swarm.testing import ScriptedModel, cut_off
from tests.contract.helpers import PATIENCE, MakeSwarm, Run, replies_in, roles, tool_contents, user
from tests.engine.helpers import unique

SORRY = "I cannot help with that."


class Refund(BaseModel):
    """What is paid back."""

    amount: int


class Judge:
    """Guardrails that note what they were asked, and give one verdict."""

    def __init__(self, verdict: Any = None) -> None:
        self.verdict = verdict
        self.asked: list[Any] = []

    def plain(self, messages: Any) -> Any:
        """A plain guardrail of messages."""
        self.asked.append(messages)
        return self.verdict

    async def waits(self, output: Any, context_variables: dict[str, Any]) -> Any:
        """An async guardrail of the output and the context."""
        await asyncio.sleep(0)
        self.asked.append((output, dict(context_variables)))
        context_variables["seen"] = True
        return self.verdict

    def any_name(self, what: Any) -> Any:
        """A guardrail whose parameter has another name."""
        return self.plain(what)


def test_what_passes_goes_on(make_swarm: MakeSwarm, run: Run) -> None:
    """Guardrails get the messages or the output, and copies of the context; None lets the run go on as without them."""
    judge = Judge()
    agent = Agent(
        name=unique(), input_guardrails=[judge.plain, judge.any_name], output_guardrails=[judge.waits, judge.any_name]
    )
    response = run(make_swarm(ScriptedModel(["Hello"])), agent, user(), {"name": "Ada"})
    assert response.ended_by == "answer"
    assert response.context_variables == {"name": "Ada"}
    assert judge.asked[:2] == [user(), user()]
    assert sorted(map(str, judge.asked[2:])) == ["('Hello', {'name': 'Ada'})", "Hello"]


def test_a_blocked_input_ends_with_the_reply(make_swarm: MakeSwarm, run: Run) -> None:
    """The run ends with the reply of the block as its only new message, and no tool was entered."""
    entered: list[str] = []

    def pay() -> str:
        entered.append("pay")
        return "paid"

    agent = Agent(name=unique(), functions=[pay], input_guardrails=[Judge(Block("rude", SORRY)).plain])
    response = run(make_swarm(ScriptedModel([["pay"], "Done."])), agent, user())
    assert (response.ended_by, response.output, entered) == ("guardrail", None, [])
    assert [message["content"] for message in response.messages] == [SORRY]
    assert response.messages[0]["sender"] == agent.name
    assert response.usage is not None


@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_block_without_reply_fails_the_run(make_swarm: MakeSwarm, plain_run: Run, kind: str) -> None:
    """Without a reply the run fails with the guardrail's name and its reason."""
    agent = Agent(name=unique(), **{f"{kind}_guardrails": [Judge().plain, Judge(Block("rude")).any_name]})
    with pytest.raises(Blocked, match="guardrail 'any_name' stopped the run: rude") as caught:
        plain_run(make_swarm(ScriptedModel(["Hello"])), agent, user())
    assert (caught.value.guardrail, caught.value.reason) == ("any_name", "rude")


def test_the_first_in_order_counts(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Of several blocks that of the first guardrail in the agent's list counts, whichever came first."""
    later = threading.Event()

    def first(messages: Any) -> Block:
        assert later.wait(PATIENCE)
        return Block("first", "First.")

    def second(messages: Any) -> Block:
        later.set()
        return Block("second", "Second.")

    agent = Agent(name=unique(), input_guardrails=[first, second])
    response = plain_run(make_swarm(ScriptedModel(["Hello"])), agent, user())
    assert response.messages[0]["content"] == "First."


@pytest.mark.parametrize("verdict", [None, Block("rude", SORRY)])
@pytest.mark.parametrize("effect", ["idempotent", "once"])
def test_no_tool_before_the_verdict(make_swarm: MakeSwarm, run: Run, effect: Any, verdict: Any) -> None:
    """The guardrail runs beside the model call and beside tools that read; no other tool begins before its verdict."""
    read, log = threading.Event(), []

    def slow(messages: Any) -> Any:
        assert read.wait(PATIENCE), "the model and the tool that reads did not run beside the guardrail"
        log.append("verdict")
        return verdict

    @tool(effect="read")
    def look() -> str:
        log.append("look")
        read.set()
        return "seen"

    @tool(effect=effect)
    def pay() -> str:
        log.append("pay")
        return "paid"

    agent = Agent(name=unique(), functions=[look, pay], input_guardrails=[slow])
    response = run(make_swarm(ScriptedModel([["look"], ["pay"], "Done."])), agent, user())
    assert log == (["look", "verdict", "pay"] if verdict is None else ["look", "verdict"])
    assert tool_contents(response) == (["seen", "paid"] if verdict is None else [])


def test_a_tool_beside_one_that_reads_waits(make_swarm: MakeSwarm, run: Run) -> None:
    """A batch with a tool that changes something waits as a whole."""
    log: list[str] = []

    @tool(effect="read")
    def look() -> str:
        log.append("look")
        return "seen"

    def pay() -> str:
        log.append("pay")
        return "paid"

    def slow(messages: Any) -> Block:
        return Block("rude", SORRY)

    agent = Agent(name=unique(), functions=[look, pay], input_guardrails=[slow])
    run(make_swarm(ScriptedModel([["look", "pay"], "Done."]), tool_concurrency=2), agent, user())
    assert log == []


def test_a_blocked_answer_is_replaced(make_swarm: MakeSwarm, run: Run) -> None:
    """What led to a blocked answer stays in the messages; the answer is that of the block, and there is no output."""

    def look() -> str:
        return "seen"

    judge = Judge(Block("too much", SORRY))
    agent = Agent(name=unique(), functions=[look], output_type=Refund, output_guardrails=[judge.plain])
    response = run(make_swarm(ScriptedModel([["look"], "x", '{"amount": 9}'])), agent, user())
    assert judge.asked == [Refund(amount=9)]
    assert (response.ended_by, response.output) == ("guardrail", None)
    assert roles(response) == ["assistant", "tool", "assistant", "user", "assistant"]
    assert response.messages[-1]["content"] == SORRY


def test_a_text_that_was_cut_is_judged(make_swarm: MakeSwarm, run: Run) -> None:
    """An answer that the provider cut does not escape the guardrails of an agent that answers in text."""
    agent = Agent(name=unique(), output_guardrails=[Judge(Block("secret", SORRY)).plain])
    response = run(make_swarm(ScriptedModel([cut_off("The secret is", "length")])), agent, user())
    assert (response.ended_by, response.messages[-1]["content"]) == ("guardrail", SORRY)


def test_the_last_answer_at_a_limit_is_judged(make_swarm: MakeSwarm, run: Run) -> None:
    """The answer that a limit makes the last one does not escape the guardrails."""

    def look() -> str:
        return "seen"

    agent = Agent(name=unique(), functions=[look], output_guardrails=[Judge(Block("secret", SORRY)).plain])
    limits = Limits(requests=1, on_limit="finish")
    response = run(make_swarm(ScriptedModel([["look"], "The secret."])), agent, user(), limits=limits)
    assert (response.ended_by, response.messages[-1]["content"]) == ("guardrail", SORRY)


def test_after_a_handoff(make_swarm: MakeSwarm, run: Run) -> None:
    """The input guardrails are those of the first agent, the output guardrails those of the last."""
    judges = [Judge(), Judge(Block("never asked")), Judge(Block("never asked")), Judge(Block("long", SORRY))]
    last = Agent(name=unique(), input_guardrails=[judges[1].plain], output_guardrails=[judges[3].plain])

    def transfer() -> Agent:
        return last

    first = Agent(
        name=unique(), functions=[transfer], input_guardrails=[judges[0].plain], output_guardrails=[judges[2].plain]
    )
    response = run(make_swarm(ScriptedModel([["transfer"], "Hello"])), first, user())
    assert [judge.asked for judge in judges] == [[user()], [], [], ["Hello"]]
    assert response.messages[-1]["sender"] == last.name


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("reply", [SORRY, None])
def test_streamed_text_is_taken_back(make_swarm: MakeSwarm, kind: str, reply: str | None) -> None:
    """A reader of a stream gets a reset after the text that was blocked, and the reply in its place."""
    agent = Agent(name=unique(), **{f"{kind}_guardrails": [Judge(Block("rude", reply)).plain]})
    items: list[dict[str, Any]] = []
    try:
        items += make_swarm(ScriptedModel(["Some words"])).run(agent, user(), stream=True)
    except Blocked:
        assert reply is None
    told = [item for item in items if "response" not in item]
    if reply is not None:
        texts = ["".join(delta["content"] or "" for delta in deltas) for deltas in replies_in(told)]
        assert texts == [SORRY]
        assert [item["delim"] for item in told if "delim" in item] == ["start", "reset", "end"]


@pytest.mark.parametrize("kind", ["input", "output"])
@pytest.mark.parametrize("verdict", [True, False, "no"])
def test_a_verdict_is_none_or_a_block(make_swarm: MakeSwarm, plain_run: Run, kind: str, verdict: Any) -> None:
    """Anything else that a guardrail returns is an error that says what to return."""
    agent = Agent(name=unique(), **{f"{kind}_guardrails": [Judge(verdict).plain]})
    with pytest.raises(ConfigurationError, match=r"'plain' returned .*; return None to let the run continue"):
        plain_run(make_swarm(ScriptedModel(["Hello"])), agent, user())


@pytest.mark.parametrize("kind", ["input", "output"])
def test_what_a_guardrail_raises_fails_the_run(make_swarm: MakeSwarm, plain_run: Run, kind: str) -> None:
    """An exception of a guardrail ends the run as one of a tool does."""

    def broken(what: Any) -> None:
        raise LookupError("no list of words")

    agent = Agent(name=unique(), **{f"{kind}_guardrails": [broken]})
    with pytest.raises(LookupError, match="no list of words"):
        plain_run(make_swarm(ScriptedModel(["Hello"])), agent, user())


@pytest.mark.parametrize("kind", ["input", "output"])
def test_what_is_no_list_of_guardrails_is_refused(make_swarm: MakeSwarm, plain_run: Run, kind: str) -> None:
    """Guardrails are functions with names of their own; anything else is an error before the model is asked."""
    model = ScriptedModel(["Hello"])
    twins = Agent(name=unique(), **{f"{kind}_guardrails": [Judge().plain, Judge().plain]})
    none = Agent(name=unique())
    setattr(none, f"{kind}_guardrails", ["no function"])
    for agent, problem in ((twins, "two of its"), (none, "must be a list of functions")):
        with pytest.raises(ConfigurationError, match=problem):
            plain_run(make_swarm(model), agent, user())
    with pytest.raises(ConfigurationError, match="Block takes texts"):
        Judge(Block).verdict(3)
    assert model.calls == []
