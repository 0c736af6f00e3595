"""The old import names: what they give, and when they are refused."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import durable_swarm
from durable_swarm import ConfigurationError, DurableSwarm, Swarm, compat, run_demo_loop
from durable_swarm.testing import ScriptedModel

MODULES = ("swarm", "swarm.core", "swarm.types", "swarm.util", "swarm.repl", "swarm.repl.repl")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Leave no module called `swarm` behind."""
    yield
    compat.uninstall()
    for name in MODULES:
        sys.modules.pop(name, None)


def imported(line: str) -> dict[str, Any]:
    """Execute an import line of an old program and give the names it bound."""
    names: dict[str, Any] = {}
    exec(line, names)
    names.pop("__builtins__")
    return names


@pytest.mark.parametrize(
    "line",
    [
        "from swarm import Swarm, Agent",
        "from swarm import Swarm, Agent, Response, Result",
        "from swarm.core import Swarm, __CTX_VARS_NAME__",
        "from swarm.core import Agent, Response, Result, function_to_json, debug_print, merge_chunk",
        "from swarm.types import Agent, AgentFunction, Response, Result",
        "from swarm.types import ChatCompletionMessage, ChatCompletionMessageToolCall, Function",
        "from swarm.util import debug_print, function_to_json, merge_chunk, merge_fields",
        "from swarm.repl import run_demo_loop",
        "from swarm.repl.repl import run_demo_loop",
        "import swarm.repl.repl",
        "from swarm import *",
    ],
)
def test_import_lines_of_old_programs(line: str) -> None:
    """Every import line of Swarm's tests and examples works once the names are installed."""
    compat.install()
    assert imported(line)


def test_installed_names_are_ours() -> None:
    """The old names give the classes of this package."""
    compat.install()
    names = imported("from swarm import *")
    assert names == {
        "Swarm": DurableSwarm,
        "Agent": durable_swarm.Agent,
        "Response": durable_swarm.Response,
        "Result": durable_swarm.Result,
    }
    assert imported("from swarm.repl import run_demo_loop") == {"run_demo_loop": run_demo_loop}
    assert imported("from swarm.core import __CTX_VARS_NAME__")["__CTX_VARS_NAME__"] == "context_variables"


@pytest.mark.parametrize(("durable", "expected"), [(True, DurableSwarm), (False, Swarm)])
def test_durable_or_in_memory(durable: bool, expected: type) -> None:
    """`durable` decides which class is called `Swarm`, in every module that has it."""
    compat.install(durable=durable)
    assert imported("from swarm import Swarm")["Swarm"] is expected
    assert imported("from swarm.core import Swarm")["Swarm"] is expected


def test_install_twice() -> None:
    """A second `install` keeps the modules; the last `durable` counts for what is imported from then on."""
    compat.install()
    before = {name: sys.modules[name] for name in MODULES}
    compat.install()
    compat.install(durable=False)
    assert {name: sys.modules[name] for name in MODULES} == before
    assert imported("from swarm import Swarm")["Swarm"] is Swarm


@pytest.mark.parametrize("name", ["swarm", "swarm.core"])
def test_original_already_imported(name: str) -> None:
    """Where the original is imported already, `install` refuses with what to do, and changes nothing."""
    original = ModuleType(name)
    original.__file__ = "/somewhere/swarm/__init__.py"
    sys.modules[name] = original
    with pytest.raises(ConfigurationError, match=re.escape("/somewhere/swarm/__init__.py") + ".*before"):
        compat.install()
    assert [known for known in MODULES if known in sys.modules] == [name]
    assert sys.modules[name] is original


def test_uninstall() -> None:
    """After `uninstall` nothing of it is left, and it may be called at any time."""
    compat.uninstall()
    compat.install()
    compat.uninstall()
    assert [name for name in MODULES if name in sys.modules] == []


def test_modules_are_proper_modules() -> None:
    """The modules can be found, inspected and imported in every way Python has."""
    compat.install()
    for name in MODULES:
        assert importlib.import_module(name) is sys.modules[name]
        assert importlib.util.find_spec(name) is not None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("swarm.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = sys.modules["swarm.types"].nothing


def test_openai_is_imported_late() -> None:
    """Old names cost no import of openai until a program asks for one of its types."""
    program = (
        "import sys\n"
        "from durable_swarm import compat\n"
        "compat.install()\n"
        "import swarm.types, swarm.core, swarm.repl.repl\n"
        "assert 'openai' not in sys.modules, 'too early'\n"
        "from swarm.types import Function\n"
        "assert 'openai' in sys.modules, 'not at all'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_old_program_runs_unchanged(tmp_path: Path) -> None:
    """A program written for Swarm runs as it is, durably, with the model client it is given."""
    program = """
from swarm import Swarm, Agent

client = Swarm(client=model)

def transfer_to_agent_b():
    return agent_b

agent_a = Agent(name="Agent A", instructions="You are a helpful agent.", functions=[transfer_to_agent_b])
agent_b = Agent(name="Agent B", instructions="Only speak in Haikus.")

response = client.run(agent=agent_a, messages=[{"role": "user", "content": "I want to talk to agent B."}])
print(response.messages[-1]["content"])
"""
    compat.install()
    names: dict[str, Any] = {"model": ScriptedModel([["transfer_to_agent_b"], "Hope glimmers brightly"])}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, names)
    names["client"].close()
    assert printed.getvalue() == "Hope glimmers brightly\n"
    assert (tmp_path / "durable_swarm.sqlite").is_file()


def test_debug_print(capsys: pytest.CaptureFixture[str]) -> None:
    """`debug_print` prints the time and its arguments in grey, and nothing without `debug`."""
    compat.debug_print(False, "hidden")
    assert capsys.readouterr().out == ""
    compat.debug_print(True, "asked", {"n": 1})
    printed = capsys.readouterr().out
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"\x1b\[97m\[\x1b\[90m{stamp}\x1b\[97m\]\x1b\[90m asked \{{'n': 1\}}\x1b\[0m\n", printed)


def test_merge_fields() -> None:
    """`merge_fields` appends texts, in nested dictionaries too, and passes over everything else."""
    target = {"content": "Hel", "function": {"name": "", "arguments": '{"a'}, "kept": 1}
    merge = {"content": "lo", "function": {"name": "f", "arguments": '": 1}'}, "kept": None, "other": 2}
    compat.merge_fields(target, merge)
    assert target == {"content": "Hello", "function": {"name": "f", "arguments": '{"a": 1}'}, "kept": 1}


def test_merge_chunk() -> None:
    """`merge_chunk` puts streamed deltas together to one message, each tool call at its index."""
    empty = lambda: {"function": {"arguments": "", "name": ""}, "id": "", "type": ""}  # noqa: E731
    message: dict[str, Any] = {"content": "", "sender": "Agent", "role": "assistant", "tool_calls": defaultdict(empty)}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": "One ", "tool_calls": None},
        {"content": "moment", "tool_calls": None},
        {"content": None, "tool_calls": [_piece(0, id="a", type="function", name="f")]},
        {"content": None, "tool_calls": [_piece(0, arguments="{}")]},
        {"content": None, "tool_calls": [_piece(1, id="b", type="function", name="g", arguments="{}")]},
    ]
    for delta in deltas:
        compat.merge_chunk(message, delta)
    assert (message["role"], message["content"]) == ("assistant", "One moment")
    assert dict(message["tool_calls"]) == {
        0: {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        1: {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    }


def _piece(index: int, id: str = "", type: str = "", name: str = "", arguments: str = "") -> dict[str, Any]:
    return {"index": index, "id": id, "type": type, "function": {"name": name, "arguments": arguments}}


def test_unknown_fields_of_an_agent_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A program that was written for Swarm goes on although it gives an agent a field that nobody reads."""
    compat.install(durable=False)
    agent = imported("from swarm import Agent")["Agent"](name="Old", temperature=0.5)
    assert agent.name == "Old"
    assert "Agent has no field 'temperature'" in caplog.text
    compat.uninstall()
    with pytest.raises(ConfigurationError):
        type(agent)(temperature=0.5)
