"""What ended a run is told: an answer, the end of its turns, or a provider that cut the reply."""

from __future__ import annotations

import json
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Response
from durable_swarm.errors import ConfigurationError
from durable_swarm.testing import ScriptedModel, call, cut_off, serve_scripted
from tests.contract.helpers import MakeSwarm, Run, tool_contents, user
from tests.support.patience import PATIENCE


def purger() -> tuple[Agent, list[int]]:
    """Return an agent whose tool has defaults that nobody should run into, and what the tool was called with."""
    made: list[int] = []

    def purge(older_than_days: int = 0) -> str:
        made.append(older_than_days)
        return "purged"

    return Agent(name="Keeper", functions=[purge]), made


def test_an_answer(make_swarm: MakeSwarm, run: Run) -> None:
    """A run whose last message is a whole reply without calls was ended by an answer, after tools too."""
    agent, made = purger()
    response = run(make_swarm(ScriptedModel([[call("purge", older_than_days=9)], "Done."])), agent, user())
    assert (response.ended_by, made) == ("answer", [9])


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_the_end_of_its_turns(make_swarm: MakeSwarm, run: Run, most: int) -> None:
    """A run that `max_turns` ended is told from an answer, also where it never asked."""
    agent, _ = purger()
    response = run(make_swarm(ScriptedModel(lambda _: ["purge"])), agent, user(), max_turns=most)
    assert response.ended_by == "max_turns"


def test_an_answer_that_uses_up_its_turns(make_swarm: MakeSwarm, run: Run) -> None:
    """An answer that comes with the last message allowed is an answer."""
    response = run(make_swarm(ScriptedModel(["Done."])), Agent(), user(), max_turns=1)
    assert response.ended_by == "answer"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize("text", ["The capital is Paris, and", ""])
def test_a_text_that_was_cut(make_swarm: MakeSwarm, run: Run, reason: str, text: str) -> None:
    """A text that the provider cut ends the run, and is no answer; so does a reply of which nothing came."""
    response = run(make_swarm(ScriptedModel([cut_off({"content": text or None}, reason)])), Agent(), user())
    assert (response.ended_by, response.messages[-1]["content"] or "") == (reason, text)


@pytest.mark.parametrize(
    ("word", "ended_by"),
    [
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content-filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("eos", "answer"),
    ],
)
def test_other_words_for_it(make_swarm: MakeSwarm, plain_run: Run, word: str, ended_by: str) -> None:
    """What a gateway passes on in another provider's words counts as what it means."""
    agent, made = purger()
    calls = [cut_off([("purge", "")], word), cut_off("Done", word)]
    response = plain_run(make_swarm(ScriptedModel(calls)), agent, user())
    assert (response.ended_by, bool(made)) == (ended_by, ended_by == "answer")


@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize("arguments", ["", "{}", '{"older_than_days": 1', '{"older_than_days": 10}', "null"])
def test_no_call_of_a_cut_reply_is_made(make_swarm: MakeSwarm, run: Run, reason: str, arguments: str) -> None:
    """Whatever is left of its arguments: the model is told why, and may call again."""
    agent, made = purger()
    client = ScriptedModel([cut_off([("purge", arguments)], reason), [call("purge", older_than_days=30)], "Done."])
    response = run(make_swarm(client), agent, user())
    told, purged = tool_contents(response)
    assert told.startswith("Error: your reply was cut")
    assert reason in told
    assert (made, purged, response.ended_by) == ([30], "purged", "answer")


@pytest.mark.parametrize(("reason", "remedy"), [("length", "max_tokens"), ("content_filter", "the provider's filter")])
@pytest.mark.parametrize("reply", [["purge"], "Once upon"])
def test_a_cut_reply_is_logged(
    make_swarm: MakeSwarm, run: Run, reason: str, remedy: str, reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for each reply that was cut names the agent, the reason and what helps."""
    agent, _ = purger()
    run(make_swarm(ScriptedModel([cut_off(reply, reason), "Done."])), agent, user())
    (logged,) = [record for record in caplog.records if "the provider cut" in record.getMessage()]
    assert logged.levelname == "WARNING"
    assert all(part in logged.getMessage() for part in (repr(agent.name), repr(reason), remedy))


def test_several_calls_of_a_cut_reply(make_swarm: MakeSwarm, run: Run) -> None:
    """The calls before the one that was cut are not made either; each has its answer, also beside a text."""
    agent, made = purger()
    calls = [call("purge", older_than_days=5), {"name": "missing"}, ("purge", '{"older')]
    client = ScriptedModel([cut_off({"content": "First", "tool_calls": calls}), "Sorry."])
    response = run(make_swarm(client), agent, user())
    assert made == []
    assert [text[:26] for text in tool_contents(response)] == ["Error: your reply was cut "] * 3


def test_calls_that_are_not_to_be_executed(make_swarm: MakeSwarm, run: Run) -> None:
    """With `execute_tools=False` a whole reply with calls is the answer, a cut one is not."""
    agent, _ = purger()
    client = ScriptedModel([["purge"], cut_off(["purge"])])
    swarm = make_swarm(client)
    ends = [run(swarm, agent, user(), execute_tools=False).ended_by for _ in range(2)]
    assert ends == ["answer", "length"]


def test_over_http(make_swarm: MakeSwarm, run: Run) -> None:
    """The same over HTTP, with OpenAI's own client."""
    agent, made = purger()
    with serve_scripted([cut_off([("purge", "")]), cut_off("I am")]) as server, server.client() as client:
        response = run(make_swarm(client), agent, user())
    assert (response.ended_by, made) == ("length", [])


def test_the_kit_refuses_what_is_no_reason() -> None:
    """A finish reason is a text, and what is cut off has a known form."""
    for wrong in ("", None, 3):
        with pytest.raises(ConfigurationError, match="reason"):
            cut_off("x", wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cannot give the reply"):
        ScriptedModel([cut_off(3)])


ENDS: list[tuple[Any, dict[str, Any], str]] = [
    ("Done.", {}, "answer"),
    (["purge"], {"max_turns": 2}, "max_turns"),
    (cut_off("Do"), {}, "length"),
    (cut_off("Do", "content_filter"), {}, "content_filter"),
]


@pytest.mark.parametrize(("reply", "options", "ended_by"), ENDS, ids=[end for *_, end in ENDS])
def test_what_is_recorded(tmp_path: Any, reply: Any, options: dict[str, Any], ended_by: str) -> None:
    """Another process reads it: of the run, its response, its event and its export."""
    agent, _ = purger()
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    with DurableSwarm(ScriptedModel([reply]), database=url) as swarm:
        run = swarm.start(agent, user(), run_id="one", **options)
        assert run.result(timeout=PATIENCE).ended_by == run.ended_by == ended_by
        document = json.loads(json.dumps(swarm.export("one")))
    with DurableSwarm(ScriptedModel([]), database=url) as swarm:
        read = swarm.get("one")
        response: Response = read.result(timeout=PATIENCE)
        assert response.ended_by == read.ended_by == ended_by
        assert list(read.events())[-1].data == {"agent": "Keeper", "ended_by": ended_by}
        assert swarm.run(agent, user(), run_id="one").ended_by == ended_by
    with DurableSwarm(ScriptedModel([]), database=f"sqlite:///{tmp_path}/copy.sqlite") as swarm:
        assert swarm.import_run(document).ended_by == ended_by


def test_what_has_not_ended_by_itself(tmp_path: Any) -> None:
    """A run that failed was ended by nothing of the kind."""
    with DurableSwarm(ScriptedModel([ValueError("no")]), database=f"sqlite:///{tmp_path}/runs.sqlite") as swarm:
        run = swarm.start(Agent(), user())
        with pytest.raises(ValueError, match="no"):
            run.result(timeout=PATIENCE)
        assert run.ended_by is None
