"""The shop's ledger, and lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.conftest import lives

__all__ = ["lives"]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The file in which the shop writes each call."""
    path = tmp_path / "ledger"
    path.touch()
    return path
