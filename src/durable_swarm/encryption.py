"""`EncryptionCodec`: encrypts user messages and tool results before they reach the database.

AES-256-GCM from `cryptography` (`pip install 'durable-swarm[encryption]'`). The stored text has three parts:
`ds1.<key id>.<nonce and ciphertext in base64>`. The place of a record is its associated data: a record that was moved
to another run or step, or has other readable fields beside it, is refused like a changed one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from durable_swarm.codec import Place
from durable_swarm.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["EncryptionCodec", "new_key"]

VARIABLE = "DURABLE_SWARM_ENCRYPTION_KEYS"

_FORMAT = "ds1"
_KEY_BYTES, _NONCE_BYTES = 32, 12
_MOST = 2**31 - 17
"""Maximum bytes that AES-GCM takes at once, including its authentication tag."""


def new_key() -> str:
    """Return a new key for `EncryptionCodec`: 32 random bytes, as text in base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


class EncryptionCodec:
    """Encrypts the data that `DurableSwarm(codec=...)` stores.

    `keys` is a key or several, each as `new_key` returns it; by default those in `$DURABLE_SWARM_ENCRYPTION_KEYS`,
    separated by commas. The first encrypts, all decrypt: to rotate, put a new key first, in all processes, and remove
    the old one once no run needs it. Use a key for fewer than 2**32 records (AES-GCM's bound for random nonces).

    A record that was stored without encryption is refused, since it could have been written without a key;
    `read_plain=True` accepts it, for a database with older runs. Raises `ConfigurationError` for invalid keys.
    """

    def __init__(self, keys: str | Sequence[str] | None = None, *, read_plain: bool = False) -> None:
        ciphers = [_cipher(text, number) for number, text in enumerate(_texts(keys), 1)]
        self._ciphers = dict(ciphers)
        self._newest = ciphers[0][0]
        self._read_plain = read_plain

    @property
    def key_ids(self) -> list[str]:
        """The ids of the keys, the encrypting one first. They are stored with the records and reveal no key."""
        return list(self._ciphers)

    def __repr__(self) -> str:
        return f"EncryptionCodec(key_ids={self.key_ids})"

    def __eq__(self, other: object) -> bool:
        """Compare by keys: two with the same keys are the same codec."""
        if not isinstance(other, EncryptionCodec):
            return NotImplemented
        return (self.key_ids, self._read_plain) == (other.key_ids, other._read_plain)

    def __hash__(self) -> int:
        return hash(tuple(self.key_ids))

    lossless = True

    def encode(self, data: dict[str, Any], place: Place) -> str:
        """Encrypt. Raises `ConfigurationError` for data larger than AES-GCM takes (2 GiB)."""
        # Not sorted, because a dictionary must keep its order.
        plain = json.dumps(data, separators=(",", ":")).encode()
        if len(plain) > _MOST:
            raise ConfigurationError(
                f"a record of {len(plain):,} bytes is too large to encrypt; store less in one value"
            )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._ciphers[self._newest].encrypt(nonce, plain, place.associated())
        return f"{_FORMAT}.{self._newest}.{base64.b64encode(sealed).decode()}"

    def decode(self, stored: dict[str, Any] | str, place: Place) -> dict[str, Any]:
        """Decrypt. Raises `ConfigurationError`, which distinguishes a missing key from a changed or moved record."""
        if isinstance(stored, dict):
            if self._read_plain:
                return stored
            raise ConfigurationError(
                "it is not encrypted. If it is from before encryption was used, read it with "
                "EncryptionCodec(read_plain=True); if not, somebody else has written it"
            )
        cipher, nonce, sealed = self._parts(stored)
        from cryptography.exceptions import InvalidTag

        try:
            data: dict[str, object] = json.loads(cipher.decrypt(nonce, sealed, place.associated()))
        except InvalidTag:
            raise ConfigurationError(
                "it was changed, or moved here from another run or step, and is refused; restore it from a backup"
            ) from None
        return data

    def _parts(self, stored: str) -> tuple[AESGCM, bytes, bytes]:
        kind, _, rest = stored.partition(".")
        key_id, _, text = rest.partition(".")
        if kind != _FORMAT:
            raise ConfigurationError("it was not written by EncryptionCodec, or by a newer version of it")
        if key_id not in self._ciphers:
            raise ConfigurationError(
                f"it was encrypted with key {key_id[:16]!r}, and this process has {_named(self.key_ids)}; add that key "
                f"to the keys of EncryptionCodec (or {VARIABLE}), after the newest"
            )
        try:
            sealed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError("it is damaged; restore it from a backup") from None
        if len(sealed) < _NONCE_BYTES + 16:
            raise ConfigurationError("it is damaged; restore it from a backup")
        return self._ciphers[key_id], sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]


def codec_of_environment() -> EncryptionCodec | None:
    """Return the codec with the environment's keys, for reading any database; None without keys."""
    return EncryptionCodec(read_plain=True) if os.environ.get(VARIABLE, "").strip() else None


def _named(key_ids: list[str]) -> str:
    return f"key{'s' * (len(key_ids) > 1)} {', '.join(map(repr, key_ids))}"


def _texts(keys: str | Sequence[str] | None) -> list[str]:
    given = os.environ.get(VARIABLE, "") if keys is None else keys
    if isinstance(given, str):
        given = [part for part in given.split(",") if part.strip()]
    if not isinstance(given, Sequence) or not given or not all(isinstance(key, str) for key in given):
        raise ConfigurationError(
            f"EncryptionCodec needs at least one key, as text; set {VARIABLE} or pass keys=[...]. To make one: "
            'python -c "from durable_swarm.encryption import new_key; print(new_key())"'
        )
    return [key.strip() for key in given]


def _cipher(text: str, number: int) -> tuple[str, AESGCM]:
    """Return a key's id and its cipher. Its errors never show the key."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigurationError(
            "encryption needs the package cryptography; run: pip install 'durable-swarm[encryption]'"
        ) from None
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(
            f"encryption key {number} is not {_KEY_BYTES} bytes in base64; make one with "
            "durable_swarm.encryption.new_key()"
        )
    return hashlib.sha256(b"durable-swarm key id" + key).hexdigest()[:12], AESGCM(key)
