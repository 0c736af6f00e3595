"""The example of limits, with a scripted model in place of the real one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from durable_swarm.testing import ScriptedModel, call
from examples.limits import main as example

ROOT = Path(__file__).parents[2]


def test_the_example_stops_and_continues(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops after one call, continues with more, and names what it has spent."""
    monkeypatch.setenv("DURABLE_SWARM_DATABASE_URL", url)
    pages = [[call("read_page", number=number)] for number in range(3)]
    assert example.main(ScriptedModel([*pages, "Chairs are on sale."])) == "Chairs are on sale."
    stopped, spent = capsys.readouterr().out.splitlines()
    assert stopped == "stopped: 1 of 1 requests"
    assert spent.startswith("4 model calls, 3 tool calls, $0.00")


def test_the_page_on_limits_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program on the page prints what the page says."""
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    said = re.search(r"prints `(.*)` and `(.*)`", page)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, os.fspath(ROOT / "docs" / "limits.md"), "exec"), {})
    assert said is not None
    assert capsys.readouterr().out.splitlines() == [said[1], said[2]]
