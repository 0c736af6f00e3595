"""The offline model: what it calls, with which arguments, and that every run with it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from durable_swarm import Agent, ConfigurationError, Swarm
from durable_swarm.testing import ScriptedModel, mock_model, serve_scripted
from durable_swarm.testing.examples import Examples
from durable_swarm.testing.mock import answer
from tests.support import programs
from tests.support.patience import PATIENCE

SAID = "Please book 2 seats to Paris for ann@example.org on Friday, 'window' if possible"

SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "string", "enum": ["aisle", "window"]},
    {"type": "string", "format": "date"},
    {"type": "string", "minLength": 30, "maxLength": 40},
    {"type": "integer", "minimum": 5, "maximum": 9},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["string", "null"]},
    {"const": 7},
    {"default": {"a": 1}, "type": "object"},
    {"anyOf": [{"type": "null"}, {"type": "integer"}]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3},
    {"type": "object", "properties": {"city": {"type": "string"}, "when": {"type": "string"}}, "required": ["city"]},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "integer"}}},
    {"$ref": "#/$defs/deep", "$defs": {"deep": {"$ref": "#/$defs/deeper"}, "deeper": {"enum": [1, 2]}}},
    {
        "type": "array",
        "items": {"$ref": "#/$defs/seat"},
        "$defs": {"seat": {"properties": {"row": {"type": "number"}}}},
    },
]


def request(*tools: Any, said: str = SAID, **more: Any) -> dict[str, Any]:
    """Return a request with these tools, each a name or a name with its description."""
    functions = [
        {"name": tool, "parameters": {"type": "object", "properties": {}}} if isinstance(tool, str) else tool
        for tool in tools
    ]
    offered = [{"type": "function", "function": function} for function in functions]
    return {"messages": [{"role": "user", "content": said}], "tools": offered, **more}


def called(reply: Any) -> list[str]:
    """Return the names of the tools that a reply calls."""
    return [one["name"] for one in reply] if isinstance(reply, list) else []


@pytest.mark.parametrize("seed", [0, 1, 10**9])
@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_values_fit_their_schema(schema: dict[str, Any], seed: int) -> None:
    """What is made for a schema is valid, whatever the seed and whether the user said anything."""
    for said in (SAID, ""):
        jsonschema.validate(Examples(said, seed).value(schema), schema)


@pytest.mark.parametrize(
    "schema", [None, [], {"properties": 3}, {"required": "x"}, {"properties": {"a": 3}}, {"type": 3}]
)
def test_a_schema_of_no_sense_breaks_nothing(schema: Any) -> None:
    """A tool with a damaged schema is called with what can be understood of it."""
    assert isinstance(Examples(SAID).arguments(schema), dict)


def test_arguments_come_from_what_was_said() -> None:
    """Numbers, names, addresses and choices of the message are used where they fit."""
    parameters = {
        "properties": {
            "count": {"type": "integer"},
            "city": {"type": "string"},
            "email": {"type": "string"},
            "seat": {"enum": ["aisle", "window"]},
        },
        "required": ["count", "seat", "email"],
    }
    assert Examples("We are 4, to see 'Oslo' from the window; a@b.co").arguments(parameters) == {
        "count": 4,
        "email": "a@b.co",
        "seat": "window",
    }


@pytest.mark.parametrize(
    ("offered", "more", "expected"),
    [
        (["send_mail", "book_seat"], {}, ["book_seat"]),
        ([{"name": "run", "description": "Booking of seats."}], {}, ["run"]),
        (["send_mail"], {}, []),
        (["send_mail"], {"tool_choice": "required"}, ["send_mail"]),
        (
            ["book_seat", "send_mail"],
            {"tool_choice": {"type": "function", "function": {"name": "send_mail"}}},
            ["send_mail"],
        ),
        (["book_seat"], {"tool_choice": "none"}, []),
        ([], {}, []),
        ([3, {"name": None}], {}, []),
    ],
)
def test_the_tool_that_the_message_is_about_is_called(
    offered: list[Any], more: dict[str, Any], expected: list[str]
) -> None:
    """A tool is chosen by the words of the message; `tool_choice` is obeyed."""
    assert called(answer(request(*offered, **more))) == expected


def test_a_run_calls_hands_off_and_ends() -> None:
    """No tool is called twice for one message, tools named in the instructions follow, and the run ends with a text."""
    made: list[str] = []

    def refund_item(item_id: int, reason: str) -> str:
        """Refund an item."""
        made.append(f"refund {item_id} {reason}")
        return "refunded"

    def apply_discount() -> str:
        """Apply a discount."""
        made.append("discount")
        return "11 %"

    refunds = Agent(name="Mock refunds", functions=[refund_item, apply_discount], instructions="Then apply_discount.")

    def transfer_to_refunds() -> Agent:
        """Hand over to the refunds department."""
        return refunds

    triage = Agent(name="Mock triage", functions=[transfer_to_refunds])
    swarm = Swarm(ScriptedModel(mock_model()))
    response = swarm.run(triage, [{"role": "user", "content": "I want a refund of item 99"}], max_turns=40)
    assert made == ["refund 99 I want a refund of item 99", "discount"]
    assert response.ended_by == "answer"
    assert response.agent is refunds
    again = swarm.run(refunds, [*response.messages, {"role": "user", "content": "Refund item 7, too"}], max_turns=40)
    assert made[2].startswith("refund 7")
    assert again.messages[-1]["content"].startswith("(mock answer)")


def test_the_answer_is_json_where_it_is_asked_for() -> None:
    """A request with a schema for the answer gets a value of it."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMAS[13]}}
    assert answer(request(said="Fly me to Paris", response_format=form)) == '{"city": "Paris"}'
    assert answer(request(response_format={"type": "json_object"})) == "{}"


def test_a_share_of_the_requests_is_refused() -> None:
    """With `fail` about that share of the requests is refused, the same ones with the same seed."""
    reply = mock_model(seed=1, fail=0.25, status=503)
    refused = [getattr(reply(request()), "status_code", None) for _ in range(400)]
    assert 50 < refused.count(503) < 150
    again = mock_model(seed=1, fail=0.25, status=503)
    assert refused == [getattr(again(request()), "status_code", None) for _ in range(400)]


@pytest.mark.parametrize("fail", [-0.1, 1.5, "x", True])
def test_a_share_has_bounds(fail: Any) -> None:
    """Anything but a number from 0 to 1 is refused."""
    with pytest.raises(ConfigurationError, match="share from 0 to 1"):
        mock_model(fail=fail)


@pytest.mark.parametrize("streamed", [False, True])
def test_it_answers_over_http(streamed: bool) -> None:
    """The official client gets its answers, whole and streamed."""
    with serve_scripted(mock_model()) as server, server.client() as client:
        given: Any = client.chat.completions.create(model="m", stream=streamed, **request("book_seat"))
        parts = [chunk.choices[0].delta for chunk in given] if streamed else [given.choices[0].message]
        assert any(part.tool_calls and part.tool_calls[0].function.name == "book_seat" for part in parts)


PROGRAM = """
import os, time
from swarm import Agent, Swarm

def book_seat(city: str):
    with open("effects", "a") as effects:
        effects.write(city + "\\n")
    return "booked"

def confirm_seat():
    print("confirming", flush=True)
    while os.path.exists("hold"):
        time.sleep(0.02)
    return "confirmed"

agent = Agent(name="Mock travel", instructions="Then confirm_seat.", functions=[book_seat, confirm_seat])
print(Swarm().run(agent, [{"role": "user", "content": "Book me to Paris"}]).messages[-1]["content"])
"""


@pytest.mark.slow
def test_a_killed_program_continues_with_the_mock_model(tmp_path: Path) -> None:
    """`run --mock` needs no key, and a program that is killed in its second tool repeats nothing that was finished."""
    (tmp_path / "bot.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "hold").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")}
    command = [sys.executable, "-m", "durable_swarm", "run", "--mock", "bot.py"]
    first = programs.Program(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "confirming\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    (tmp_path / "hold").unlink()
    second = programs.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "The last tool said: confirmed" in second.stdout
    assert (tmp_path / "effects").read_text() == "Paris\n"


@pytest.mark.slow
def test_the_server_runs_until_it_is_interrupted(tmp_path: Path) -> None:
    """`durable-swarm mock` says how a program uses it, answers, and ends in good order on Ctrl+C."""
    command = [sys.executable, "-m", "durable_swarm", "mock", "--port", "0", "--fail", "503:1"]
    server = programs.Program(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    server.stdout.readline()
    found = re.search(r"OPENAI_BASE_URL=(\S+) OPENAI_API_KEY=(\S+)", server.stdout.readline())
    assert found is not None
    import openai

    with (
        openai.OpenAI(base_url=found[1], api_key=found[2], max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as met,
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert met.value.status_code == 503
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 0
    server.stdout.close()


@pytest.mark.parametrize("text", ["x", "429", "200:0.1", "429:2", "429:x"])
def test_a_wrong_share_is_told(tmp_path: Path, text: str) -> None:
    """`--fail` says what it takes."""
    command = [sys.executable, "-m", "durable_swarm", "mock", "--fail", text]
    done = programs.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "STATUS:SHARE" in done.stderr) == (2, True)
