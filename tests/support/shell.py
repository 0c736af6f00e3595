"""The command line, called in the process of a test."""

from __future__ import annotations

import pytest

from durable_swarm.cli import main


class Shell:
    """Calls the command line in this process and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Call a command that must end with `code`, and give its output; an error must be one line on stderr."""
        found = main(arguments)
        out, err = self._capsys.readouterr()
        assert found == code, err
        if code == 0:
            assert err == ""
            return out
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        return err
