"""A door whose extra is missing says in one line how to install it, and stays shut where nobody names it."""

from __future__ import annotations

import sys

import pytest

from durable_swarm import DurableSwarm
from durable_swarm.errors import ConfigurationError
from durable_swarm.server import DOORS, NEEDS, app, checked_doors
from durable_swarm.testing import ScriptedModel


@pytest.mark.parametrize("door", NEEDS)
def test_a_door_without_its_extra_says_what_to_install(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the extra, which has the door's name."""
    gone = [name for name in sys.modules if name.partition(".")[0] == NEEDS[door]]
    for name in [*gone, NEEDS[door]]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"durable_swarm.server.{door}", raising=False)
    monkeypatch.delitem(sys.modules, f"durable_swarm.server.{door}_shapes", raising=False)
    with pytest.raises(ConfigurationError, match=rf"pip install 'durable-swarm\[{door}\]'"):
        app(DurableSwarm(ScriptedModel([])), doors=["api", door])


def test_doors_that_nobody_names_stay_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the doors are those whose extras are installed."""
    monkeypatch.setattr("durable_swarm.server.find_spec", lambda _: None)
    assert checked_doors(DOORS) == [door for door in DOORS if door not in NEEDS]
