"""Key providers: where the key that wraps the tenants' data keys comes from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from agentq.errors import ConfigError, KeyUnavailable, PayloadUnreadable
from agentq.settings import Settings
from agentq.store.vault import KeyProvider, derived

_KEY_BYTES = 32
_NONCE_BYTES = 12


class LocalKeys:
    """
    Keys of this machine's own, from a file or the environment.

    The first wraps; the others only unwrap what they wrapped before, until `agentq keys rewrap` has run.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._ciphers = {_name(key): AESGCM(derived(key, "wrap")) for key in reversed(keys)}
        self.key_id = _name(keys[0])

    def __repr__(self) -> str:
        return f"<local keys {', '.join(self._ciphers)}>"

    def wrap(self, key: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers[self.key_id].encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag

        cipher = self._ciphers.get(key_id)
        if cipher is None:
            known = ", ".join(self._ciphers)
            raise KeyUnavailable(f"the key {key_id} that wraps a data key is not among those configured ({known})")
        try:
            return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except InvalidTag:
            raise PayloadUnreadable("", "data key", f"{key_id} did not wrap it, or not for this tenant") from None


def provider_of(settings: Settings) -> KeyProvider | None:
    """
    The provider that the settings name; None: nothing is encrypted.

    Raises:
        ConfigError: the package is missing, the file is not there or open to others, or a key is no key.
    """
    if not (settings.encryption_key_file or settings.encryption_keys or settings.encryption_provider):
        return None
    try:
        import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401
    except ImportError:
        raise ConfigError(
            "a key provider is configured, but the package `cryptography` is missing: install agentq[encryption]"
        ) from None
    if settings.encryption_provider:
        return _of_their_own(settings.encryption_provider)
    if settings.encryption_keys:
        return LocalKeys(_keys(settings.encryption_keys.replace(",", "\n"), "encryption_keys"))
    return LocalKeys(_keys(_read(Path(settings.encryption_key_file)), settings.encryption_key_file))


def new_key() -> str:
    """A key as such a file holds it."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode("ascii")


def _read(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"{path} is open to others than its owner (mode {stat.S_IMODE(mode):04o}): chmod 600 {path}"
            )
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the key file {path} cannot be read ({type(error).__name__}): `agentq keys generate {path}` makes one"
        ) from None


def _keys(text: str, where: str) -> list[bytes]:
    keys = [_key(line.strip(), where) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{where} holds no key: `agentq keys generate` prints one")
    return keys


def _key(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{where}: a key is {_KEY_BYTES} random bytes in base64; `agentq keys generate` prints one")
    return key


def _name(key: bytes) -> str:
    return "local:" + hashlib.sha256(b"agentq key name" + key).hexdigest()[:12]


def _of_their_own(name: str) -> KeyProvider:
    module, _, attribute = name.partition(":")
    try:
        made = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"encryption_provider must be module:function that returns a key provider, and {name} is not: "
            f"{type(error).__name__}"
        ) from None
    if not all(hasattr(made, part) for part in ("key_id", "wrap", "unwrap")):
        raise ConfigError(f"encryption_provider: {name} returned no key provider (key_id, wrap, unwrap)")
    return made  # type: ignore[no-any-return]
