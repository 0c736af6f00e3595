"""The codecs by themselves: encryption with its keys, and redaction."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import traceback
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_swarm import codec
from durable_swarm.codec import Place
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.errors import ConfigurationError
from durable_swarm.redaction import Redacting

KEY, OTHER = new_key(), new_key()
ONE = EncryptionCodec(KEY)
PLACE = Place("run", "model:Clerk", 3, {"v": 1, "model": "gpt-4o"})

FEW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)
python_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.decimals() | st.dates() | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.frozensets(st.text(), max_size=3)
    ),
    max_leaves=15,
)
places = st.builds(
    Place, st.text(), st.text(), st.integers(0, 10**6), st.dictionaries(st.text(), st.text(), max_size=3)
)


@FEW
@given(json_objects, places)
def test_what_is_encrypted_comes_back(data: dict[str, Any], place: Place) -> None:
    """Decrypting at the same place gives the data, whatever both are; the text is plain ASCII for any database."""
    stored = ONE.encode(data, place)
    assert stored.isascii()
    assert codec.storable(stored)
    assert ONE.decode(stored, place) == data


@FEW
@given(json_objects, places, places)
def test_a_record_belongs_to_one_place(data: dict[str, Any], place: Place, elsewhere: Place) -> None:
    """At any other place a record is refused."""
    if place.associated() == elsewhere.associated():
        return
    with pytest.raises(ConfigurationError, match="moved here"):
        ONE.decode(ONE.encode(data, place), elsewhere)


@FEW
@given(st.data())
def test_a_changed_text_is_refused(data: st.DataObject) -> None:
    """No change of a stored text gives anything but one clear error."""
    stored = ONE.encode({"text": "transfer 10 to Ada"}, PLACE)
    at = data.draw(st.integers(0, len(stored) - 1))
    changed = stored[:at] + data.draw(st.text(max_size=3)) + stored[at + 1 :]
    if changed == stored:
        return
    try:
        found = ONE.decode(changed, PLACE)
    except ConfigurationError:
        return
    # Padding bits of base64 may change, and mean the same bytes.
    assert found == {"text": "transfer 10 to Ada"}


@FEW
@given(st.text() | st.builds(lambda text: f"ds1.{ONE.key_ids[0]}.{text}", st.text()))
def test_any_text_is_refused(text: str) -> None:
    """A text that was never written is refused with one clear error."""
    with pytest.raises(ConfigurationError, match=r"it was|it is damaged"):
        ONE.decode(text, PLACE)


def test_the_same_data_never_looks_the_same() -> None:
    """Two records of the same data have nothing in common that tells so."""
    first, second = (ONE.encode({"text": "yes"}, PLACE).rpartition(".")[2] for _ in range(2))
    assert first[:16] != second[:16]


def test_rotation() -> None:
    """The first key encrypts, every key decrypts, and a key that was taken away is named when it is missed."""
    old = ONE.encode({"text": "old"}, PLACE)
    both = EncryptionCodec([OTHER, KEY])
    assert both.decode(old, PLACE) == {"text": "old"}
    new = both.encode({"text": "new"}, PLACE)
    assert EncryptionCodec(OTHER).decode(new, PLACE) == {"text": "new"}
    with pytest.raises(ConfigurationError, match=rf"with key '{both.key_ids[0]}', .* has key '{ONE.key_ids[0]}'; add"):
        ONE.decode(new, PLACE)


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the keys come from the environment, with commas between them, newest first."""
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", f" {OTHER} , {KEY},")
    assert EncryptionCodec() == EncryptionCodec([OTHER, KEY])
    monkeypatch.delenv("DURABLE_SWARM_ENCRYPTION_KEYS")
    with pytest.raises(ConfigurationError, match=r"at least one key.*set DURABLE_SWARM_ENCRYPTION_KEYS"):
        EncryptionCodec()


def test_a_key_in_either_base64() -> None:
    """A key is taken in the alphabet of URLs and in the common one."""
    common = base64.b64encode(b"\xfb\xff" * 16).decode()
    assert EncryptionCodec(common) == EncryptionCodec(common.replace("+", "-").replace("/", "_"))


BAD_KEYS = ["hunter2-is-short", base64.b64encode(b"x" * 16).decode(), KEY[:-4], "ä" * 43 + "=", f"{KEY},short"]


@pytest.mark.parametrize("key", BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_what_is_no_key(key: str) -> None:
    """A key of another length or alphabet is refused by its number, and is not shown."""
    with pytest.raises(ConfigurationError, match=r"encryption key \d is not 32 bytes in base64; make one") as caught:
        EncryptionCodec(key)
    assert key.rpartition(",")[2] not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("keys", [[], "", [b"x" * 32], 5, [None]])
def test_no_keys(keys: Any) -> None:
    """An empty list of keys and keys that are no text are refused with the way to make one."""
    with pytest.raises(ConfigurationError, match="at least one key"):
        EncryptionCodec(keys)


def test_keys_are_never_shown() -> None:
    """Neither `repr`, `str`, `vars` nor an error's traceback shows a key."""
    key = new_key()
    made = EncryptionCodec(key)
    with pytest.raises(ConfigurationError) as caught:
        made.decode(ONE.encode({}, PLACE), PLACE)
    told = [repr(made), str(vars(made)), repr(made._ciphers), "".join(traceback.format_exception(caught.value))]
    raw = base64.urlsafe_b64decode(key)
    assert [text for text in told if key in text or raw.hex() in text or repr(raw)[2:-1] in text] == []


def test_plain_records() -> None:
    """A record that is not encrypted is refused, unless the codec was told to read such."""
    with pytest.raises(ConfigurationError, match="it is not encrypted"):
        ONE.decode({"text": "forged"}, PLACE)
    assert EncryptionCodec(KEY, read_plain=True).decode({"text": "old"}, PLACE) == {"text": "old"}


def test_equal_codecs() -> None:
    """Two codecs are equal if they treat records alike; their hashes agree."""
    assert EncryptionCodec(KEY) == ONE != EncryptionCodec(OTHER)
    assert EncryptionCodec(KEY, read_plain=True) != ONE
    assert hash(EncryptionCodec(KEY)) == hash(ONE)
    assert Redacting("a", ONE) == Redacting(["a"], EncryptionCodec(KEY)) != Redacting("b", ONE)
    assert hash(Redacting("a")) == hash(Redacting(["a"]))
    assert ONE != "key"
    assert Redacting("a") != "a"


def test_without_cryptography() -> None:
    """Without the extra the package works, and the codec says what to install."""
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import durable_swarm, durable_swarm.encryption as e\n"
        "try: e.EncryptionCodec(e.new_key())\n"
        "except durable_swarm.ConfigurationError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "encryption needs the package cryptography; run: pip install 'durable-swarm[encryption]'"
    )


def test_the_package_does_not_import_cryptography() -> None:
    """Who does not encrypt does not load the library."""
    program = "import sys, durable_swarm, durable_swarm.cli; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Redaction

MASKING = Redacting([r"secret-\d+", re.compile("PIN")])


@FEW
@given(python_values)
def test_redaction_leaves_the_rest_alone(value: Any) -> None:
    """What no pattern matches comes back as it was, of whatever types."""
    stored = {"value": codec.encode(value), "context": {"key": codec.encode(value)}}
    assert Redacting(["\ue000never\ue000"]).encode(stored, PLACE) == stored


@FEW
@given(python_values, st.sampled_from(["context", "value", "text", "message", "raised"]))
def test_redaction_leaves_nothing(value: Any, field: str) -> None:
    """No text of a value keeps what a pattern matches, and what is stored can be read."""
    masking = Redacting(["[a-zA-Z0]"], mask="_")
    stored = masking.encode({field: codec.encode({"a": value, "b": ["zero", b"zero", {1: "zero"}]})}, PLACE)
    assert isinstance(stored, dict)
    found = codec.decode(stored[field])
    assert found["b"] == ["____", b"____", {1: "____"}]
    assert [text for text in _texts(found["a"]) if re.search("[a-zA-Z0]", text)] == []


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes):
        return [value.decode("latin-1")]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | frozenset) else []
    return [text for item in items for text in _texts(item)]


def test_redaction_in_a_message() -> None:
    """Content and arguments are masked, escaped ones too; roles, ids and names stay, or no provider would take it."""
    arguments = json.dumps({"note": 'é "secret-1"', "role": "secret-2", "n": 3})
    call = {"id": "secret-3", "type": "function", "function": {"name": "secret-4", "arguments": arguments}}
    message = {"role": "assistant", "content": "the PIN", "sender": "secret-5", "tool_calls": [call]}
    told = {"tell": "Error: secret-6"}
    masked = MASKING.encode({"message": message, "plan": ["step", told]}, PLACE)
    assert isinstance(masked, dict)
    [made] = masked["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"note": 'é "[redacted]"', "role": "[redacted]", "n": 3}
    assert (made["id"], made["function"]["name"], masked["message"]["sender"]) == ("secret-3", "secret-4", "secret-5")
    assert masked["message"]["content"] == "the [redacted]"
    assert masked["plan"] == ["step", {"tell": "Error: [redacted]"}]


def test_redaction_of_arguments_that_are_no_json() -> None:
    """Arguments that the model botched are masked as text."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": secret-1'}}
    masked = MASKING.encode({"message": {"tool_calls": [call]}}, PLACE)
    assert "secret" not in str(masked)


def test_redaction_of_a_failure() -> None:
    """Text, arguments and attributes of an error are masked; its type and step stay."""
    record = {"type": "PIN", "step": "PIN", "message": "PIN", "args": ["PIN"], "state": {"id": "PIN"}}
    masked = MASKING.encode({"raised": record}, PLACE)
    assert isinstance(masked, dict)
    gone = "[redacted]"
    assert masked["raised"] == {"type": "PIN", "step": "PIN", "message": gone, "args": [gone], "state": {"id": gone}}


def test_redaction_before_encryption() -> None:
    """The inner codec gets what was masked, and opens it again."""
    both = Redacting("secret", ONE)
    stored = both.encode({"text": "a secret"}, PLACE)
    assert isinstance(stored, str)
    assert both.decode(stored, PLACE) == ONE.decode(stored, PLACE) == {"text": "a [redacted]"}
    with pytest.raises(ConfigurationError, match="pass that one as inner="):
        MASKING.decode(stored, PLACE)


@pytest.mark.parametrize("patterns", [[], ["("], [5], None, [re.compile(b"x")]])
def test_what_is_no_pattern(patterns: Any) -> None:
    """Patterns that are none are refused."""
    with pytest.raises(ConfigurationError, match="patterns must be"):
        Redacting(patterns)


@pytest.mark.parametrize("mask", [5, "\0"])
def test_what_is_no_mask(mask: Any) -> None:
    """A mask that no database takes is refused."""
    with pytest.raises(ConfigurationError, match="mask must be"):
        Redacting(["x"], mask=mask)
