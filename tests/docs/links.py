"""Finds the links of pages that lead nowhere. Addresses of other sites are not opened."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.docs.pages import FENCE, ROOT, text_of

LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def anchors_of(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text_of(page))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(name)
    return found


def broken_links(pages: list[str]) -> list[str]:
    """Return `PAGE: LINK` for every link that leads nowhere."""
    return [f"{page}: {link}" for page in pages for link in _links(page) if _is_broken(page, link)]


def _links(page: str) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text_of(page)))
    yield from (link for link in LINK.findall(text) if not re.match(r"\w+:", link))


def _is_broken(page: str, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    if not target.exists():
        return True
    if not anchor or target.suffix != ".md":
        return False
    return anchor not in anchors_of(str(target.resolve().relative_to(ROOT)))
