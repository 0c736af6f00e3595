"""Hooks of mkdocs: pages outside of `docs/` join the site, with their links, and `llms.txt` lists all pages.

The pages are written for the repository, where their links lead from file to file. The site has the same files at the
same places, but for `docs/` itself, which is its root.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
JOINING = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/**/*", "deploy/*", "tests/kit/*.py"]
LINK = re.compile(r"(\]\(<?)([^)\s>#]+)((?:#[^)\s>]*)?>?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside of `docs/`."""
    for pattern in JOINING:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts and ".sqlite" not in path.name:
                place = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, place, abs_src_path=str(path)))
    files.append(File.generated(config, "llms.txt", content=llms()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links between files of the repository to the files of the site."""
    place = page.file.src_uri
    from_docs = not (ROOT / place).exists() or place.startswith("docs/")
    folder = posixpath.dirname(f"docs/{place}" if from_docs else place)

    def moved(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if re.match(r"\w+:", link):
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, link)).removeprefix("docs/")
        return f"{before}{posixpath.relpath(target, posixpath.dirname(place) or '.')}{after}"

    return LINK.sub(moved, markdown)


def llms() -> str:
    """Return the list of pages for language models: https://llmstxt.org."""
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "index.md"]
    first = re.search(r"\n\n(.+?)\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    about = " ".join(first[1].split()) if first else ""
    lines = [f"- [{_title(page)}]({page.stem}/): {_about(page)}" for page in pages]
    return "\n".join(["# Durable Swarm", "", f"> {about}", "", "## Pages", "", *lines, ""])


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _about(page: Path) -> str:
    """Return the first sentence of a page."""
    text = page.read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n")[0]
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
    return re.split(r"(?<=[.:]) ", plain)[0]
