"""Crash tests of the kit have their lives from the server that all tests of a process share."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(autouse=True)
def _lives(life_server: ForkServerContext) -> None:
    """Have the server started before the kit would start it."""
