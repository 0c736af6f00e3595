"""One wrong engine: what it changes, and whether the tests notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import durable_swarm

SOURCE = Path(durable_swarm.__file__).parent
ROOT = Path(__file__).parents[2]
MATRIX = "tests/crash/test_matrix.py::test_a_run_survives_a_kill_at_every_boundary"


@dataclass(frozen=True)
class Mutant:
    """A change of one place: in `file`, `right` becomes `wrong`; `tests` are the tests that must notice."""

    name: str
    promise: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def is_red(mutant: Mutant) -> bool:
    """Whether the tests notice. Raises `ValueError` if the place is not there, or is there more than once."""
    with tempfile.TemporaryDirectory() as name:
        package = Path(name) / "durable_swarm"
        shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / mutant.file
        text = file.read_text()
        if text.count(mutant.right) != 1:
            raise ValueError(f"{mutant.name}: its place is {text.count(mutant.right)} times in {mutant.file}")
        file.write_text(text.replace(mutant.right, mutant.wrong))
        path = os.pathsep.join([name, *filter(None, [os.environ.get("PYTHONPATH")])])
        made = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=100", *mutant.tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            check=False,
        )
    if made.returncode not in (0, 1):
        raise ValueError(f"{mutant.name}: its tests cannot be run\n{made.stdout.decode()[-2000:]}")
    return made.returncode == 1
