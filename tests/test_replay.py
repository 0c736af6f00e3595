"""Replay and golden runs: a recorded run against the code, prompt or model of today, without calling a tool."""

from __future__ import annotations

import gc
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ReplayMismatch, Result, RunNotFound
from durable_swarm.testing import Replay, ScriptedModel, assert_replays, call, record_golden, replay
from tests.support.patience import PATIENCE

ASKED = [{"role": "user", "content": "A hat"}]
SCRIPT: list[Any] = [
    [call("look", item="hat"), call("price", item="hat", count=1)],
    [call("look", item="cap")],
    "Five.",
]


class Shop:
    """A shop whose tools count their calls; `clerk` makes an agent of them, as other code would."""

    def __init__(self) -> None:
        self.called = 0
        self.name = f"Clerk-{uuid.uuid4().hex[:8]}"

    def look(self, context_variables: dict[str, Any], item: str) -> Result:
        """Look for an item."""
        self.called += 1
        context_variables["seen"] = item
        return Result(value=f"{item} is here", context_variables={"found": True})

    def price(self, item: str, count: int) -> str:
        """Give a price."""
        self.called += 1
        return "5"

    def clerk(self, *functions: Any, **fields: Any) -> Agent:
        """Give the agent, with other tools or fields if they are given."""
        return Agent(name=self.name, functions=list(functions or (self.look, self.price)), **fields)


def run(shop: Shop, agent: Agent, script: list[Any] | None = None) -> str:
    """Make a run in the default database and give its id."""
    with DurableSwarm(ScriptedModel(script or SCRIPT)) as swarm:
        swarm.run(agent, ASKED, run_id="one")
    shop.called = 0
    return "one"


def whats(replayed: Replay) -> list[tuple[int | None, str]]:
    """Give where the differences are and what they are."""
    return [(found.turn, found.what.split(":")[0]) for found in replayed.differences]


def test_unchanged_code_replays_without_a_difference() -> None:
    """The same code gives the same run, and neither model nor tools are called for it."""
    shop = Shop()
    agent = shop.clerk()
    replayed = replay(run(shop, agent), agent)
    assert replayed.same
    assert (replayed.turns, replayed.stopped, shop.called) == (3, None, 0)
    assert replayed.messages[-1]["content"] == "Five."
    assert str(replayed) == "Replay of run one: 3 turns, no difference"


def test_runs_are_named_by_id_document_or_file(tmp_path: Path) -> None:
    """A run is replayed from the open database, from another, from its document and from its file."""
    shop = Shop()
    agent = shop.clerk()
    with DurableSwarm(ScriptedModel(SCRIPT), database=f"sqlite:///{tmp_path}/other.sqlite") as swarm:
        swarm.run(agent, ASKED, run_id="one")
        document = swarm.export("one")
        assert replay("one").same
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert replay("one", database=f"sqlite:///{tmp_path}/other.sqlite").same
    assert replay(document).same
    assert replay(tmp_path / "run.json").same
    with pytest.raises(RunNotFound):
        replay("two", database=f"sqlite:///{tmp_path}/other.sqlite")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        replay(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match=r"give Path\('none\.json'\)"):
        replay("none.json", database=f"sqlite:///{tmp_path}/other.sqlite")
    assert_replays(document)
    with pytest.raises(ConfigurationError, match="not as int"):
        replay(5)  # type: ignore[arg-type]


def test_a_changed_prompt_is_seen_in_every_turn() -> None:
    """With the recorded replies, a change of prompt, tools or model is a difference of each turn that it touches."""
    shop = Shop()
    first = run(shop, shop.clerk())
    for changed in (shop.clerk(instructions="Be brief."), shop.clerk(model="other")):
        replayed = replay(first, changed)
        assert [turn for turn, _ in whats(replayed)] == [0, 1, 2]
        assert "instructions, tools, model or settings changed" in str(replayed)


def test_a_changed_tool_is_seen_where_it_matters() -> None:
    """Arguments that no longer fit are told to the model today, and so differ from the recorded result."""
    shop = Shop()

    def price(item: str, currency: str) -> str:
        """Give a price."""
        return ""

    replayed = replay(run(shop, shop.clerk()), shop.clerk(shop.look, price))
    assert (0, 'what the model is told of price(count=1, item="hat")') in whats(replayed)
    assert "currency is missing" in str(replayed)


def test_what_is_gone_is_a_mismatch() -> None:
    """Where a tool or an agent of the recorded replies is gone, there is nothing to compare."""
    shop = Shop()
    first = run(shop, shop.clerk())
    with pytest.raises(ReplayMismatch, match=r"calls tool 'price' in turn 0, which agent .* has no more"):
        replay(first, shop.clerk(shop.look))
    gc.collect()  # The agents of before are gone.
    with pytest.raises(ReplayMismatch, match=r"needs agent .* in turn 0"):
        replay(first)


def test_another_model_is_compared_turn_by_turn() -> None:
    """A model asked anew gets the recorded answers of the same calls, in whatever turn, and what differs is told."""
    shop = Shop()
    model = ScriptedModel(
        [[call("look", item="cap")], [("price", '{"count":1, "item":"hat"}')], "Five\nonly.", "Never asked."]
    )
    replayed = replay(run(shop, shop.clerk()), shop.clerk(instructions="Other"), model)
    assert shop.called == 0
    assert [message["content"] for message in replayed.messages] == [None, "cap is here", None, "5", "Five\nonly."]
    assert whats(replayed) == [(0, "tool calls"), (1, "tool calls"), (2, "reply")]
    assert str(replayed).splitlines()[:5] == [
        "Replay of run one: 3 turns, 3 differences",
        "turn 0",
        "  tool calls",
        '    recorded: ["look(item=\\"hat\\")", "price(count=1, item=\\"hat\\")"]',
        '    now:      ["look(item=\\"cap\\")"]',
    ]
    assert "    +only." in str(replayed).splitlines()
    assert model.calls[0]["messages"][0]["content"] == "Other"


def test_the_replay_stops_at_an_unknown_call() -> None:
    """Nobody knows what a tool would answer to other arguments: it is a difference, and the replay ends there."""
    shop = Shop()
    first = run(shop, shop.clerk())
    replayed = replay(first, shop.clerk(), ScriptedModel([[call("look", item="shoe")], "Never asked."]))
    assert whats(replayed) == [(0, "tool calls"), (0, "a tool call without a recorded answer")]
    assert replayed.stopped == 'the recording has no answer to look(item="shoe") in turn 0'
    assert str(replayed).endswith("in turn 0.")
    twice = ScriptedModel([[call("look", item="hat"), call("look", item="hat")], "Never asked."])
    assert not replay(first, shop.clerk(), twice).same
    assert shop.called == 0


def test_a_longer_or_shorter_run_differs() -> None:
    """A run that ends earlier, or goes on longer, than it was recorded is not the same."""
    shop = Shop()
    first = run(shop, shop.clerk())
    shorter = replay(first, shop.clerk(), ScriptedModel([SCRIPT[0], "Five."]))
    assert (None, "turns") in whats(shorter)
    longer = replay(first, shop.clerk(), ScriptedModel([*SCRIPT[:2], [call("gone")], "Five."]))
    assert (longer.turns, longer.same) == (4, False)


def test_runs_that_did_not_end_are_replayed_as_far_as_they_go() -> None:
    """A failed run is replayed up to its failure, which is no difference; an end where it failed is one."""

    def fail() -> str:
        """Fail."""
        raise ValueError("broken")

    agent = Agent(name=f"Failing-{uuid.uuid4().hex[:8]}", functions=[fail])
    with DurableSwarm(ScriptedModel([[call("fail")]])) as swarm:
        with pytest.raises(ValueError, match="broken"):
            swarm.run(agent, ASKED, run_id="one")
        replayed = replay("one")
        assert (replayed.same, replayed.stopped) == (True, "the recording has no result of fail() in turn 0 (failed)")
        assert whats(replay("one", model=ScriptedModel(["Done."])))[-1] == (None, "the run comes to its end")


def test_a_fork_is_replayed_with_what_it_kept() -> None:
    """A fork is replayed from its first kept turn on, with the messages that were added to it."""
    shop = Shop()
    agent = shop.clerk()
    with DurableSwarm(ScriptedModel([*SCRIPT, "Yes."])) as swarm:
        swarm.run(agent, ASKED, run_id="one")
        fork = swarm.get("one").fork(1, messages=[{"role": "user", "content": "Cheaper?"}], run_id="two")
        response = fork.result(timeout=PATIENCE)
        replayed = replay("two", agent)
    assert replayed.same
    assert replayed.messages == response.messages


def test_a_golden_run_is_a_regression_test(tmp_path: Path) -> None:
    """A past run in a file passes while the code is as it was, and its failure shows the text that changed."""
    shop = Shop()
    agent = shop.clerk(instructions="Be polite.\nBe brief.")
    first, path = run(shop, agent), tmp_path / "golden.json"
    record_golden(first, path)
    assert_replays(path, agent)
    agent.instructions = "Be polite.\nBe verbose."
    with pytest.raises(AssertionError) as caught:
        assert_replays(path, agent)
    assert "turn 0\n  instructions\n" in str(caught.value)
    assert "    -Be brief.\n    +Be verbose." in str(caught.value)
    assert_replays(path, agent, ScriptedModel(SCRIPT))
    with pytest.raises(AssertionError, match="reply"):
        assert_replays(path, agent, ScriptedModel([*SCRIPT[:2], "Six."]))
    with pytest.raises(ReplayMismatch):
        assert_replays(path, shop.clerk(shop.look))
    assert shop.called == 0


def test_a_golden_run_knows_no_secrets(tmp_path: Path) -> None:
    """The hook masks a golden file too, also the prompts in it, and the file is still replayed."""
    shop = Shop()
    agent = shop.clerk(instructions="The password is tulip.")
    first, path = run(shop, agent, [*SCRIPT[:2], "It is tulip."]), tmp_path / "golden.json"
    mask = lambda _, value: value.replace("tulip", "****") if isinstance(value, str) else value  # noqa: E731
    record_golden(first, path, redact=mask)
    assert "tulip" not in path.read_text()
    assert_replays(path, agent)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        record_golden(first, tmp_path)


def test_a_golden_run_of_agents_that_are_not_defined_here(tmp_path: Path) -> None:
    """Recorded where its agents are not defined, a golden run still notices a change, by the agent's version."""
    shop, path = Shop(), tmp_path / "golden.json"
    first = run(shop, shop.clerk())
    gc.collect()  # An agent that nobody holds is not defined any more; it may still be in a cycle.
    record_golden(first, path)
    assert_replays(path, shop.clerk())
    with pytest.raises(AssertionError, match="version of agent"):
        assert_replays(path, shop.clerk(instructions="Other"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 5}', '{"run": {}, "requests": 5}', "null"])
def test_wrong_golden_files(tmp_path: Path, text: str) -> None:
    """A file that is no golden run gets one error."""
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"not a (run that|file that record_golden wrote)"):
        assert_replays(path)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"requests": 5}, "requests is not a list"),
        ({"requests": "abc"}, "requests is not a list"),
        ({"requests": [5]}, "requests is not a list"),
        ({"requests": None}, "requests is not a list"),
        ({"version": 99}, "written by a newer version.*upgrade"),
        ({"version": True}, "its version is not a whole number"),
        ({"version": "1"}, "its version is not a whole number"),
        ({"format": "other"}, "its format is not 'durable-swarm run, golden'"),
    ],
)
def test_changed_golden_files(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    """A golden file whose frame was changed, or is newer, gets one error that says so."""
    shop, path = Shop(), tmp_path / "golden.json"
    record_golden(run(shop, shop.clerk()), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ConfigurationError, match=text):
        assert_replays(path)


def test_a_replay_is_printed_without_control_characters() -> None:
    """What a model wrote cannot control the terminal on which a replay is printed."""
    shop = Shop()
    agent = shop.clerk()
    replayed = replay(run(shop, agent), agent, ScriptedModel([*SCRIPT[:2], "\x1b[31mred\u202e"]))
    assert "\x1b" not in str(replayed)
    assert "\u202e" not in str(replayed)
    assert "\\x1b[31mred" in str(replayed)


def test_a_model_by_name_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key `replay(model="name")` says what to set or to give."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shop = Shop()
    agent = shop.clerk()
    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY, or give a client of your own as model="):
        replay(run(shop, agent), agent, "gpt-x")
