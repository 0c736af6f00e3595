"""The page on the architecture is about the code of today: what it names, exists."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import FENCE, ROOT, text_of

SOURCES = ROOT / "src" / "durable_swarm"
CODE = sorted(set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of("docs/architecture.md")))))
PATHS = [code for code in CODE if re.fullmatch(r"[\w/]+(\.py|/)", code)]
NAMES = [code.removesuffix("()") for code in CODE if re.fullmatch(r"[A-Za-z_.]+(\(\))?", code)]
OUTSIDE = {"pyproject.toml", "tool.importlinter"}


@pytest.fixture(scope="module")
def sources() -> str:
    """The text of all modules."""
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py"))


def is_there(path: str) -> bool:
    """Return True if there is a file or folder with this path, or with this end of its path in the package."""
    name = path.rstrip("/")
    return (ROOT / name).exists() or any(f"/{found.as_posix()}".endswith(f"/{name}") for found in SOURCES.rglob("*"))


def test_paths_lead_to_files() -> None:
    """Each module and folder that the page names is in the repository."""
    assert len(PATHS) > 80
    assert [path for path in PATHS if not is_there(path)] == []
    assert not is_there("engine/no_such_module.py")


def test_names_are_in_the_sources(sources: str) -> None:
    """Each function, class and attribute that the page names is in the sources."""
    assert len(NAMES) > 80
    missing = [name for name in NAMES if not re.search(rf"\b{name.split('.')[-1]}\b", sources)]
    assert sorted(set(missing) - OUTSIDE) == []


def test_the_page_has_every_part() -> None:
    """The tables name each module and package of the root, and each package of the engine."""
    parts = [path for path in SOURCES.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    parts += [path for path in (SOURCES / "engine").iterdir() if (path / "__init__.py").exists()]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in parts if not path.name.startswith("__")}
    assert sorted(name for name in names if not {name, name.rstrip("/")}.intersection(CODE)) == []
