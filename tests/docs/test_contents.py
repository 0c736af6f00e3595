"""The pages belong together: links lead somewhere, every page has its place, shown files are used."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.docs.links import broken_links
from tests.docs.pages import ROOT, blocks_of, pages, text_of

PAGES = pages()


def test_shown_files_are_used() -> None:
    """A Python file that a page shows is run, or imported, by a command of the page or by another of its files."""
    for page in PAGES:
        blocks = blocks_of(page)
        for block in blocks:
            if block.kind == "python" and block.title is not None:
                name = Path(block.title).stem
                others = [other.text for other in blocks if other is not block]
                assert any(name in text for text in others), f"{page}: {block.title} is shown and not used"


def test_links_lead_somewhere() -> None:
    """Every link of a page to a file, a page or a heading leads to one."""
    assert broken_links(PAGES) == []


def test_every_page_has_its_place() -> None:
    """The site's contents name every page of the documentation."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page for page in PAGES if page.startswith("docs/") and f"{page.removeprefix('docs/')}\n" not in contents]
    assert missing == []


def test_extras_have_one_line() -> None:
    """Pages, messages and examples name an extra by the same line, and each that they name exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py"), *map(ROOT.joinpath, PAGES)]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"durable-swarm\[([\w-]+)\]", text)) <= set(extras), path
        assert path.name == "CONTRIBUTING.md" or not re.search(r"""['"]\.\[""", text), path


def test_the_readme_is_short() -> None:
    """The README has at most 150 lines: it leads to pages, and is not one of them."""
    assert len(text_of("README.md").splitlines()) <= 150
