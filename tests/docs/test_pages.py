"""Every page does what it says: commands print what is shown, and examples run."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_swarm.testing import mock_model, serve_scripted
from tests.docs.pages import blocks_of, examples_of, pages
from tests.docs.transcripts import play
from tests.support.postgres import temporary_folder

PAGES = pages()
PLAYED = [page for page in PAGES if blocks_of(page, "console") and not page.startswith("examples/")]
GIVEN: dict[str, str] = {
    "README.md": "import types; bank = types.SimpleNamespace()",
    "docs/agents.md": "import types; bank = types.SimpleNamespace()",
    "docs/effects.md": "import types; bank = types.SimpleNamespace()",
    "docs/compatibility.md": """
import sys, types
from durable_swarm import Agent, DurableSwarm
sys.modules["agents"] = types.SimpleNamespace(triage=Agent(name="Triage of a page"))
with DurableSwarm() as client:
    client.run(sys.modules["agents"].triage, [{"role": "user", "content": "Hi"}], run_id="ID")
""",
}
"""What a page's examples may use without saying where it is from."""


@pytest.fixture(scope="session")
def provider() -> Iterator[dict[str, str]]:
    """The environment of a program that asks the offline model."""
    with serve_scripted(mock_model()) as server:
        yield {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": server.api_key}


@pytest.fixture
def postgres_folder(postgres_url: str) -> Iterator[dict[str, str]]:
    """The environment in which `durable-swarm postgres` has a folder of its own, and no Docker."""
    with temporary_folder() as folder:
        yield {"DURABLE_SWARM_POSTGRES_DATA": str(folder), "DOCKER_HOST": "tcp://127.0.0.1:9"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PLAYED)
def test_commands_print_what_the_page_shows(
    page: str, tmp_path: Path, provider: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Typed into a shell, with the files of the page, the commands of a page print what it shows."""
    server = request.getfixturevalue("postgres_folder") if page == "docs/postgres.md" else {}
    play(page, tmp_path, {"DURABLE_SWARM_DEMO_SECONDS": "0.05", "NO_COLOR": "1", **provider, **server})


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page)])
def test_examples_run(page: str, provider: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python examples of a page that are no files run, one after the other."""
    for name, value in provider.items():
        monkeypatch.setenv(name, value)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    if "agents" in GIVEN.get(page, ""):
        monkeypatch.setitem(sys.modules, "agents", None)  # So that it is as before when the test has ended.
    names: dict[str, Any] = vars(module)
    exec(GIVEN.get(page, ""), names)
    for example in examples_of(page):
        exec(compile(example, page, "exec"), names)
