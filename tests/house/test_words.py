"""House rules of language: plain words in pages, messages and docstrings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.words import first_words, misused, texts_of

ROOT = Path(__file__).parents[2]
PACKAGE = sorted((ROOT / "src").rglob("*.py"))
READ = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
    *PACKAGE,
]


def test_texts_use_plain_words() -> None:
    """No page, message or docstring uses a word that the list has a better one for."""
    found = [
        f"{path.relative_to(ROOT)}:{first + line}: {words!r}"
        for path in READ
        for first, text in texts_of(path)
        for line, words in misused(text)
    ]
    assert found == [], "\n".join(["", *found])


def test_docstrings_begin_with_what_they_say() -> None:
    """No docstring of a function or a class begins with a question word: it says what the thing does, or is."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in PACKAGE
        for line, word in first_words(path)
        if word in ("Gives", "What", "Whether", "Who", "Whose", "Which")
    ]
    assert found == [], "\n".join(["", *found])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The run goes on.", ["goes on"]),
        ("A text that is told from\nrecords.", ["told from"]),
        ("The model is told what is wrong.", []),
        ("There is no run; it is no run.", ["is no "]),
        ("It is no longer there, and stands for a service.", []),
        ("Code is left alone: `it goes on`.", []),
    ],
)
def test_the_list_of_words(text: str, words: list[str]) -> None:
    """The list finds what it should, and leaves good English alone."""
    assert [found for _, found in misused(text)] == words
