"""Key files in a state directory: written once, mode 0600, optionally under a passphrase.

``member.key`` signs for the organisation and may be kept elsewhere; ``node.key`` runs the node and
carries the member's name and id, so that a node needs it alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from nacl import exceptions, pwhash
from nacl.secret import SecretBox

from crypto.armour import unwrap, wrap
from crypto.identity import SEED_BYTES, NodeId, SigningKey, node_id
from crypto.packed import decode
from node.errors import ConfigError, StorageError

MEMBER_FILE: Final = "member.key"
NODE_FILE: Final = "node.key"
KEY_TEXT_MAX: Final = 16 * 1024
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


class Keys(NamedTuple):
    """What a state directory holds. ``member`` is None where that key is kept elsewhere."""

    name: str
    node_id: NodeId
    member: SigningKey | None
    node: SigningKey


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a key file. ``salt``: empty where there is no passphrase."""

    def __repr__(self) -> str:  # a traceback that shows local variables must not show the secret
        return f"_KeyFile(role={self.role}, name={self.name})"

    version: int
    role: str
    name: str
    id: bytes
    public: bytes
    salt: bytes
    secret: bytes


def validate_name(name: str) -> str:
    """A member's name: 1 to 40 of a-z, 0-9 and inner hyphens. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {name[:60]!r}: 1 to 40 characters of a-z, 0-9 and '-', such as 'clinic-a'"
        )
    return name


def create_keys(
    state: Path,
    name: str,
    *,
    passphrase: bytes | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Keys:
    """Make a member key and a node key in ``state``, both or none.

    Raises ConfigError if there is one already, for a bad name or an empty passphrase, StorageError
    if the disk does not take them.
    """
    validate_name(name)
    if passphrase is not None and not passphrase:
        raise ConfigError("the passphrase is empty; leave it out to keep the keys without one")
    member, node = SigningKey.generate(entropy), SigningKey.generate(entropy)
    identity = node_id(member.public)
    for file in (MEMBER_FILE, NODE_FILE):
        if (state / file).exists():
            raise ConfigError(f"{state / file}: there is a key already, and it is never replaced")
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{state}: cannot be made: {error.strerror}") from None
    texts = {
        state / MEMBER_FILE: _seal(
            "member", name, identity, member, passphrase=passphrase, entropy=entropy
        ),
        state / NODE_FILE: _seal(
            "node", name, identity, node, passphrase=passphrase, entropy=entropy
        ),
    }
    written: list[Path] = []
    try:
        for path, text in texts.items():
            _write(path, text)
            written.append(path)
    except BaseException:  # half a pair would stand in the way of the next attempt
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return Keys(name, identity, member, node)


def load_keys(state: Path, *, passphrase: bytes | None = None, member: bool = True) -> Keys:
    """Read the keys of ``state``; with ``member=False`` the member key stays closed.

    A running node needs the node key alone: that one may have no passphrase, the other one may.
    Raises ConfigError for a missing, damaged, foreign or openly readable file, or a wrong
    passphrase.
    """
    _check_folder(state)
    name, identity, node = _load(state / NODE_FILE, "node", passphrase)
    if not member or not (state / MEMBER_FILE).exists():
        return Keys(name, identity, None, node)
    owner, member_id, secret = _load(state / MEMBER_FILE, "member", passphrase)
    if (owner, member_id) != (name, identity) or node_id(secret.public) != identity:
        raise ConfigError(f"{state}: member.key and node.key are of two different members")
    return Keys(name, identity, secret, node)


def _seal(
    role: str,
    name: str,
    identity: NodeId,
    key: SigningKey,
    *,
    passphrase: bytes | None,
    entropy: Callable[[int], bytes],
) -> str:
    salt, secret = b"", key.seed
    if passphrase:
        salt = entropy(pwhash.argon2id.SALTBYTES)
        box = SecretBox(_stretch(passphrase, salt))
        secret = bytes(box.encrypt(key.seed, entropy(SecretBox.NONCE_SIZE)))
    file = _KeyFile(1, role, name, identity, key.public, salt, secret)
    return wrap("KEY", msgspec.msgpack.encode(file))


def _stretch(passphrase: bytes, salt: bytes) -> bytes:
    """argon2id (RFC 9106), libsodium's interactive limits: 64 MiB, some 0.1 s."""
    return pwhash.argon2id.kdf(
        SecretBox.KEY_SIZE,
        passphrase,
        salt,
        opslimit=pwhash.argon2id.OPSLIMIT_INTERACTIVE,
        memlimit=pwhash.argon2id.MEMLIMIT_INTERACTIVE,
    )


def _write(path: Path, text: str) -> None:
    """Create ``path`` with mode 0600 before the first byte is in it, and make it durable."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise ConfigError(f"{path}: there is a key already, and it is never replaced") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def _check_folder(state: Path) -> None:
    """Whoever may write into the directory may put another key in the place of ours."""
    try:
        mode = stat.S_IMODE(state.stat().st_mode)
    except OSError:
        return  # the key file's own message is clearer
    if mode & 0o022:
        raise ConfigError(f"{state}: others can write into it; run: chmod 700 {state}")


def _load(path: Path, role: str, passphrase: bytes | None) -> tuple[str, NodeId, SigningKey]:
    file = _read(path)
    if file.role != role or file.version != 1:
        raise ConfigError(f"{path}: holds a {file.role} key of version {file.version}")
    secret = file.secret
    if file.salt:
        if not passphrase:
            raise ConfigError(f"{path}: is under a passphrase, and none was given")
        try:
            secret = SecretBox(_stretch(passphrase, file.salt)).decrypt(file.secret)
        except (exceptions.CryptoError, ValueError):
            raise ConfigError(f"{path}: the passphrase is not the right one") from None
    if len(secret) != SEED_BYTES:
        raise ConfigError(f"{path}: damaged: the secret has {len(secret)} bytes")
    key = SigningKey(secret)
    if key.public != file.public or len(file.id) != SEED_BYTES:
        raise ConfigError(f"{path}: damaged: secret and public key do not belong together")
    return validate_name(file.name), NodeId(file.id), key


def _read(path: Path) -> _KeyFile:
    """Open, then look at what was opened: nobody else may be able to read it."""
    try:
        with path.open(encoding="ascii") as file:
            status = os.fstat(file.fileno())
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(f"{path}: others can read this key; run: chmod 600 {path}")
            if status.st_uid != os.geteuid():
                raise ConfigError(
                    f"{path}: belongs to another user; run: chown {os.geteuid()} {path}"
                )
            text = file.read(KEY_TEXT_MAX)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such key; make one with: grapevine keygen") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a grapevine key file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    content = unwrap("KEY", text, source=str(path))
    return decode(content, _KeyFile, source=str(path), what="a grapevine key file")
