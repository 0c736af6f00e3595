"""The pytest plugin, as a project that has installed the package uses it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SHOP = """
from durable_swarm import Agent, DurableSwarm, current_call
from durable_swarm.testing import ScriptedModel, effect


def shop(keyed):
    def charge():
        effect("charge", key=current_call().idempotency_key if keyed else None)
        return "charged"

    with DurableSwarm(ScriptedModel([["charge"], "Done."])) as swarm:
        return swarm.run(Agent(functions=[charge]), [{"role": "user", "content": "Buy."}], run_id="r")


def good():
    return shop(True)


def bad():
    return shop(False)


def test_good(crash_test):
    print(crash_test(good))


def test_bad(crash_test):
    crash_test(bad)
"""


def pytest_in(folder: Path, *options: str) -> str:
    """Run the project's tests in a process of their own, with the plugin found by its entry point."""
    (folder / "test_shop.py").write_text(SHOP)
    made = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return made.stdout + made.stderr


def test_the_fixture_finds_and_passes(tmp_path: Path) -> None:
    """The fixture is there without any configuration; a faulty agent fails its test, with the report as the message."""
    shown = pytest_in(tmp_path)
    assert "1 failed, 1 passed" in shown, shown
    assert "tool `charge` ran twice" in shown
    assert "crash test of good: 7 boundaries, 14 cases, 14 processes killed" in shown


def test_options_of_the_command_line(tmp_path: Path) -> None:
    """The options are those of the function, and `--help` names them."""
    shown = pytest_in(tmp_path, "--crash-random", "5", "--seed", "3", "--crash-workers", "2", "-k", "good")
    assert "crash test of good: 7 boundaries, 5 cases" in shown, shown
    shown = pytest_in(tmp_path, "--help")
    assert "--crash-random=N" in shown
    assert "--crash-pairs" in shown


def test_a_project_with_a_seed_of_its_own(tmp_path: Path) -> None:
    """A `--seed` of the project is the project's; ours is `--crash-seed` then."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--seed', default='own')\n"
    )
    (tmp_path / "test_own.py").write_text(
        "def test_own(request):\n    assert request.config.getoption('seed') == 'mine'\n"
        "    assert request.config.getoption('crash_seed') == 4\n"
    )
    shown = pytest_in(tmp_path, "--seed", "mine", "--crash-seed", "4", "test_own.py")
    assert "1 passed" in shown, shown


def test_a_pytest_run_without_agents_does_not_import_the_package(tmp_path: Path) -> None:
    """The plugin itself costs nothing: neither the package nor the engine is imported for it."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_nothing():\n    assert not {'durable_swarm', 'dbos', 'openai'} & set(sys.modules)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "1 passed" in shown.stdout, shown.stdout + shown.stderr
