"""`export`, `import` and `fork` on the command line."""

from __future__ import annotations

import io
import json
import re
import stat
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.cli import main
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.testing import ScriptedModel, assert_replays, call
from tests.support.patience import PATIENCE
from tests.support.shell import Shell


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def charge(card: str) -> str:
    """Charge a card."""
    return f"{card} was charged"


def lose() -> str:
    """Fail."""
    raise KeyError("where")


@pytest.fixture
def agent() -> Agent:
    """The agent of a finished run `one` in the default database."""
    made = Agent(name=f"Bank-{uuid.uuid4().hex[:8]}", functions=[charge])
    with DurableSwarm(ScriptedModel([[call("charge", card="4111")], "Done: 4111."])) as swarm:
        swarm.run(made, [{"role": "user", "content": "Charge 4111"}], run_id="one")
    return made


def test_a_run_is_exported_and_imported(shell: Shell, agent: Agent, tmp_path: Path) -> None:
    """What `export` writes, for its owner's eyes only, `import` puts into another database, which it makes."""
    assert shell("export", "on", "--output", "run.json") == "Run one is in run.json.\n"
    assert stat.S_IMODE(Path("run.json").stat().st_mode) == 0o600
    assert shell("export", "one") == Path("run.json").read_text()
    other = f"sqlite:///{tmp_path}/other.sqlite"
    for _ in range(2):
        told = shell("import", "run.json", "--database", other)
        assert told.startswith("Run one (done) is there; see: durable-swarm show one --database sqlite:")
    assert shell("show", "one", "--database", other) == shell("show", "one")
    assert json.loads(shell("runs", "--json", "--database", other))[0]["agent"] == agent.name
    assert_replays("run.json", agent)


def test_a_run_is_imported_under_another_id(shell: Shell, agent: Agent) -> None:
    """--id lets a run stand beside one that has its id, with all that belongs to it; also one that failed."""
    shell("export", "one", "--output", "run.json")
    assert shell("import", "run.json", "--id", "again").startswith("Run again (done) is there")
    assert shell("show", "again").replace("again", "one").splitlines()[3:] == shell("show", "one").splitlines()[3:]
    assert "id" in shell("import", "run.json", "--id", "", code=2)
    with DurableSwarm(ScriptedModel([["lose"]])) as swarm, pytest.raises(KeyError):
        swarm.run(Agent(name="Loser", functions=[lose]), [{"role": "user", "content": "Go"}], run_id="lost")
    shell("export", "lost", "--output", "lost.json")
    assert shell("import", "lost.json", "--id", "found").startswith("Run found (failed) is there")
    assert "KeyError" in shell("show", "found")


def test_secrets_are_masked(shell: Shell, agent: Agent) -> None:
    """--redact masks what matches, in texts and arguments, and may be given more than once."""
    masked = shell("export", "one", "--redact", r"4\d+", "--redact", "Charge")
    assert "4111" not in masked
    document = json.loads(masked)
    assert document["start"]["messages"][0]["content"] == "[redacted] [redacted]"
    arguments = document["steps"][0]["record"]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"card": "[redacted]"}
    assert "regular expression" in shell("export", "one", "--redact", "(", code=2)


def test_an_encrypted_run_needs_its_keys(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the keys `export` and `fork` say as `show` does where they go; with them, the file is in the clear."""
    key = new_key()
    with DurableSwarm(ScriptedModel(["Secret."]), codec=EncryptionCodec(key)) as swarm:
        swarm.run(Agent(name="Spy"), [{"role": "user", "content": "Hi"}], run_id="closed")
    for command in (["export", "closed"], ["fork", "closed", "--turn", "0"]):
        told = shell(*command, code=2)
        assert "run 'closed' cannot be read here" in told
        assert "set DURABLE_SWARM_ENCRYPTION_KEYS to its keys" in told
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", key)
    assert "Secret." in shell("export", "closed")


def test_import_reads_standard_input(shell: Shell, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is standard input, so that an export can be piped from one database to another."""
    document = shell("export", "one")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(document.encode())))
    shown = json.loads(shell("import", "-", "--json", "--database", "sqlite:///other.sqlite"))
    assert (shown["id"], shown["status"], shown["forked_from"]) == ("one", "done", None)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["export", "none"], 1, "there is no run 'none'"),
        (["export", "one", "--output", "none/run.json"], 1, "cannot be written"),
        (["import", "none.json"], 1, "cannot be read"),
        (["import", "bad.json"], 2, "it is not JSON"),
        (["import", "other.json"], 2, "not a run that `durable-swarm export` wrote"),
        (["import", "changed.json"], 1, "has another run 'one'"),
        (["fork", "none", "--turn", "0"], 1, "there is no run 'none'"),
        (["fork", "one"], 2, "Missing option '--turn'"),
        (["fork", "one", "--turn", "-1"], 2, "--turn"),
        (["fork", "one", "--turn", "9"], 2, "it has 2 turns, counted from 0; take 0 to 2"),
        (["fork", "one", "--turn", "2"], 2, "give messages to continue after it"),
        (["fork", "one", "--turn", "1", "--id", "one"], 1, "not this fork"),
    ],
)
def test_wrong_use(shell: Shell, agent: Agent, arguments: list[str], code: int, text: str) -> None:
    """What cannot be done gets one line that says what to do."""
    Path("bad.json").write_text("{")
    Path("other.json").write_text('{"format": "other"}')
    Path("changed.json").write_text(shell("export", "one").replace("Charge 4111", "Charge 5"))
    assert text in shell(*arguments, code=code)


def test_a_fork_goes_on_in_the_program(shell: Shell, agent: Agent) -> None:
    """`fork` records a new run, shown with where it comes from, which the program with its agent executes."""
    told = shell("fork", "one", "--turn", "1", "--message", "Again?", "--message", "Please.", "--id", "two")
    assert re.fullmatch(r"Run two continues from turn 1 of run one when the program that defines agent '.*\n", told)
    shown = shell("show", "two")
    assert re.search(r"^forked +from turn 1 of run one$", shown, re.MULTILINE)
    assert re.search(r"^  1  model  .* kept  turn 0  version .* → charge", shown, re.MULTILINE)
    added = r"added  user: Again\?\n +added  user: Please\.$"
    assert re.search(added, shown, re.MULTILINE)
    assert json.loads(shell("show", "two", "--json"))["added"]["1"][1]["content"] == "Please."
    with DurableSwarm(ScriptedModel(["No."])) as swarm:
        messages = swarm.get("two").result(timeout=PATIENCE).messages
    assert [message["content"] for message in messages[-3:]] == ["Again?", "Please.", "No."]
    assert re.search(added + r"\n  3  model  .* turn 1  version .* No\.$", shell("show", "two"), re.MULTILINE)


def test_a_fork_as_json(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    """`fork --json` prints the new run, which may go on with another agent; one the run has not is warned of."""
    shell = Shell(capsys)
    assert main(["fork", "one", "--turn", "0", "--agent", "Boss", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ("Warning: run one has no agent 'Boss'; check the name. The new run waits for a program with it.\n")
    made: dict[str, Any] = json.loads(out)
    assert (made["forked_from"], made["turn"], made["agent"], made["idle"]) == ("one", 0, "Boss", True)
    assert {run["id"]: run["forked_from"] for run in json.loads(shell("runs", "--json"))} == {
        "one": None,
        made["id"]: "one",
    }
