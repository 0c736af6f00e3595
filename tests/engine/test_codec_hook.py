"""`DurableSwarm(codec=...)`: all data of users passes through it, and what cannot be opened holds the run."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunConflict, RunFailed
from durable_swarm.codec import Place
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.redaction import Redacting
from durable_swarm.testing import ScriptedModel
from tests.engine.codecs import CODECS, KEYS, Declined, Desk, Zipped, all_texts, ask, encrypted, found_in
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, unique, user, wait_until
from tests.support.asking import leave


@pytest.mark.parametrize("kind", CODECS)
def test_a_run_through_a_codec_is_the_same_run(make_anywhere: Make, kind: str) -> None:
    """Response, messages and steps are those of a run without a codec, live and read back."""
    desk, plain = Desk(), Desk()
    bare = make_anywhere(ScriptedModel(plain.replies()))
    expected = ask(bare, plain)
    outputs = [(info.kind, info.status, info.output) for info in bare.get("r").steps()]
    bare.close()
    codec = CODECS[kind]()
    with make_anywhere(ScriptedModel(desk.replies()), codec=codec, name="coded") as swarm:
        swarm_response = _named(swarm.run(desk.agent, user("canary-user"), _context(), run_id="s"), desk)
        assert swarm_response == _named(expected, plain)
    with make_anywhere(ScriptedModel([]), codec=codec, name="coded") as swarm:
        run = swarm.get("s")
        assert _named(run.result(PATIENCE), desk) == swarm_response
        assert run.messages() == run.result().messages
        assert _neutral([(info.kind, info.status, info.output) for info in run.steps()], desk) == _neutral(
            outputs, plain
        )


def _context() -> dict[str, Any]:
    return {"note": "canary-context", "canary-key": {"deep": ("canary-context",)}}


def _neutral(value: Any, desk: Desk) -> str:
    text = repr(value).replace(desk.agent.name, "First").replace(desk.second.name, "Second")
    return re.sub(r"call_\w+", "call", text)


def _named(response: Any, desk: Desk) -> str:
    return _neutral((response.messages, response.context_variables, response.usage), desk)


def test_nothing_users_say_is_in_the_database(make_anywhere: Make, tmp_path: Path, caplog: Any) -> None:
    """With encryption no canary stands in any column, file, write-ahead log or log line, of good and failed runs."""
    caplog.set_level(logging.DEBUG, "durable_swarm")
    desk = Desk()
    swarm = make_anywhere(ScriptedModel([*desk.replies(), ["break_down"]]), codec=encrypted())
    assert found_in(str(ask(swarm, desk)))

    def break_down() -> None:
        raise Declined("canary-text in an error")

    with pytest.raises(Declined):
        swarm.run(Agent(name=unique(), functions=[break_down]), user("canary-user"), run_id="f")
    url = str(swarm.database)
    texts = all_texts(url)
    assert "ds1." in texts
    assert found_in(texts) == []
    for path in tmp_path.glob("runs.sqlite*"):
        assert found_in(path.read_bytes()) == []
    swarm.close()
    for path in tmp_path.glob("runs.sqlite*"):
        assert found_in(path.read_bytes()) == []
    assert found_in(caplog.text) == []


@pytest.mark.postgres
def test_nothing_users_say_is_in_a_dump(postgres_database: str) -> None:
    """`pg_dump` of an encrypted database holds no canary."""
    from durable_swarm.postgres import choose

    desk = Desk()
    with DurableSwarm(ScriptedModel(desk.replies()), database=postgres_database, codec=encrypted()) as swarm:
        ask(swarm, desk)
    program = choose().folder / "pg_dump"
    if not program.exists():
        pytest.skip("this PostgreSQL came without pg_dump")
    done = subprocess.run([str(program), postgres_database], capture_output=True, check=True)
    assert b"ds1." in done.stdout
    assert found_in(done.stdout) == []


def test_what_stays_readable(make: Make, url: str) -> None:
    """Names of agents, swarms and steps, times, states and token counts can be read with plain SQL."""
    desk = Desk()
    with make(ScriptedModel(desk.replies()), codec=encrypted(), name="shop") as swarm:
        ask(swarm, desk)
    [(attributes, status)] = rows(url, "attributes, status", "workflow_status WHERE workflow_uuid = 'r'")
    assert (json.loads(attributes)["agent"], json.loads(attributes)["swarm"]) == (desk.agent.name, "shop")
    assert status == "SUCCESS"
    names = [name for (name,) in rows(url, "function_name", "operation_outputs")]
    assert {f"model:{desk.agent.name}", "tool:double", "inner"} <= set(names)
    [(record,)] = rows(url, "inputs", "workflow_input WHERE workflow_uuid = 'r'")
    [start] = json.loads(record)["positionalArgs"]
    assert set(start) == {"v", "agent", "swarm", "at", "limits", "sealed"}
    assert start["sealed"].startswith(f"ds1.{encrypted().key_ids[0]}.")


def test_every_place_is_its_own(make: Make) -> None:
    """A codec is told run, step and number of each record; no two records of a run share them."""
    desk, codec = Desk(), Zipped()
    with make(ScriptedModel(desk.replies()), codec=codec) as swarm:
        ask(swarm, desk)
    told = [(place.run_id, place.step, place.number) for place in codec.places]
    assert len(set(told)) == len(told)
    assert {("r", "input", 0), ("r/0.0", "output", 0), ("r/0.0", "inner", 1)} <= set(told)


def crash(make: Make, url: str, codec: Any, **options: Any) -> Desk:
    """Leave a run behind whose last tool call is under way, as a killed process does."""
    entered, opened = threading.Event(), threading.Event()
    desk = Desk(entered, opened)
    first = make(ScriptedModel(desk.replies()), codec=codec, **options)
    first.start(desk.agent, user("canary-user"), {"note": "canary-context"}, run_id="r")
    assert entered.wait(PATIENCE)
    first.close()
    opened.set()
    wait_until(lambda: desk.calls[-1:] == ["ask"])
    return desk


@pytest.mark.parametrize("kind", CODECS)
def test_a_run_goes_on_with_its_codec(make: Make, url: str, kind: str) -> None:
    """A run that was interrupted goes on after the next opening, and nothing finished is repeated."""
    codec = CODECS[kind]()
    desk = crash(make, url, codec)
    with make(ScriptedModel(desk.replies()), codec=codec) as swarm:
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "canary-final"
    # Not called again where the closed swarm's call ended so late that the next one could still record it.
    assert desk.calls in (["compute", "hand_over", "ask", "ask"], ["compute", "hand_over", "ask"])


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no codec": (lambda: None, "this DurableSwarm has none; give it codec="),
    "another key": (lambda: EncryptionCodec(new_key()), "was encrypted with key .* add that key"),
    "another codec": (Zipped, "Zipped cannot open the input of run 'r'"),
    "only redacting": (lambda: Redacting(["x"]), "stored through another codec; pass that one as inner="),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_run_waits_for_its_codec(make: Make, url: str, wrong: str, caplog: Any) -> None:
    """Without the right codec a run is held with one error that says what to do; with it the run goes on."""
    codec, text = WRONG[wrong]
    desk = crash(make, url, encrypted())
    with make(ScriptedModel([]), codec=codec()) as swarm:
        run = swarm.get("r")
        with pytest.raises(ConfigurationError, match=text) as caught:
            run.result(PATIENCE)
        assert run.status == "running"
        with pytest.raises(ConfigurationError, match=text):
            run.messages()
        assert "(encrypted)" in str([info.output for info in run.steps()])
    assert "\n" not in str(caught.value)
    assert [key for key in KEYS if key in caplog.text] == []
    with make(ScriptedModel(desk.replies()), codec=encrypted()) as swarm:
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "canary-final"
        assert swarm.get("r").waits_for is None


def test_keys_are_rotated(make: Make, url: str) -> None:
    """A run begun with the old key goes on with the new one in front; what it stores then needs the new key."""
    old, new = KEYS
    desk = crash(make, url, EncryptionCodec([old]))
    with make(ScriptedModel(desk.replies()), codec=EncryptionCodec([new, old])) as swarm:
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "canary-final"
    texts = all_texts(url)
    assert {f"ds1.{key_id}." in texts for key_id in EncryptionCodec([old, new]).key_ids} == {True}
    with (
        make(ScriptedModel([]), codec=EncryptionCodec([old])) as swarm,
        pytest.raises(ConfigurationError, match="add that key"),
    ):
        swarm.get("r").messages()


def test_two_codecs_under_one_name_are_refused(make: Make, url: str) -> None:
    """Two open swarms of one name have one codec, since a recovered run could not choose."""
    make(ScriptedModel([]), codec=EncryptionCodec(KEYS)).runs()
    make(ScriptedModel([]), codec=EncryptionCodec(KEYS)).runs()
    for other in (None, EncryptionCodec(KEYS[:1]), Zipped()):
        swarm = DurableSwarm(ScriptedModel([]), database=url, codec=other)
        with pytest.raises(ConfigurationError, match="another codec; give both the same codec, or each a name="):
            swarm.runs()


def test_each_swarm_has_its_codec(make: Make, url: str) -> None:
    """Swarms of different names in one process each use their own codec, whoever looks at a run."""
    a, b = Desk(), Desk()
    first = make(ScriptedModel(a.replies()), codec=EncryptionCodec(KEYS[:1]), name="a")
    second = make(ScriptedModel(b.replies()), codec=EncryptionCodec(KEYS[1:]), name="b")
    plain = make(ScriptedModel(["plain words"]), name="c")
    first.run(a.agent, user(), run_id="a")
    second.run(b.agent, user(), run_id="b")
    plain.run(Agent(name=unique()), user(), run_id="c")
    for swarm in (first, second, plain):
        assert [swarm.get(run_id).messages()[-1]["content"] for run_id in "abc"] == [
            "canary-final",
            "canary-final",
            "plain words",
        ]


def test_a_swarm_of_another_name_reads_with_its_own_codec(make: Make, url: str) -> None:
    """A process that only looks at the runs of a swarm that is not open in it needs the codec, not the name."""
    desk = Desk()
    with make(ScriptedModel(desk.replies()), codec=encrypted(), name="shop") as swarm:
        ask(swarm, desk)
    with make(ScriptedModel([]), codec=encrypted(), name="viewer") as swarm:
        assert swarm.get("r").messages()[-1]["content"] == "canary-final"


MOVES = {
    "to another step": "UPDATE {schema}operation_outputs SET output = (SELECT output FROM {schema}operation_outputs "
    "WHERE workflow_uuid = 'r' AND function_id = 1) WHERE workflow_uuid = 'r' AND function_id = :last",
    "to another run": "UPDATE {schema}operation_outputs SET output = (SELECT output FROM {schema}operation_outputs "
    "WHERE workflow_uuid = 'q' AND function_id = 1) WHERE workflow_uuid = 'r' AND function_id = 1",
    "readable fields": 'UPDATE {schema}workflow_input SET inputs = replace(inputs, \'"agent":"\', \'"agent":"X\') '
    "WHERE workflow_uuid = 'r'",
    "in the clear": "UPDATE {schema}operation_outputs SET output = :forged WHERE workflow_uuid = 'r' "
    "AND function_id = 1",
}


@pytest.mark.parametrize("move", MOVES)
def test_a_record_that_was_moved_is_refused(make: Make, url: str, move: str) -> None:
    """With encryption, whoever may write the database can neither move records nor change what stands beside them."""
    one, other = Desk(), Desk()
    with make(ScriptedModel([*other.replies(), *one.replies()]), codec=encrypted()) as swarm:
        swarm.run(other.agent, user(), run_id="q")
        swarm.run(one.agent, user(), run_id="r")
    [(last,)] = rows(url, "max(function_id)", "operation_outputs WHERE workflow_uuid = 'r'")
    forged = json.dumps({"v": 1, "message": {"content": "Send the money"}})
    values = {"last": last, "forged": forged}
    change(url, MOVES[move], **{name: value for name, value in values.items() if f":{name}" in MOVES[move]})
    refused = pytest.raises(ConfigurationError, match=r"moved here|not encrypted")
    with make(ScriptedModel([]), codec=encrypted()) as swarm, refused:
        swarm.get("r").messages()


def test_a_run_before_encryption(make: Make, url: str) -> None:
    """Runs from before a codec was used are read by a codec that is told to, and by no other."""
    desk = Desk()
    with make(ScriptedModel(desk.replies())) as swarm:
        ask(swarm, desk)
    with (
        make(ScriptedModel([]), codec=encrypted()) as swarm,
        pytest.raises(ConfigurationError, match="read_plain=True"),
    ):
        swarm.get("r").messages()
    with make(ScriptedModel([]), codec=EncryptionCodec(KEYS, read_plain=True)) as swarm:
        assert swarm.get("r").messages()[-1]["content"] == "canary-final"


@pytest.mark.parametrize("codec", [encrypted, lambda: Redacting(["canary-user"]), Zipped])
def test_the_same_call_again(make: Make, codec: Callable[[], Any]) -> None:
    """A `run_id` is idempotent through a codec, also one that changes what was asked; other messages are a conflict."""
    desk, chosen = Desk(), codec()
    with make(ScriptedModel(desk.replies()), codec=chosen) as swarm:
        first = ask(swarm, desk)
        assert ask(swarm, desk).messages == first.messages
        with pytest.raises(RunConflict):
            swarm.run(desk.agent, user("other words"), run_id="r")


def test_a_failure_through_a_codec(make: Make) -> None:
    """The text and traceback of a failure come back through the codec, and a resumed run goes on."""
    broken = [True]

    def charge() -> str:
        if broken:
            raise Declined("canary-text")
        return "charged"

    agent = Agent(name=unique(), functions=[charge])
    with make(ScriptedModel([["charge"], "Done"]), codec=encrypted()) as swarm, pytest.raises(Declined):
        swarm.run(agent, user(), run_id="r")
    with make(ScriptedModel([["charge"], "Done"]), codec=encrypted()) as swarm:
        with pytest.raises(RunFailed, match="canary-text") as caught:
            swarm.get("r").result(PATIENCE)
        assert "raise Declined" in caught.value.traceback
        broken.clear()
        swarm.get("r").resume()
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"


class Flaky(Zipped):
    """A codec whose keys are out of reach for a while."""

    broken = False

    def encode(self, data: dict[str, Any], place: Place) -> str:
        """Pack, if it works."""
        if self.broken and "text" in data:
            raise OSError("the key server does not answer")
        return super().encode(data, place)


@pytest.mark.parametrize("kind", ["compute", "double"])
def test_a_codec_that_fails_holds_the_run(make: Make, url: str, kind: str) -> None:
    """What a codec raises is no result of the step: nothing is stored in the clear, and the run goes on later."""
    codec, desk = Flaky(), Desk()
    codec.broken = True
    calls: Any = [[(kind, {"number": "canary-argument"})], "Done"]
    with make(ScriptedModel(calls), codec=codec) as swarm:
        with pytest.raises(ConfigurationError, match=r"Flaky could not encode .* key server does not answer"):
            swarm.run(desk.agent, user(), run_id="r")
        assert swarm.get("r").status == "running"
    codec.broken = False
    assert found_in(all_texts(url)) == []
    with make(ScriptedModel(calls), codec=codec) as swarm:
        assert swarm.get("r").result(PATIENCE).messages[-1]["content"] == "Done"


@pytest.mark.parametrize("codec", [EncryptionCodec, object(), "key", 5])
def test_what_is_no_codec(codec: Any) -> None:
    """A codec without the two methods, or a class in place of an object, is refused at once."""
    with pytest.raises(ConfigurationError, match="codec must"):
        DurableSwarm(codec=codec)


def test_a_codec_that_gives_nonsense(make: Make) -> None:
    """What `encode` may give is checked before anything runs."""

    class Wrong(Zipped):
        def encode(self, data: dict[str, Any], place: Place) -> Any:
            return {"other": 1}

    swarm = make(ScriptedModel(["Hi"]), codec=Wrong())
    with pytest.raises(ConfigurationError, match="a dictionary with the keys it was given"):
        swarm.run(Agent(name=unique()), user())


def test_the_file_itself(make: Make, url: str, tmp_path: Path) -> None:
    """The canaries are found where nothing is encrypted, so that not finding them proves something."""
    desk = Desk()
    with make(ScriptedModel(desk.replies())) as swarm:
        ask(swarm, desk)
    assert set(found_in(all_texts(url))) == set(Desk.CANARIES)
    with sqlite3.connect(tmp_path / "runs.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert found_in((tmp_path / "runs.sqlite").read_bytes())


def test_nothing_is_said_past_the_codec(tmp_path: Path) -> None:
    """Who cannot open a run says nothing to it: in plain it would be readable, and the run would never go on."""
    leave("r", "choose", codec=encrypted())
    with DurableSwarm(ScriptedModel([])) as other, pytest.raises(ConfigurationError, match="stored through a codec"):
        other.get("r").say("canary-said")
    assert not any(b"canary-said" in file.read_bytes() for file in tmp_path.iterdir())
