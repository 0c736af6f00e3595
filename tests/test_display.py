"""Text on a screen: what a model or a tool wrote neither controls a terminal nor hides in it."""

from __future__ import annotations

import pytest

from durable_swarm.cli.render import draw_requests
from durable_swarm.cli.watch import _Teller
from durable_swarm.demos.refund import print_transcript
from durable_swarm.display import as_call, harmless, one_line
from durable_swarm.repl import demo_loop

HIDDEN = {
    "a direction": ("a\u202eb", "a\\u202eb"),
    "an isolate": ("a\u2067b", "a\\u2067b"),
    "the Arabic letter mark": ("a\u061cb", "a\\u061cb"),
    "a zero width space": ("a\u200bb", "a\\u200bb"),
    "a byte order mark": ("a\ufeffb", "a\\ufeffb"),
    "a joiner between Latin letters": ("a\u200db", "a\\u200db"),
    "a word joiner": ("a\u2060b", "a\\u2060b"),
    "a soft hyphen": ("a\xadb", "a\\xadb"),
    "a C1 control": ("a\x9b31mb", "a\\x9b31mb"),
    "next line": ("a\x85b", "a\\x85b"),
    "an escape": ("a\x1b[2Jb", "a\\x1b[2Jb"),
    "a tag": ("a\U000e0041b", "a\\U000e0041b"),
    "a selector behind a letter": ("a\ufe0fb", "a\\ufe0fb"),
    "a further selector": ("a\U000e0101b", "a\\U000e0101b"),
    "two selectors": ("❤\ufe0f\ufe0fb", "❤\ufe0f\\ufe0fb"),
    "a filler": ("a\u3164b", "a\\u3164b"),
    "a line separator": ("a\u2028b", "a\\u2028b"),
    "half a character": ("a\ud800b", "a\\ud800b"),
}
SHOWN = ["Grüße, 世界", "❤️ 👨‍👩‍👧 👍🏽 1️⃣ ©️", "می‌شود", "क्‍ष", "a\xa0b"]


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_is_invisible_is_written_out(kind: str) -> None:
    """Every sign that a terminal does not show, or obeys, is written as Python writes it."""
    text, written = HIDDEN[kind]
    assert one_line(text) == harmless(text) == written


@pytest.mark.parametrize("text", SHOWN)
def test_what_is_visible_stays(text: str) -> None:
    """Emoji keep their joiners and selectors, and scripts that are written with joiners keep theirs."""
    assert one_line(text) == harmless(text) == text


def test_pieces_of_a_text() -> None:
    """A sign that was cut between two pieces stays what it is, where the piece before is known."""
    assert harmless("\ufe0f", "❤") == "\ufe0f"
    assert harmless("\ufe0f") == "\\ufe0f"
    assert harmless("a\tb\r\nc") == "a\tb\nc"
    assert one_line(" a\tb\r\n c ") == "a b c"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": null, "b": [1]}', "f(a=null, b=[1])"),
        ('{"url": "http://a.example:80/"}', 'f(url="http://a.example:80/")'),
        ("null", "f(null)"),
        ("[1]", "f([1])"),
        ('{"a": ', 'f({"a": )'),
        ("", "f()"),
        ({"a": 1}, "f(a=1)"),
    ],
)
def test_a_call_in_one_line(arguments: object, shown: str) -> None:
    """A call is shown as Python writes it, and what is no object as the model wrote it."""
    assert as_call("f", arguments) == shown


@pytest.mark.parametrize("kind", HIDDEN)
def test_no_screen_hides_it(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The loop, whole and streamed, the demos' transcript and `watch` write out what is invisible in a reply."""
    text, written = HIDDEN[kind]
    calls = [{"id": "1", "function": {"name": f"t{text}", "arguments": f'{{"to": "{text}"}}'}}]
    message = {"role": "assistant", "sender": f"A{text}", "content": text, "tool_calls": calls}
    demo_loop.pretty_print_messages([message])
    printer = demo_loop._Printer()
    for item in ({"delim": "start"}, {"sender": f"A{text}", "content": text, "tool_calls": calls}, {"delim": "end"}):
        printer.take(item)
    print_transcript([message])
    teller = _Teller(lambda *words: " ".join(words), continued=False)
    teller._say(text)
    teller.close()
    printed = capsys.readouterr().out
    assert text not in printed
    assert printed.count(written) >= 10
    draw_requests([], lambda *words: "")


def test_arguments_in_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """The loop shows the arguments of a call unmangled: null, a list, and a URL with its colons."""
    for arguments in ("null", "[1]", '{"url": "http://a.example:80/"}'):
        call = {"function": {"name": "look", "arguments": arguments}}
        demo_loop.pretty_print_messages([{"role": "assistant", "sender": "A", "content": None, "tool_calls": [call]}])
    printed = capsys.readouterr().out
    assert "(null)" in printed
    assert "([1])" in printed
    assert '("url"= "http://a.example:80/")' in printed


def test_an_empty_reply_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A reply with neither text nor calls has a line of its own in the loop, whole and streamed, and in the demo."""
    message = {"role": "assistant", "sender": "A", "content": "", "tool_calls": None}
    demo_loop.pretty_print_messages([message])
    printer = demo_loop._Printer()
    for item in ({"delim": "start"}, {"sender": "A", "content": ""}, {"delim": "end"}):
        printer.take(item)
    print_transcript([message])
    assert capsys.readouterr().out.count("(empty reply)") == 3
