"""Forks: new runs that keep the first turns of another and go on with the code, prompt or messages of now."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    NotSerializable,
    Result,
    RunConflict,
    RunFailed,
    RunNotFound,
    step,
)
from durable_swarm.codec import Place
from durable_swarm.engine.history.export import Exported
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import Program, stored_texts, unique, user, wait_until
from tests.support.patience import PATIENCE


class Shop:
    """An agent with a plain tool, a step and a tool that fails while it should, and the calls they got."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.broken = False
        self.clerk = Agent(name=unique(), functions=[self.look, self.price, self.pay])

    def look(self, context_variables: dict[str, Any], item: str) -> Result:
        """Look for an item."""
        self.called.append(f"look {item}")
        context_variables["seen"] = item
        return Result(value=f"{item} is here", context_variables={"found": True})

    @property
    def price(self) -> Any:
        """A tool that is one step."""

        @step
        def price(item: str) -> str:
            """Give a price."""
            self.called.append(f"price {item}")
            return "5"

        return price

    def pay(self) -> str:
        """Pay."""
        self.called.append("pay")
        if self.broken:
            raise ValueError("no money")
        return "paid"

    @staticmethod
    def script(*more: Any) -> ScriptedModel:
        """Give a model for a whole run of three turns, and then what is given."""
        return ScriptedModel([[call("look", item="hat"), call("price", item="hat")], [call("pay")], "Bought.", *more])


def contents(messages: list[dict[str, Any]]) -> list[Any]:
    """Give what the messages say, or the names of the tools they call."""
    return [
        [made["function"]["name"] for made in message["tool_calls"]]
        if message.get("tool_calls")
        else message["content"]
        for message in messages
    ]


def test_a_fork_keeps_the_turns_before(make_anywhere: Make) -> None:
    """The turns before are in the fork's messages, context and steps, and none of their tools is called again."""
    shop = Shop()
    swarm = make_anywhere(shop.script("Not today."))
    first = swarm.run(shop.clerk, user("A hat"), run_id="one")
    shop.called.clear()
    fork = swarm.get("one").fork(1, run_id="two")
    response = fork.result(timeout=PATIENCE)
    assert shop.called == []
    assert contents(response.messages) == [["look", "price"], "hat is here", "5", "Not today."]
    assert response.messages[:3] == first.messages[:3]
    assert response.context_variables == {"seen": "hat", "found": True}
    assert response.usage is not None
    assert response.usage.requests == 2
    assert fork.messages() == response.messages
    told = [(taken.number, taken.kind, taken.turn, taken.kept) for taken in fork.steps()]
    assert told == [(1, "model", 0, True), (2, "tool", 0, True), (3, "tool", 0, True), (4, "model", 1, False)]
    assert contents(swarm.get("one").messages()) == contents(first.messages)


def test_a_fork_takes_new_messages_and_another_agent(make: Make) -> None:
    """Messages are added behind what is kept, and the agent given goes on from there, as an object or by name."""
    shop, other = Shop(), Agent(name=unique("Boss"), instructions="Be brief.")
    model = shop.script("As you like.", "Yes.")
    swarm = make(model)
    swarm.run(shop.clerk, user("A hat"), run_id="one")
    fork = swarm.get("one").fork(1, agent=other, messages=user("Cheaper?"))
    response = fork.result(timeout=PATIENCE)
    assert contents(response.messages)[-2:] == ["Cheaper?", "As you like."]
    assert response.agent is other
    assert (fork.agent, response.messages[-1]["sender"]) == (other.name, other.name)
    assert [message["role"] for message in model.calls[-1]["messages"]] == [
        *("system", "user", "assistant", "tool", "tool", "user")
    ]
    assert model.calls[-1]["messages"][0]["content"] == "Be brief."
    assert swarm.get("one").fork(1, agent=other.name).result(timeout=PATIENCE).messages[-1]["sender"] == other.name


def test_a_fork_at_turn_0_begins_anew(make: Make) -> None:
    """At turn 0 nothing is kept but what the run was asked and its context variables."""
    shop = Shop()
    swarm = make(shop.script("Hello."))
    swarm.run(shop.clerk, user("A hat"), {"who": "Ann"}, run_id="one")
    response = swarm.get("one").fork(0, messages=user("Please.")).result(timeout=PATIENCE)
    assert contents(response.messages) == ["Please.", "Hello."]
    assert response.context_variables == {"who": "Ann"}


def test_a_fork_goes_on_after_the_end_with_messages(make: Make) -> None:
    """All turns of a run that is done can be kept if there is something more to say, else the error says so."""
    shop = Shop()
    swarm = make(shop.script("You are welcome."))
    swarm.run(shop.clerk, user("A hat"), run_id="one")
    with pytest.raises(ConfigurationError, match="ended with turn 2; give messages"):
        swarm.get("one").fork(3)
    assert contents(swarm.get("one").fork(3, messages=user("Thanks")).result(timeout=PATIENCE).messages)[-3:] == [
        *("Bought.", "Thanks", "You are welcome.")
    ]


def test_a_fork_of_a_fork(make_anywhere: Make) -> None:
    """A fork is forked like any run, before and after its own beginning; messages at the same turn are replaced."""
    shop = Shop()
    swarm = make_anywhere(shop.script([call("pay")], "Second.", "Third.", "Fourth.", "Fifth."))
    swarm.run(shop.clerk, user("A hat"), run_id="one")
    second = swarm.get("one").fork(1, messages=user("M2"))
    assert contents(second.result(timeout=PATIENCE).messages)[3:] == ["M2", ["pay"], "paid", "Second."]
    shop.called.clear()
    third = second.fork(2, messages=user("M3"))
    assert contents(third.result(timeout=PATIENCE).messages)[3:] == ["M2", ["pay"], "paid", "M3", "Third."]
    assert contents(third.fork(1, messages=user("M4")).result(timeout=PATIENCE).messages)[3:] == ["M4", "Fourth."]
    assert contents(third.fork(1).result(timeout=PATIENCE).messages)[3:] == ["M2", "Fifth."]
    assert shop.called == []


def test_the_agent_of_the_turn_goes_on(make: Make) -> None:
    """After a kept handoff the agent it led to has the turn, and the fork is noted as its run."""
    target = Agent(name=unique("Target"))

    def hand_over() -> Agent:
        """Hand over."""
        return target

    first = Agent(name=unique("First"), functions=[hand_over])
    swarm = make(ScriptedModel([[call("hand_over")], "Hi.", "Hi again."]))
    swarm.run(first, user(), run_id="one")
    fork = swarm.get("one").fork(1)
    assert fork.result(timeout=PATIENCE).messages[-1]["sender"] == target.name
    assert fork.agent == target.name


@pytest.mark.parametrize("turn", [-1, True, "1", 1.0, None])
def test_a_turn_is_a_whole_number(make: Make, turn: Any) -> None:
    """What is no number of a turn is refused before anything is looked up."""
    shop = Shop()
    swarm = make(shop.script())
    swarm.run(shop.clerk, user(), run_id="one")
    with pytest.raises(ConfigurationError, match="turn must be a whole number from 0 up"):
        swarm.get("one").fork(turn)


def test_wrong_forks(make: Make) -> None:
    """What cannot be forked so gets one error that says what to do, and leaves nothing behind."""
    shop = Shop()
    swarm = make(shop.script())
    swarm.run(shop.clerk, user(), run_id="one")
    run = swarm.get("one")
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"turn": 7}, ConfigurationError, "it has 3 turns, counted from 0; take 0 to 3"),
        ({"turn": 1, "run_id": "one"}, RunConflict, "not this fork; use a new run_id"),
        ({"turn": 1, "run_id": "one/0.0"}, ConfigurationError, "ends like the id of a tool call"),
        ({"turn": 1, "agent": 5}, ConfigurationError, "agent must be an Agent"),
        ({"turn": 1, "messages": "Hi"}, ConfigurationError, "messages must be a list"),
        ({"turn": 1, "messages": [{"role": "user", "content": object()}]}, NotSerializable, r"messages\[0\]"),
    ]
    for arguments, kind, text in wrong:
        with pytest.raises(kind, match=text):
            run.fork(**arguments)
    assert [run.id for run in swarm.runs()] == ["one"]
    gone = swarm.get("one")
    gone.id = "gone"
    with pytest.raises(RunNotFound):
        gone.fork(0)


def test_a_fork_with_an_id_is_made_once(make_anywhere: Make) -> None:
    """The same fork with the same id is the fork that exists; another fork with this id is a conflict."""
    shop = Shop()
    swarm = make_anywhere(shop.script("Once."))
    swarm.run(shop.clerk, user(), run_id="one")
    run = swarm.get("one")
    assert contents(run.fork(1, run_id="two").result(timeout=PATIENCE).messages)[-1] == "Once."
    assert contents(run.fork(1, run_id="two").result(timeout=PATIENCE).messages)[-1] == "Once."
    for other in ({"turn": 0}, {"turn": 1, "messages": user("More")}, {"turn": 1, "agent": "Somebody"}):
        with pytest.raises(RunConflict):
            run.fork(run_id="two", **other)  # type: ignore[arg-type]


def test_a_turn_whose_calls_were_not_made_is_not_kept(make: Make) -> None:
    """With execute_tools=False a reply's calls have no results, told or not, so no fork goes on behind them."""
    shop = Shop()
    swarm = make(ScriptedModel([[call("gone")], [call("pay")], "Hello."]))
    for run_id in ("told", "known"):
        swarm.run(shop.clerk, user(), run_id=run_id, execute_tools=False)
        for messages in (None, user("Go on")):
            with pytest.raises(ConfigurationError, match=r"were not made \(execute_tools=False\); take 0$"):
                swarm.get(run_id).fork(1, messages=messages)
    assert contents(swarm.get("told").fork(0).result(timeout=PATIENCE).messages) == ["Hello."]


def _race(shop: Shop) -> Any:
    """Give a tool that is one step, whose first call ends last, or fails when the others are done."""

    @step
    async def race(number: int) -> str:
        """Run."""
        await asyncio.sleep(0.3 if number == 1 else 0)
        if number == 1 and shop.broken:
            raise ValueError("fell")
        return f"{number} is there"

    return race


@pytest.mark.parametrize("background", [False, True])
def test_parallel_calls_of_one_step_keep_their_results(make: Make, background: bool) -> None:
    """A result belongs to the call that gave it, whichever was recorded first: in messages, exports and replays."""
    shop = Shop()
    shop.broken = True
    racer = Agent(name=unique(), functions=[_race(shop), shop.look, shop.price])
    calls = [
        call("race", number=1),
        call("look", item="hat"),
        call("gone"),
        call("race", number=2),
        call("price", item="hat"),
    ]
    swarm = make(ScriptedModel([calls, "All there."]), tool_concurrency=2)
    with pytest.raises((ValueError, RunFailed), match="fell"):
        (swarm.start(racer, user(), run_id="one").result() if background else swarm.run(racer, user(), run_id="one"))
    run, open_ = swarm.get("one"), "Error: this call has no result; the run is failed."
    told = contents(run.messages())
    assert told[1:3] + told[4:] == [open_, "hat is here", "2 is there", "5"]
    assert Exported(swarm.export("one")).story().messages == run.messages()
    with pytest.raises(ConfigurationError, match="turn 0 is not finished"):
        run.fork(1)
    shop.broken = False
    run.resume()
    run.result(timeout=PATIENCE)
    told = contents(run.messages())
    assert told[1:3] + told[4:] == ["1 is there", "hat is here", "2 is there", "5", "All there."]
    assert sorted(shop.called) == ["look hat", "price hat"]
    assert contents(run.fork(1).messages())[1:3] == told[1:3]


def test_max_turns_counts_what_is_kept(make: Make) -> None:
    """A fork has its run's max_turns, kept messages included; where they are spent, the error says so."""
    shop = Shop()
    swarm = make(ScriptedModel(lambda _: [call("pay")]))
    swarm.run(shop.clerk, user(), max_turns=4, run_id="one")
    assert len(swarm.get("one").fork(1, messages=user("More")).result(timeout=PATIENCE).messages) == 5
    with pytest.raises(ConfigurationError, match="reached its max_turns of 4 messages"):
        swarm.get("one").fork(2)


def test_forks_of_runs_that_failed(make_anywhere: Make) -> None:
    """A failed run is forked up to its last whole turn, and the mended code does the rest."""
    shop = Shop()
    shop.broken = True
    swarm = make_anywhere(shop.script([call("pay")], "Mended."))
    with pytest.raises(ValueError, match="no money"):
        swarm.run(shop.clerk, user(), run_id="one")
    swarm.get("one").steps()
    with pytest.raises(ConfigurationError, match="turn 1 is not finished; take 0 to 1"):
        swarm.get("one").fork(2)
    shop.broken = False
    fork = swarm.get("one").fork(1)
    fork.result(timeout=PATIENCE)
    assert shop.called.count("look hat") == 1
    assert swarm.get("one").status == "failed"


def test_forks_of_runs_under_way_and_cancelled(make: Make) -> None:
    """A run that is under way is forked at what is recorded of it, and goes on by itself; so is a cancelled one."""
    going, go = threading.Event(), threading.Event()

    def wait() -> str:
        """Wait."""
        going.set()
        go.wait(20)
        return "waited"

    def note() -> str:
        """Note."""
        return "noted"

    agent = Agent(name=unique(), functions=[note, wait])
    swarm = make(ScriptedModel([[call("note")], [call("wait")], "Fork.", "Run.", "Fork 2."]))
    run = swarm.start(agent, user(), run_id="one")
    going.wait(20)
    assert contents(run.fork(1).result(timeout=PATIENCE).messages) == [["note"], "noted", "Fork."]
    go.set()
    assert contents(run.result(timeout=PATIENCE).messages)[-1] == "Run."
    going.clear()
    go.clear()


def test_a_fork_waits_for_its_agent(make: Make, url: str) -> None:
    """Forked where nothing is executed, the run goes on in the program that defines the agent of that turn."""
    shop = Shop()
    with DurableSwarm(shop.script(), database=url) as swarm:
        swarm.run(shop.clerk, user("A hat"), run_id="one")
    name = unique("Later")
    with open_runs(url) as opened:
        view = opened.fork("one", 1, agent=name, messages=user("Go on"), new_id="two")
    assert (view.status, view.idle, view.forked_from, view.turn, view.agent) == ("running", True, "one", 1, name)
    swarm = make(ScriptedModel(["Here."]))
    run = swarm.get("two")
    with pytest.raises(TimeoutError):
        run.result(timeout=0.3)
    later = Agent(name=name)
    assert contents(run.result(timeout=PATIENCE).messages)[-2:] == ["Go on", "Here."]
    assert later.name == run.agent
    with open_runs(url) as opened:
        detail = opened.show("two")
    assert (detail.forked_from, detail.turn, detail.last_agent) == ("one", 1, name)


def test_a_fork_on_the_event_loop(make: Make) -> None:
    """`fork_async` does the same without stopping the loop."""
    shop = Shop()
    swarm = make(shop.script("Async."))

    async def main() -> list[Any]:
        await swarm.run_async(shop.clerk, user("A hat"), run_id="one")
        fork = await (await swarm.get_async("one")).fork_async(1)
        return contents((await fork.result_async(timeout=PATIENCE)).messages)

    assert asyncio.run(main())[-1] == "Async."


def test_a_tool_forks_a_run_once(make: Make) -> None:
    """A fork that a tool makes has an id of its call, so that a repeated tool finds the fork it made."""
    made: list[str] = []

    def fork() -> str:
        """Fork."""
        made.append(swarm.get("one").fork(0).id)
        if len(made) == 1:
            raise ValueError("once more")
        return "forked"

    agent = Agent(name=unique(), functions=[fork])
    plain = Agent(name=unique("Plain"))
    swarm = make(
        ScriptedModel(lambda request: [call("fork")] if len(request["messages"]) == 2 and request["tools"] else "Ok")
    )
    swarm.run(plain, user(), run_id="one")
    with pytest.raises(ValueError, match="once more"):
        swarm.run(agent, user(), run_id="forking")
    run = swarm.get("forking")
    run.resume()
    run.result(timeout=PATIENCE)
    assert made[0] == made[1] == "forking/0.0/0"


class Base64:
    """A codec that makes all data unreadable."""

    def encode(self, data: dict[str, Any], place: Place) -> str:
        """Close."""
        return base64.b64encode(json.dumps(data).encode()).decode()

    def decode(self, stored: Any, place: Place) -> dict[str, Any]:
        """Open."""
        opened: dict[str, Any] = json.loads(base64.b64decode(stored))
        return opened


def test_what_a_fork_keeps_passes_through_the_codec(make: Make, url: str) -> None:
    """Kept turns and new messages are stored through the codec, like everything else that was said."""
    shop = Shop()
    swarm = make(shop.script("Fine."), codec=Base64())
    swarm.run(shop.clerk, user("A hat"), run_id="one")
    fork = swarm.get("one").fork(1, messages=user("Cheaper"))
    assert contents(fork.result(timeout=PATIENCE).messages)[-2:] == ["Cheaper", "Fine."]
    assert not [text for text in stored_texts(url) if "hat" in text or "Cheaper" in text]


PROGRAM = """
    import json, os, sys, time
    from pathlib import Path
    from durable_swarm import Agent, DurableSwarm, step
    from durable_swarm.testing import ScriptedModel, call

    def note(word):
        with open("notes.txt", "a") as file:
            print(word, file=file, flush=True)

    def first() -> str:
        note("first")
        return "1"

    @step
    def begun() -> int:
        note("begun")
        return 2

    def second() -> str:
        number = begun()
        note("second")
        if not Path("go").exists():
            time.sleep(60)
        return str(number)

    agent = Agent(name="Clerk", functions=[first, second])
    calls = {2: [call("first")], 5: [call("second")]}
    script = lambda request: calls.get(len(request["messages"]), "Done.")
    with DurableSwarm(ScriptedModel(script), database=sys.argv[1]) as swarm:
        if not Path("forked").exists():
            swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="one")
            Path("forked").touch()
        if sys.argv[2] == "fork":
            fork = swarm.get("one").fork(1, messages=[{"role": "user", "content": "On"}], run_id="two")
        else:
            fork = swarm.get("two")
        print(json.dumps([message.get("content") for message in fork.result().messages]))
"""


@pytest.mark.parametrize("again", ["fork", "get"])
def test_a_killed_fork_goes_on(database_url: str, again: str) -> None:
    """A fork whose process is killed goes on where it stopped: neither kept turns nor finished steps are repeated."""
    program = Program(PROGRAM)
    notes = Path("notes.txt")
    program.run_and_kill(lambda: notes.exists() and "second" in notes.read_text(), database_url, "fork")
    Path("go").touch()
    process = program.start(database_url, again)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == [None, "1", "On", None, "2", "Done."]
    assert notes.read_text().split() == ["first", "begun", "second", "second"]


def test_a_fork_is_executed_by_another_process_when_this_one_dies(url: str) -> None:
    """What a killed process has forked and not begun, another that defines the agent executes."""
    shop = Shop()
    with DurableSwarm(shop.script(), database=url) as swarm:
        swarm.run(shop.clerk, user("A hat"), run_id="one")
    with open_runs(url) as opened:
        opened.fork("one", 2, new_id="two")
    with DurableSwarm(ScriptedModel(["Late."]), database=url) as swarm:
        wait_until(lambda: swarm.get("two").status == "done")
        assert contents(swarm.get("two").messages())[-1] == "Late."


def test_a_run_without_a_whole_turn_is_forked_at_its_beginning(make_anywhere: Make) -> None:
    """A wrong turn is refused with the only one that there is."""
    shop = Shop()
    shop.broken = True
    swarm = make_anywhere(ScriptedModel([[call("pay")]]))
    with pytest.raises(ValueError, match="no money"):
        swarm.run(shop.clerk, user(), run_id="one")
    with pytest.raises(ConfigurationError, match=r"turn 0 is not finished; take 0$"):
        swarm.get("one").fork(1)
