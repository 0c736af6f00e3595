"""Builds wheel and sdist into `dist/`, checks them, and uses each in a clean environment as the README says.

    python scripts/try_package.py

Ends with an error if a file is missing, if the index would refuse one, or if the first run of the README prints
anything else than it shows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

TYPED = "from durable_swarm import Agent, DurableSwarm\nreveal_type(DurableSwarm().get('r').status)\n"
"""A program for the type checker, which must find the types of the installed package."""


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """Run a command, and return what it printed. Raises `CalledProcessError`, after showing the output."""
    done = subprocess.run([str(part) for part in command], cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        done.check_returncode()
    return done.stdout


def build() -> list[Path]:
    """Build wheel and sdist, and have the index's own tool check them."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build")
    made = sorted(DIST.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *made)
    return made


def first_run() -> tuple[str, str]:
    """Return the README's first program, and what it shows of its output."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    program = re.search(r'```python title="app.py"\n(.*?)```', text, re.DOTALL)
    output = re.search(r"\$ durable-swarm run --mock app.py\n(.*?)```", text, re.DOTALL)
    if program is None or output is None:
        raise SystemExit("README.md has no app.py, or does not show its output")
    return program[1], output[1]


def use(packages: list[Path]) -> None:
    """Install each package into a clean environment, and do what the README says."""
    program, output = first_run()
    with tempfile.TemporaryDirectory() as name:
        environment = Path(name) / "env"
        run(sys.executable, "-m", "venv", environment)
        for package in packages:
            folder = Path(name) / package.name
            folder.mkdir()
            (folder / "app.py").write_text(program, encoding="utf-8")
            _install(environment / "bin" / "python", package)
            printed = run(environment / "bin" / "durable-swarm", "run", "--mock", "app.py", folder=folder)
            if printed != output:
                raise SystemExit(f"{package.name}: the README shows\n{output}\nand the program printed\n{printed}")
            _check_types(folder, environment / "bin" / "python")
            _add_extra(environment / "bin" / "python")
            print(f"{package.name}: built, checked, installed and used")


def _install(python: Path, package: Path) -> None:
    """Install a package in the place of an earlier one, whose dependencies stay."""
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "uninstall", "--quiet", "--yes", "durable-swarm")
    run(*pip, "install", "--quiet", package)


def _add_extra(python: Path) -> None:
    """Add an extra by the line of the pages and messages: pip takes the package that is installed, from no index."""
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "durable-swarm[encryption]")
    run(python, "-c", "import cryptography")


def _check_types(folder: Path, python: Path) -> None:
    (folder / "typed.py").write_text(TYPED, encoding="utf-8")
    told = run(sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "typed.py", folder=folder)
    if "Literal['queued'" not in told:
        raise SystemExit(f"py.typed is not honoured: {told}")


if __name__ == "__main__":
    use(build())
