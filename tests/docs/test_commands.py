"""Every command that a page names is one: it exists, and it has the options that the page gives it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest

from durable_swarm.cli.app import app
from tests.docs.pages import FENCE, pages, text_of

PAGES = [page for page in pages() if page != "CHANGELOG.md"]


def commands_of(page: str) -> Iterator[list[str]]:
    """Return the words of each command of a page: in blocks, in indented lines, and in code in the text."""
    text = text_of(page)
    blocks = [match[4] for match in FENCE.finditer(text)]
    rest = FENCE.sub("", text)
    lines = "\n".join([*blocks, *re.findall(r"^    (.+)$", rest, re.MULTILINE)]).replace("\\\n", " ").splitlines()
    typed = [re.sub(r"^(\$ )?([A-Z_]+=\S+ )*", "", line.strip()) for line in lines]
    found = [line for line in typed if re.match(r"durable-swarm [a-z]", line)]
    found += re.findall(r"`(durable-swarm [a-z][^`\n]*)`", rest)
    for line in found:
        try:
            yield shlex.split(re.split(r" [#|&]| ->", line)[0])[1:]
        except ValueError:  # A text of several lines, or an apostrophe of a sentence.
            yield line.split()[1:]


def problem_of(words: list[str]) -> str | None:
    """Return what the command line does not have of these words, or None."""
    command: click.Command = app
    context = click.Context(app)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
        under = command.get_command(context, words[0])
        if under is None:
            return f"no command {words[0]!r}"
        command, words = under, words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return None  # The rest is for the program.
    known = {name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)}
    given = [word.strip("[]…,.").partition("=")[0] for word in words if re.match(r"\[?--?[a-z]", word)]
    unknown = sorted(set(given) - known)
    return f"{command.name} has no {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    """What a page says to type, the command line takes."""
    problems = {" ".join(words): problem_of(words) for words in commands_of(page)}
    assert {line: problem for line, problem in problems.items() if problem} == {}


def test_a_command_that_does_not_exist_is_found() -> None:
    """The check sees a wrong command and a wrong option."""
    assert problem_of(["shw", "run-1"]) == "no command 'shw'"
    assert problem_of(["show", "run-1", "--colour"]) == "show has no --colour"
    assert problem_of(["runs", "--status", "failed"]) is None
