"""The first commands of a newcomer work where they are typed: in any folder, with any language, without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import programs

FOLDERS = ["plain", "with spaces", "Ümlaute ß", "a%20b?c#d", "quo'te\"s"]
LANGUAGES: list[dict[str, str]] = [
    {},
    {"LANG": "C", "LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LANG": "C.UTF-8", "NO_COLOR": "1", "TERM": "dumb"},
]


def typed(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """Return what a command prints that has nothing in its environment but this: no HOME, no USER, no TERM."""
    return programs.run(
        [sys.executable, "-m", "durable_swarm", *arguments],
        cwd=folder,
        env={"PATH": os.defpath, "DURABLE_SWARM_DEMO_SECONDS": "0.01", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    ).stdout.decode("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_the_demo_works_in_any_folder(name: str, tmp_path: Path) -> None:
    """In a folder of any name the demo keeps its run there, and the commands find it."""
    folder = tmp_path / name
    folder.mkdir()
    said = typed(folder, {}, "demo", "refund")
    assert "Max, item 99 is refunded" in said
    [listed] = [line for line in typed(folder, {}, "runs").splitlines() if line.startswith("demo-refund-")]
    assert " done " in listed
    assert listed.split()[0] in said
    assert (folder / "durable_swarm.sqlite").exists()


@pytest.mark.slow
@pytest.mark.parametrize("environment", LANGUAGES)
def test_the_demo_works_in_any_language(environment: dict[str, str], tmp_path: Path) -> None:
    """Whatever a terminal can show, the demo and the picture of its steps appear, and `doctor` finds no fault."""
    said = typed(tmp_path, environment, "demo", "refund")
    assert "Max, item 99 is refunded" in said
    assert "process_refund(item_id=" in typed(tmp_path, environment, "show", "demo-refund")
    assert "fail" not in typed(tmp_path, environment, "doctor")


@pytest.mark.slow
def test_two_demos_at_once_are_two_runs(tmp_path: Path) -> None:
    """Started twice in one folder at the same time, both demos end, each with a run of its own."""
    command = [sys.executable, "-m", "durable_swarm", "demo", "refund"]
    environment = {**os.environ, "DURABLE_SWARM_DEMO_SECONDS": "0.1"}
    both = [
        programs.Program(command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [demo.communicate(timeout=300)[0].decode() for demo in both]
    assert [demo.returncode for demo in both] == [0, 0]
    for text in said:
        assert text.count("step 1 of 5") == text.count("step 5 of 5") == 1
    assert typed(tmp_path, {}, "runs").count(" done ") == 2
