"""The pytest plugin: a fixture `crash_test`, and the options that decide how it kills.

It is outside the package, so that a pytest run without agent tests does not import the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from durable_swarm.testing import CrashReport

SEED = {"type": int, "default": 0, "metavar": "N", "help": "the seed of --crash-random and --crash-pairs"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of crash tests."""
    group = parser.getgroup("durable_swarm", "crash tests of agents (durable-swarm)")
    group.addoption(
        "--crash-random", type=int, default=0, metavar="N", help="kill at N random instants, not at each boundary"
    )
    group.addoption("--crash-pairs", action="store_true", help="kill the restarted program too, while it recovers")
    group.addoption("--crash-workers", type=int, default=4, metavar="N", help="how many cases to try at once")
    group.addoption(
        "--crash-database", metavar="URL", help="a PostgreSQL server and database name to derive databases from"
    )
    group.addoption("--crash-seed", dest="crash_seed", **SEED)


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> None:
    """Add `--seed` as a short name, after all other plugins have named their options, if it is still free."""
    if "--seed" in parser.parse_known_and_unknown_args(["--seed", "1"])[1]:
        parser.getgroup("durable_swarm").addoption("--seed", dest="crash_seed", **SEED)


@pytest.fixture
def crash_test(request: pytest.FixtureRequest) -> Callable[..., CrashReport]:
    """`durable_swarm.testing.crash_test`, with the command line's options as defaults."""
    from durable_swarm.testing import crash_test

    option = request.config.getoption
    given = {
        "random": option("crash_random"),
        "pairs": option("crash_pairs"),
        "workers": option("crash_workers"),
        "database": option("crash_database"),
        "seed": option("crash_seed"),
    }

    def run(scenario: Callable[..., Any], **options: Any) -> CrashReport:
        __tracebackhide__ = True
        # Repeats the run that a report names, whatever the command line says.
        chosen = {**given, "random": 0, "pairs": False} if "only" in options else given
        return crash_test(scenario, **{**chosen, **options})

    return run
