"""House rules about the package as it is released: names, imports, version and wheel."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import click
import pytest

import durable_swarm
from durable_swarm.cli.app import app
from durable_swarm.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
EXPORTED: list[str] = list(getattr(durable_swarm, "__all__", []))


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version: str = project["version"]
    return version


def _own_methods(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if not name.startswith("_") and inspect.isroutine(value)]


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_name_is_documented(name: str) -> None:
    """Every exported function and class, and every public method of such a class, has a docstring."""
    value = getattr(durable_swarm, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value), f"{name} has no docstring"
    if inspect.isclass(value) and value.__module__.startswith("durable_swarm"):
        undocumented = [method for method in _own_methods(value) if not inspect.getdoc(getattr(value, method))]
        assert not undocumented, f"methods of {name} have no docstring: {undocumented}"


ENGINE = ["dbos", "openai", "psycopg", "sqlalchemy.dialects.postgresql", "sqlalchemy.orm", "rich.live"]
UNSEEN = ["docstring_parser", "durable_swarm.engine.history.export", "durable_swarm.service.comparison"]
"""Needed by some methods of what is imported, and by none that every program calls."""


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import durable_swarm", ["dbos", "sqlalchemy", "openai", "pydantic", "durable_swarm.postgres"]),
        ("from durable_swarm import Agent, Swarm, tool", ["dbos", "sqlalchemy", "openai", "docstring_parser"]),
        ("from durable_swarm.testing import ScriptedModel, call", ["dbos", "sqlalchemy", "openai", "starlette"]),
        ("import durable_swarm.cli", ["dbos", "sqlalchemy", "openai", "pydantic", "rich", "importlib.metadata"]),
        ("import durable_swarm.cli.runs, durable_swarm.cli.requests", [*ENGINE, *UNSEEN]),
        ("import durable_swarm.cli.doctor", ["dbos", "openai", "durable_swarm.service.comparison"]),
        ("import durable_swarm.cli.watch", ["dbos", "openai"]),
        ("from durable_swarm import DurableSwarm", ["openai", "durable_swarm.postgres", *UNSEEN]),
    ],
)
def test_an_import_loads_no_library_that_it_does_not_need(statement: str, unwanted: list[str]) -> None:
    """Heavy libraries are imported when something that needs them is used for the first time."""
    program = f"import sys\n{statement}\nprint([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_command_collects_garbage_once_its_modules_are_imported() -> None:
    """Workers and servers are commands, too. A program that calls `main` with arguments keeps its own settings."""
    program = (
        "import gc, sys; from durable_swarm.cli import main; print(main({}), gc.isenabled(), gc.get_freeze_count())"
    )
    given = [sys.executable, "-c", program.format("['inbox', '--help']")]
    own = [sys.executable, "-c", program.format(""), "inbox", "--help"]
    told = [
        subprocess.run(one, check=True, capture_output=True, text=True).stdout.splitlines()[-1] for one in (given, own)
    ]
    assert told[0] == "0 True 0"
    assert re.fullmatch(r"0 True [1-9]\d*", told[1])


@pytest.mark.parametrize("name", [*EXPORTED, *durable_swarm._MODULES])
def test_each_public_name_is_there(name: str) -> None:
    """A name that is imported at its first use is listed by `dir`, and stands in the package."""
    assert name in dir(durable_swarm)
    assert getattr(durable_swarm, name) is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_begins_with_its_line_in_the_list(name: str) -> None:
    """The list of commands, which imports none of them, says what each says of itself."""
    command = app.get_command(click.Context(app), name)
    assert command is not None
    assert command.get_short_help_str(200) == COMMANDS[name].help


def test_importing_the_package_touches_nothing() -> None:
    """An import writes no file, starts no thread and prints nothing."""
    program = "import durable_swarm, os, threading; assert threading.active_count() == 1; assert os.listdir() == []"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_changelog_begins_with_this_version() -> None:
    """The newest entry of the changelog is for the version that is built."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert newest is not None, "CHANGELOG.md has no entry like '## [1.2.3] - 2030-01-31'"
    assert newest[1] == _version()


def test_the_version_stands_in_one_place() -> None:
    """No module of the package spells a version number out; who needs it asks importlib.metadata."""
    spelled = re.compile(r"__version__\s*(:\s*\w+\s*)?=\s*['\"]|['\"]" + re.escape(_version()) + "['\"]")
    sources = (ROOT / "src").rglob("*.py")
    assert [str(path) for path in sources if spelled.search(path.read_text(encoding="utf-8"))] == []


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    """The wheel carries every file of the package, the mark `py.typed`, the licence and the version."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(ROOT / "src")) for path in package} <= names
    assert {"durable_swarm/py.typed", f"durable_swarm-{_version()}.dist-info/licenses/LICENSE"} <= names


def test_readme_and_ci_run_the_same_commands() -> None:
    """The checks that run on every change are those that the README and CONTRIBUTING tell people to run."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make check" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.search(r"^make test$", script, re.MULTILINE)
    assert re.search(r"^make check$", script, re.MULTILINE)


MODULES = """
import importlib, pkgutil, types, durable_swarm
names = ["durable_swarm", *(found.name for found in pkgutil.walk_packages(durable_swarm.__path__, "durable_swarm."))]
packages = [module for module in map(importlib.import_module, names) if hasattr(module, "__path__")]
for package in packages:
    for name in getattr(package, "__all__", []):
        if isinstance(getattr(package, name), types.ModuleType):
            print(f"{package.__name__}.{name}")
"""


def test_no_module_takes_the_name_of_what_its_package_exports() -> None:
    """The first import of a module `p.name` sets `p.name` to it, and so would replace a function of that name."""
    done = subprocess.run([sys.executable, "-c", MODULES], check=True, capture_output=True, text=True)
    assert done.stdout == ""
