"""The example of providers runs offline, survives a kill, and what the page says of it is so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from durable_swarm import providers
from durable_swarm.testing import ScriptedServer, call, serve_scripted, slowly
from tests.support import programs

ROOT = Path(__file__).parents[2]
PROGRAM = """
import runpy, sys
from openai import OpenAI
main = runpy.run_path(sys.argv[1])["main"]
official, local = (OpenAI(base_url=url, api_key="sk-test", max_retries=0) for url in sys.argv[2:])
print(main(official, local))
"""


def thinks(request: dict[str, Any]) -> Any:
    """Look up, then hand over, slowly."""
    if any(message["role"] == "tool" for message in request["messages"]):
        return slowly({"reasoning_content": "There are.", "tool_calls": [call("to_writer")]}, latency=1)
    return [call("stock", item="lamp")]


def start(official: ScriptedServer, local: ScriptedServer, folder: Path) -> subprocess.Popen[str]:
    """Start the example with two providers."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "examples" / "providers" / "main.py")]
    urls = [official.base_url, local.base_url]
    return programs.Program([*command, *urls], cwd=folder, stdout=subprocess.PIPE, text=True)


def test_the_example_survives_a_kill_and_pays_once(tmp_path: Path) -> None:
    """Killed while it waits for the second answer, it goes on with that answer; nothing is asked or looked up twice."""
    with serve_scripted(thinks) as official, serve_scripted(["Three lamps are left."]) as local:
        first = start(official, local, tmp_path)
        while not any(request.path.startswith("/v1/responses/resp_2") for request in official.requests):
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
        before, _ = first.communicate(timeout=200)
        after, _ = start(official, local, tmp_path).communicate(timeout=200)
        assert len(official.calls) == 2
        assert "There are." not in json.dumps(local.calls)
    assert (before + after).count("looking up lamp") <= 1
    assert after == "Three lamps are left.\n"


def test_the_page_shows_a_program() -> None:
    """The program on the page of providers is made of what the package has."""
    page = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
    imported = re.findall(r"from durable_swarm.providers import (.*)", page)
    assert imported == [", ".join(sorted(providers.__all__))]
