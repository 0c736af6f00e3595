"""Limits of a run, in memory and durably: what counts, when a run ends, and what it ends with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, InvalidAnswer, LimitReached, Limits, Response, ToolError
from durable_swarm.testing import ScriptedModel, call, cut_off
from tests.contract.helpers import MakeSwarm, Run, user
from tests.engine.helpers import unique, wait_until


def look(number: int) -> str:
    """Look something up."""
    return f"found {number}"


def looking(calls: int = 1) -> Any:
    """Return a script that calls `look` for ever, with arguments that never repeat, `calls` at a time."""
    numbers = iter(range(100_000))
    return lambda request: [call("look", number=next(numbers)) for _ in range(calls)]


def agent_with(*functions: Any) -> Agent:
    """Make an agent of a name of its own."""
    return Agent(name=unique("Spender"), functions=list(functions))


def reached(swarm: Any, run: Run, agent: Agent, **options: Any) -> LimitReached:
    """Run until a limit ends it."""
    with pytest.raises(LimitReached) as caught:
        run(swarm, agent, user(), **options)
    return caught.value


def test_a_model_that_calls_for_ever_is_stopped(make_swarm: MakeSwarm, run: Run) -> None:
    """With `requests=3` there is no fourth model call, and the error says what was used and allowed."""
    model = ScriptedModel(looking(), strict=False)
    error = reached(make_swarm(model), run, agent_with(look), limits=Limits(requests=3))
    assert (error.limit, error.used, error.allowed, len(model.calls)) == ("requests", 3, 3, 3)


def test_a_run_that_says_nothing_has_its_swarms_limits(make_swarm: MakeSwarm, run: Run) -> None:
    """A swarm gives its limits to each run without own ones; without a word it allows 200 model calls."""
    model = ScriptedModel(looking(), strict=False)
    assert reached(make_swarm(model, limits=Limits(requests=2)), run, agent_with(look)).allowed == 2
    assert make_swarm(ScriptedModel([])).limits == Limits(requests=200)


def test_a_swarm_may_have_no_limits(make_swarm: MakeSwarm, run: Run) -> None:
    """`limits=None` takes the default away, repetitions included."""
    model = ScriptedModel([*([[call("nobody")]] * 12), "Done"], strict=False)
    assert run(make_swarm(model, limits=None), agent_with(look), user()).ended_by == "answer"


@pytest.mark.parametrize("kind", ["unknown", "unfit", "cut", "told"])
def test_a_call_that_keeps_failing_ends_the_run(make_swarm: MakeSwarm, run: Run, kind: str) -> None:
    """The tenth failure in a row of one call is the last: unknown tools, refused arguments, cut replies, errors."""

    def failing(number: int) -> str:
        raise ToolError("not today")

    scripts: dict[str, Any] = {
        "unknown": [call("nobody", number=1)],
        "unfit": [call("failing", number="many")],
        "cut": cut_off([call("failing", number=1)]),
        "told": [call("failing", number=1)],
    }
    model = ScriptedModel(lambda _: scripts[kind], strict=False)
    error = reached(make_swarm(model), run, agent_with(failing))
    assert (error.limit, error.used, error.allowed, len(model.calls)) == ("repeats", 10, 10, 10)


def test_only_failures_in_a_row_count(make_swarm: MakeSwarm, run: Run) -> None:
    """A success of the call, or a turn without it, begins the count anew."""
    bad, other, good = call("nobody"), call("nothing"), call("look", number=1)
    model = ScriptedModel([[bad], [bad], [other], [bad], [bad], [good], [bad], [bad, other], "Done"], strict=False)
    limits = Limits(repeats=3)
    assert run(make_swarm(model), agent_with(look), user(), limits=limits).ended_by == "answer"


@pytest.mark.parametrize("together", [1, 3])
def test_tool_calls_are_counted_one_by_one(make_swarm: MakeSwarm, run: Run, together: int) -> None:
    """Of a reply's calls as many are made as are left, in the model's order; refused calls do not count."""
    entered = []

    def note(number: int) -> str:
        entered.append(number)
        return "noted"

    replies = [[call("note", number=1), call("nobody")], [call("note", number=number) for number in (2, 3, 4)]]
    swarm = make_swarm(ScriptedModel(replies), tool_concurrency=together)
    error = reached(swarm, run, agent_with(note), limits=Limits(tool_calls=3))
    assert (error.limit, error.used, error.allowed, sorted(entered)) == ("tool_calls", 3, 3, [1, 2, 3])


@pytest.mark.parametrize("limit", ["input_tokens", "output_tokens", "total_tokens"])
def test_tokens_are_the_providers(make_swarm: MakeSwarm, run: Run, limit: str) -> None:
    """A limit of tokens is reached with the first call that uses them up."""
    model = ScriptedModel(looking(), strict=False)
    error = reached(make_swarm(model), run, agent_with(look), limits=Limits(**{limit: 1}))
    assert (error.limit, error.allowed, len(model.calls)) == (limit, 1, 1)
    assert error.used > 1


@pytest.mark.parametrize("cost", [Decimal("0.5"), "0.5", 0.5])
def test_cost_is_in_dollars(make_swarm: MakeSwarm, run: Run, cost: Any) -> None:
    """The swarm's prices decide what a call costs, from the model's name and its tokens."""
    asked = []

    def prices(model: str, usage: Any) -> Decimal:
        asked.append(model)
        return Decimal("0.2") * usage.requests

    model = ScriptedModel(looking(), strict=False)
    agent = Agent(name=unique("Spender"), model="priced-1", functions=[look])
    error = reached(make_swarm(model, prices=prices), run, agent, limits=Limits(cost=cost))
    assert (error.limit, error.used, error.allowed, len(model.calls)) == ("cost", Decimal("0.6"), Decimal("0.5"), 3)
    assert set(asked) == {"priced-1"}


def test_an_unknown_price_is_refused_before_the_first_call(make_swarm: MakeSwarm, run: Run) -> None:
    """A limit of cost that cannot be kept is an error, and nothing is paid."""
    model = ScriptedModel(["Hello"])
    swarm = make_swarm(model, prices=lambda model, usage: None)
    with pytest.raises(ConfigurationError, match="price of model"):
        run(swarm, agent_with(look), user(), limits=Limits(cost=1))
    assert model.calls == []


def test_a_run_that_may_finish_gets_a_last_reply(make_swarm: MakeSwarm, run: Run) -> None:
    """With `on_limit="finish"` one more call is made, without tools, and its answer is the run's."""

    def reply(request: dict[str, Any]) -> Any:
        return [call("look", number=len(request["messages"]))] if request["tools"] else "That is all."

    model = ScriptedModel(reply, strict=False)
    limits = Limits(requests=2, on_limit="finish")
    response: Response = run(make_swarm(model), agent_with(look), user(), limits=limits)
    assert response.messages[-1]["content"] == "That is all."
    assert (response.ended_by, len(model.calls), model.calls[-1]["tools"]) == ("limit", 3, None)


@pytest.mark.parametrize("together", [1, 2])
def test_calls_beyond_the_limit_are_answered_before_the_last_reply(
    make_swarm: MakeSwarm, run: Run, together: int
) -> None:
    """A run that may finish answers the calls it cannot make, also those of the last reply itself."""
    swarm = make_swarm(ScriptedModel(looking(2), strict=False), tool_concurrency=together)
    response = run(swarm, agent_with(look), user(), limits=Limits(tool_calls=3, on_limit="finish"))
    results = [message["content"] for message in response.messages if message["role"] == "tool"]
    assert [text.startswith("Error: ") for text in results] == [False, False, False, True, True, True]
    assert response.ended_by == "limit"


def test_time_spent_waiting_is_not_worked(make_swarm: MakeSwarm, run: Run) -> None:
    """A limit of seconds ends a run that works, before its next model call."""
    model = ScriptedModel(looking(), strict=False)
    error = reached(make_swarm(model), run, agent_with(look), limits=Limits(seconds=0.000001))
    assert (error.limit, len(model.calls)) == ("seconds", 1)


def test_runs_that_tools_start_spend_from_the_same_limits(make_swarm: MakeSwarm, run: Run) -> None:
    """Parent and children together stay within the parent's limits, and its end is that of all."""

    def ask_for(request: dict[str, Any]) -> Any:
        system = request["messages"][0]["content"]
        return [call("delegate", number=len(request["messages"]))] if "boss" in system else next(replies)

    replies = iter([[call("look", number=1)], "Done", [call("look", number=2)], "Done"])
    helper = Agent(name=unique("Helper"), instructions="You are a helper.", functions=[look])
    model = ScriptedModel(ask_for, strict=False)
    swarm = make_swarm(model)

    async def delegate(number: int) -> str:
        return str((await swarm.run_async(helper, user())).messages[-1]["content"])

    boss = Agent(name=unique("Boss"), instructions="You are the boss.", functions=[delegate])
    error = reached(swarm, run, boss, limits=Limits(requests=5))
    assert (error.limit, error.used, error.allowed, len(model.calls)) == ("requests", 5, 5, 5)


@pytest.mark.parametrize(
    "wrong",
    [{"requests": -1}, {"requests": 1.5}, {"cost": "much"}, {"cost": True}, {"repeats": 0}, {"on_limit": "stop"}],
)
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    """A limit that is no amount is refused when it is made, by its name."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_of_a_session_are_one_total(make_swarm: MakeSwarm) -> None:
    """All runs of a session together stay within its limits, each within its own; other limits replace them."""
    agent = agent_with(look)
    swarm = make_swarm(ScriptedModel([[call("look", number=1)], "One", "Two", "Three"], strict=False))
    session = swarm.session(unique("chat"), agent, limits=Limits(requests=3))
    assert session.run("First").ended_by == "answer"
    assert session.run("Second").ended_by == "answer"
    with pytest.raises(LimitReached) as caught:
        session.run("Third")
    assert (caught.value.limit, caught.value.used, caught.value.allowed) == ("requests", 3, 3)
    more = swarm.session(session.id, agent, limits=Limits(requests=4))
    assert more.run("Fourth").messages[-1]["content"] == "Three"
    with pytest.raises(LimitReached) as own:
        swarm.session(unique("chat"), agent).run("Fifth", limits=Limits(requests=0))
    assert own.value.allowed == 0


def test_a_person_is_asked_for_more(make_swarm: MakeSwarm) -> None:
    """With `on_limit="ask"` the run waits: an approval adds what was allowed at first, or other amounts."""
    agent, limits = agent_with(look), Limits(requests=1, on_limit="ask")
    swarm = make_swarm(ScriptedModel([[call("look", number=number)] for number in range(4)], strict=False))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(swarm.run, agent, user(), limits=limits)
        first = wait_until(swarm.requests)[0]
        assert (first.kind, first.arguments, first.tool) == ("limit", {"requests": 1}, "")
        with pytest.raises(InvalidAnswer):
            swarm.approve(first.id, arguments={"requests": "many"})
        swarm.approve(first.id)
        second = wait_until(lambda: [one for one in swarm.requests() if one.id != first.id])[0]
        swarm.approve(second.id, arguments={"requests": 2})
        third = wait_until(lambda: [one for one in swarm.requests() if one.id not in (first.id, second.id)])[0]
        swarm.reject("enough", third.id)
        with pytest.raises(LimitReached) as caught:
            run.result()
    assert (caught.value.used, caught.value.allowed) == (4, 4)


def test_a_person_is_asked_for_more_tool_calls(make_swarm: MakeSwarm) -> None:
    """A tool call beyond the limit waits for the decision, and is then made."""
    swarm = make_swarm(ScriptedModel([[call("look", number=1), call("look", number=2)], "Done"]))
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(swarm.run, agent_with(look), user(), limits=Limits(tool_calls=1, on_limit="ask"))
        swarm.approve(wait_until(swarm.requests)[0].id)
        assert [one["content"] for one in run.result().messages if one["role"] == "tool"] == ["found 1", "found 2"]


def test_an_agent_as_a_tool_may_have_limits_of_its_own(make_swarm: MakeSwarm, run: Run) -> None:
    """A child run stays within the limits of its tool; its parent, which has others, ends with its error."""
    helper = Agent(name=unique("Helper"), instructions="helper", functions=[look])
    replies = looking()

    def reply(request: dict[str, Any]) -> Any:
        return replies(request) if request["messages"][0]["content"] == "helper" else [call("ask_it", message="Look")]

    model = ScriptedModel(reply, strict=False)
    error = reached(make_swarm(model), run, agent_with(helper.as_tool("ask_it", limits=Limits(requests=2))))
    assert (error.limit, error.used, len(model.calls)) == ("requests", 2, 3)
    with pytest.raises(ConfigurationError, match="limits"):
        helper.as_tool(limits=2)
