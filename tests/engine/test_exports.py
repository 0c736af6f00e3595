"""Exported runs: written, masked, imported elsewhere, and refused where they are not what they should be."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    DurableSwarmError,
    Result,
    RunConflict,
    RunFailed,
    RunNotFound,
    sleep,
    step,
)
from durable_swarm.engine.history.export import Exported, read_document
from durable_swarm.engine.records import names
from durable_swarm.redaction import Redacting
from durable_swarm.service import import_run
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import stored_texts, unique, user
from tests.support.patience import PATIENCE

SECRET = "4111-1111"


def bank() -> Agent:
    """Give an agent whose tools do everything that leaves records."""

    def charge(context_variables: dict[str, Any], card: str) -> Result:
        """Charge a card."""

        @step
        def send() -> dict[str, Any]:
            return {"card": card, "at": datetime(2030, 1, 1, tzinfo=UTC)}

        @step(name="refused")
        def refused() -> None:
            raise ValueError(f"not {card}")

        sleep(0.001)
        context_variables["last"] = card
        try:
            refused()
        except ValueError as error:
            return Result(value=f"{send()['card']}: {error}", context_variables={"sum": Decimal("5.10")})
        return Result()

    @step
    def check(card: str) -> str:
        """Check a card."""
        return f"{card} is good"

    return Agent(name=unique("Bank"), functions=[charge, check])


def made(url: str, agent: Agent, run_id: str = "one", **options: Any) -> dict[str, Any]:
    """Make a run with all kinds of records and give it as a document."""
    calls = [call("check", card=SECRET), call("charge", card=SECRET), call("gone")]
    with DurableSwarm(ScriptedModel([calls, f"Charged {SECRET}."]), database=url, **options) as swarm:
        swarm.run(agent, user(f"Charge {SECRET}"), {"cards": {SECRET[:4]: (SECRET, {1, 2})}}, run_id=run_id)
        return swarm.export(run_id)


def as_file(document: dict[str, Any]) -> Any:
    """Give the document as it comes back from a file."""
    return read_document(json.dumps(document))


def test_a_run_goes_from_database_to_database(database_url: str, tmp_path: Path) -> None:
    """What was imported is the run: its steps, response and document are the same, on SQLite and on PostgreSQL."""
    agent, first = bank(), f"sqlite:///{tmp_path}/first.sqlite"
    document = made(first, agent)
    with DurableSwarm(database=first, client=ScriptedModel([])) as swarm:
        steps, response = swarm.get("one").steps(), swarm.get("one").result()
    with DurableSwarm(database=database_url, client=ScriptedModel(["And now?"])) as swarm:
        run = swarm.import_run(as_file(document))
        assert (run.id, run.status, run.agent) == ("one", "done", agent.name)
        assert run.result() == response
        assert run.steps() == steps
        assert swarm.export("one") == document
        assert [run.id for run in swarm.runs(status="done")] == ["one"]
        assert run.fork(1).result(timeout=PATIENCE).messages[-1]["content"] == "And now?"
    with DurableSwarm(database=f"sqlite:///{tmp_path}/third.sqlite", client=ScriptedModel([])) as swarm:
        assert swarm.import_run(document).steps() == steps
        assert swarm.recover() == []


def test_a_failed_run_keeps_its_error(database_url: str, tmp_path: Path) -> None:
    """The error of a failed run is told by the import as by the run, and the mended code can still finish it."""

    def fail() -> str:
        """Fail."""
        raise ValueError("broken")

    first, agent = f"sqlite:///{tmp_path}/first.sqlite", Agent(name=unique(), functions=[fail])
    with DurableSwarm(ScriptedModel([[call("fail")]]), database=first) as swarm:
        with pytest.raises(ValueError, match="broken"):
            swarm.run(agent, user(), run_id="one")
        document, steps = swarm.export("one"), swarm.get("one").steps()
    with DurableSwarm(ScriptedModel(lambda _: "Mended."), database=database_url) as swarm:
        run = swarm.import_run(as_file(document))
        with pytest.raises(RunFailed, match="ValueError: broken") as caught:
            run.result()
        assert caught.value.error_type == "ValueError"
        assert run.steps() == steps
        agent.functions = [_named(lambda: "fine", "fail")]
        run.resume()
        assert run.result(timeout=PATIENCE).messages[-1]["content"] == "Mended."


def _named(function: Any, name: str) -> Any:
    function.__name__ = name
    return function


def test_an_unfinished_run_is_cancelled_where_it_is_imported(tmp_path: Path) -> None:
    """A run that had not ended is nobody's to go on with: imported, it is cancelled, and says what it has."""
    first, second = (f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("first", "second"))
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(["Hi"]), database=first) as swarm:
        swarm.run(agent, user(), run_id="one")
        fork = swarm.get("one").fork(0, agent=unique("Nobody"), run_id="two")
        document = swarm.export(fork.id)
    assert document["status"] == "running"
    with DurableSwarm(ScriptedModel(["Hi"]), database=second) as swarm:
        run = swarm.import_run(as_file(document))
        assert run.status == "cancelled"
        assert swarm.import_run(as_file(document)).id == run.id
        assert swarm.recover() == []
        assert swarm.export("two")["forked_from"] == "one"


def test_the_same_run_is_imported_once(make: Make, url: str, tmp_path: Path) -> None:
    """Importing a run again changes nothing; another run of its id is a conflict, and is not touched."""
    document = made(f"sqlite:///{tmp_path}/first.sqlite", bank())
    swarm = make(ScriptedModel([]))
    swarm.import_run(document)
    stored = stored_texts(url)
    swarm.import_run(as_file(document))
    other = copy.deepcopy(document)
    other["start"]["messages"][0]["content"] = "Something else"
    with pytest.raises(RunConflict, match="has another run 'one'"):
        swarm.import_run(other)
    assert stored_texts(url) == stored
    with pytest.raises(RunNotFound):
        swarm.export("two")


def test_a_hook_masks_every_value(make: Make, url: str) -> None:
    """The hook gets every value of users with its path; nothing that it masks is in the document, which still reads."""
    paths: dict[str, Any] = {}

    def mask(path: str, value: Any) -> Any:
        paths[path] = value
        return value.replace(SECRET, "****") if isinstance(value, str) else value

    made(url, bank())
    swarm = make(ScriptedModel([]))
    document = swarm.export("one", redact=mask)
    assert SECRET not in json.dumps(document)
    assert paths["start.messages[0].content"] == f"Charge {SECRET}"
    assert paths["start.context.cards.4111[0]"] == SECRET
    assert paths["steps[0].message.tool_calls[1].function.arguments.card"] == SECRET
    assert paths["calls.0.1.changed.last"] == SECRET
    assert paths["calls.0.1.updates.sum"] == Decimal("5.10")
    assert any(path.endswith("raised.message") for path in paths)
    assert not any("role" in path or path.endswith((".id", ".name", "version")) for path in paths)
    document["id"] = "masked"
    assert swarm.import_run(document).result().messages[-1]["content"] == "Charged ****."
    everything = swarm.export("one", redact=lambda path, value: "x" if isinstance(value, str) else value)
    assert SECRET not in json.dumps(everything)


def test_a_hook_that_gives_what_cannot_stand_there(make: Make, url: str) -> None:
    """A hook that gives no text for a text is told so, with the path; so is a path in the place of a document."""
    made(url, bank())
    swarm = make(ScriptedModel([]))
    with pytest.raises(ConfigurationError, match=r"redact gave None for start\.\S+; a text is needed"):
        swarm.export("one", redact=lambda path, value: None)
    with pytest.raises(ConfigurationError, match="a text, a number or None is needed"):
        swarm.export("one", redact=lambda path, value: value if isinstance(value, str) else object())
    for wrong in ("run.json", Path("run.json")):
        with pytest.raises(ConfigurationError, match=r"json\.loads\(Path"):
            swarm.import_run(wrong)  # type: ignore[arg-type]


def test_a_document_is_open_and_what_is_imported_is_closed(tmp_path: Path) -> None:
    """A document holds what the codec opened; the database it is imported into stores it through its own codec."""
    first, second = (f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("first", "second"))
    document = made(first, bank())
    with DurableSwarm(ScriptedModel([]), database=second, codec=Redacting([SECRET], mask="####")) as swarm:
        run = swarm.import_run(document)
        assert run.messages()[-1]["content"] == "Charged ####."
    assert not [text for text in stored_texts(second) if SECRET in text]


BAD: list[tuple[Any, str]] = [
    (None, "format"),
    ([], "format"),
    ({}, "format"),
    ({"format": "durable-swarm run", "version": 2}, "newer version of durable-swarm"),
    ({"format": "durable-swarm run", "version": "1"}, "version"),
]


@pytest.mark.parametrize(("document", "text"), BAD)
def test_what_is_no_exported_run(document: Any, text: str) -> None:
    """Anything else than an exported run gets one error that says what it is not."""
    with pytest.raises(ConfigurationError, match=re.escape(text)) as caught:
        Exported(document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "\x80", "[" * 100000, b"\xff\xfe", "NaN x"])
def test_what_is_no_json(text: Any) -> None:
    """A file that is no JSON gets one error."""
    with pytest.raises(ConfigurationError, match="not JSON"):
        read_document(text)


def _changes(document: dict[str, Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """Give the place of every value in the document."""
    found: list[tuple[tuple[Any, ...], Any]] = []

    def walk(value: Any, path: tuple[Any, ...]) -> None:
        found.append((path, value))
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in inside:
            walk(item, (*path, key))

    walk(document, ())
    return found


STRANGE = [None, True, -1, 2**70, 1.5, float("nan"), "", "x", "\0", "\ud800", [], [[]], {}, {"$type": "x", "value": 1}]
STRANGE += [{"$type": "dict", "value": [[["a"], 1]]}, {"v": 2}, "r/1.2", "py_pickle", {"$type": "set", "value": [{}]}]


def test_every_value_of_a_document_may_be_hostile(make: Make, url: str, tmp_path: Path) -> None:
    """Whatever is put in place of any value, the document is refused with one error, or imported, shown and masked."""
    document = made(f"sqlite:///{tmp_path}/first.sqlite", bank())
    swarm, chance = make(ScriptedModel([])), random.Random(7)
    errors: list[str] = []
    places = [path for path, _ in _changes(document) if path]
    for number in range(200):
        changed = copy.deepcopy(document)
        *way, last = chance.choice(places)
        inside: Any = changed
        for key in way:
            inside = inside[key]
        if chance.random() < 0.2:
            del inside[last]
        else:
            inside[last] = chance.choice(STRANGE)
        if changed.get("id") == "one":
            changed["id"] = f"run-{number}"
        try:
            run = swarm.import_run(changed)
        except DurableSwarmError as error:
            errors.append(str(error))
            continue
        run.steps()
        run.messages()
        swarm.export(run.id, redact=lambda _, value: value)
    assert 30 < len(errors) < 200
    assert not [error for error in errors if "\n" in error]


def _forged(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    call_data = document["calls"]["0.1"]
    yield {"status": "cancelled", "steps": []}
    yield {"status": "cancelled", "steps": [step for step in document["steps"] if step["name"] == "tool:check"]}
    yield {"start": {**document["start"], "execute_tools": False}}
    for key in ("0.0", "0.2", "0.7", "5.0"):
        yield {"calls": {**document["calls"], key: call_data}}
    for number, name in ((2, names.TOOL), (3, names.TOOL), (3, "tool:charge"), (7, "tool:check"), (2, "tool:other")):
        forged = {"number": number, "name": name, "record": {"v": 1, "text": "forged"}}
        yield {"steps": [*(step for step in document["steps"] if step["number"] != number), forged]}


def test_no_document_hides_results_of_tools(make: Make, url: str, tmp_path: Path) -> None:
    """A result of a call that no recorded reply makes, which nobody sees until the run goes on with it, is refused."""
    document = as_file(made(url, bank()))
    with DurableSwarm(ScriptedModel([]), database=f"sqlite:///{tmp_path}/other.sqlite") as swarm:
        for changed in _forged(document):
            with pytest.raises(ConfigurationError, match="it was changed"):
                swarm.import_run({**document, **changed})
        assert swarm.runs() == []


def test_what_a_call_gave_is_read_when_it_is_imported(make: Make, url: str) -> None:
    """A call whose output is no outcome is refused at once, not when the run needs it."""
    document = made(url, bank())
    document["calls"]["0.1"]["output"] = {"v": 1, "text": 7}
    with pytest.raises(ConfigurationError, match="it was changed: the record of a tool call is damaged"):
        make(ScriptedModel([])).import_run(document)


@pytest.mark.parametrize("key", ["\ud800", "0.0/1", "", "0", "\u0660.1", "0.1\n"])
def test_a_step_begins_a_call_of_this_run(make: Make, url: str, key: str) -> None:
    """What is not <turn>.<index> as the call of a step gets one error, also what no database stores."""
    document = made(url, bank())
    next(step for step in document["steps"] if "call" in step)["call"] = key
    with pytest.raises(ConfigurationError, match=r"begins call .* which is not <turn>"):
        make(ScriptedModel([])).import_run(document)


def test_a_step_that_begins_a_call_names_it(make: Make, url: str) -> None:
    """A step of a tool call without the call is refused: nobody could find its result."""
    document = made(url, bank())
    del next(step for step in document["steps"] if "call" in step)["call"]
    with pytest.raises(ConfigurationError, match="step 3 of run 'one' is not a record"):
        make(ScriptedModel([])).import_run(document)


def test_importing_makes_the_database(tmp_path: Path) -> None:
    """A run is imported into a database that does not exist yet, but a wrong document makes none."""
    first, second = tmp_path / "first.sqlite", tmp_path / "second.sqlite"
    document = made(f"sqlite:///{first}", bank())
    with pytest.raises(ConfigurationError):
        import_run(f"sqlite:///{second}", {})
    assert not second.exists()
    assert import_run(f"sqlite:///{second}", document).status == "done"
    assert import_run(f"sqlite:///{second}", document).id == "one"
