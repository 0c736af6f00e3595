"""Forks and imports beside encrypted runs: nothing that was encrypted comes to stand in the clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.service import import_run, open_runs
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import stored_texts, unique, user
from tests.support.patience import PATIENCE

SECRET = "a secret"


def exported(url: str, codec: EncryptionCodec) -> dict[str, Any]:
    """Make an encrypted run and give it as a document."""
    with DurableSwarm(ScriptedModel([SECRET]), database=url, codec=codec) as swarm:
        swarm.run(Agent(name=unique()), user(SECRET), run_id="one")
        return swarm.export("one")


def test_no_fork_is_in_the_clear_unlike_its_source(url: str) -> None:
    """A swarm without a codec cannot fork what another swarm of the process encrypts; that one can."""
    clerk, model = Agent(name=unique()), ScriptedModel(lambda _: SECRET)
    with (
        DurableSwarm(model, database=url, name="sealed", codec=EncryptionCodec(new_key())) as sealed,
        DurableSwarm(model, database=url, name="plain") as plain,
    ):
        sealed.run(clerk, user(SECRET), run_id="one")
        with pytest.raises(ConfigurationError, match="its fork would be stored in the clear, since swarm 'plain'"):
            plain.get("one").fork(1, messages=user(SECRET))
        sealed.get("one").fork(1, messages=user(SECRET)).result(timeout=PATIENCE)
        assert len(plain.runs()) == 2
    assert not any(SECRET in text for text in stored_texts(url))


@pytest.mark.parametrize("sealed", [False, True])
def test_a_fork_from_outside_is_stored_as_its_source(url: str, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    """With keys in the environment the service encrypts the fork of an encrypted run, and of no other."""
    clerk, key = Agent(name=unique()), new_key()
    options: dict[str, Any] = {"database": url, "codec": EncryptionCodec(key) if sealed else None}
    with DurableSwarm(ScriptedModel([SECRET]), **options) as swarm:
        swarm.run(clerk, user(SECRET), run_id="one")
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", key)
    with open_runs(url) as opened:
        opened.fork("one", 1, messages=user("more"), new_id="two")
        assert opened.fork("one", 1, messages=user("more"), new_id="two").id == "two"
    assert any('"more"' in text for text in stored_texts(url)) is not sealed
    with DurableSwarm(ScriptedModel(["Done."]), **options) as swarm:
        response = swarm.get("two").result(timeout=PATIENCE)
        assert [message["content"] for message in response.messages] == [SECRET, "more", "Done."]


def test_nothing_is_imported_in_the_clear_beside_sealed_runs(tmp_path: Path) -> None:
    """Without the codec a run is not imported into a database whose runs of its swarm are sealed; elsewhere it is."""
    database = f"sqlite:///{tmp_path}/sealed.sqlite"
    document = {**exported(database, EncryptionCodec(new_key())), "id": "two"}
    with (
        DurableSwarm(ScriptedModel([]), database=database) as swarm,
        pytest.raises(ConfigurationError, match=r"would be stored in the clear; import it with .*codec="),
    ):
        swarm.import_run(document)
    with pytest.raises(ConfigurationError, match="keys in DURABLE_SWARM_ENCRYPTION_KEYS"):
        import_run(database, document)
    assert not any(SECRET in text for text in stored_texts(database))
    with DurableSwarm(ScriptedModel([]), database=database, name="other") as swarm:
        assert swarm.import_run({**document, "swarm": "other"}).status == "done"
