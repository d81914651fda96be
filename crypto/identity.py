"""Who somebody is: node ids, signing keys, and signatures bound to one purpose.

PyNaCl is the only signer and verifier (Ed25519, RFC 8032).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Final, NewType

from nacl import bindings, exceptions

from crypto.purposes import PURPOSES
from node.errors import ConfigError, LocalProtocolError

NodeId = NewType("NodeId", bytes)

ID_BYTES: Final = 32
SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_PREFIX: Final = "gv"
_CHECK_CHARS: Final = 4  # 20 bits: a slip of the pen passes once in a million
_ID_CHARS: Final = 52  # 256 bits in base32, without padding
_DOMAIN: Final = b"grapevine/1\x00"


def node_id(member_public: bytes) -> NodeId:
    """The id of the member whose first member key this is: BLAKE2b-256 of it (RFC 7693)."""
    return NodeId(
        hashlib.blake2b(member_public, digest_size=ID_BYTES, person=b"grapevine-id").digest()
    )


def _check_chars(body: str) -> str:
    digest = hashlib.blake2b(body.encode(), digest_size=5, person=b"gv-check").digest()
    return base64.b32encode(digest).decode().lower()[:_CHECK_CHARS]


def format_id(node: NodeId) -> str:
    """The id as people pass it on: ``gv``, 52 characters of base32, 4 of checksum."""
    body = base64.b32encode(node).decode().lower().rstrip("=")
    return _PREFIX + body + _check_chars(body)


def parse_id(text: str) -> NodeId:
    """Read what ``format_id`` wrote. Raises ConfigError saying what is wrong with it."""
    word = text.strip().lower()
    if len(word) != len(_PREFIX) + _ID_CHARS + _CHECK_CHARS or not word.startswith(_PREFIX):
        raise ConfigError(
            f"node id '{text[:70]}': expected '{_PREFIX}' and {_ID_CHARS + _CHECK_CHARS} characters"
        )
    body, check = word[2:-_CHECK_CHARS], word[-_CHECK_CHARS:]
    try:
        raw = base64.b32decode(body.upper() + "====")
    except ValueError:
        raise ConfigError(f"node id '{text}': only letters a-z and digits 2-7") from None
    if check != _check_chars(body) or format_id(NodeId(raw)) != word:
        raise ConfigError(f"node id '{text}': the checksum does not fit, a character is wrong")
    return NodeId(raw)


def short_id(node: NodeId) -> str:
    """The first characters of an id, for logs: never for comparing."""
    return format_id(node)[:8]


def _framed(purpose: str, message: bytes | memoryview) -> bytes:
    return b"".join((_DOMAIN, purpose.encode(), b"\x00", message))


class SigningKey:
    """An Ed25519 secret. Its repr and str show the public half alone."""

    __slots__ = ("_secret", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ConfigError(f"a key has {SEED_BYTES} secret bytes, found {len(seed)}")
        self.public, self._secret = bindings.crypto_sign_seed_keypair(seed)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes] = os.urandom) -> SigningKey:
        return cls(entropy(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; only key files may hold them."""
        return self._secret[:SEED_BYTES]

    def sign(self, purpose: str, message: bytes | memoryview) -> bytes:
        """A detached signature (64 bytes) over ``message`` for one purpose."""
        if purpose not in PURPOSES:
            raise LocalProtocolError(f"no such purpose of a signature: '{purpose}'")
        signed = bindings.crypto_sign(_framed(purpose, message), self._secret)
        return signed[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()[:16]}…)"


def verify(public: bytes, purpose: str, message: bytes | memoryview, signature: bytes) -> bool:
    """Whether ``signature`` is by ``public`` over ``message`` for ``purpose``. Never raises."""
    if len(signature) != SIGNATURE_BYTES or len(public) != ID_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + _framed(purpose, message), public)
    except (exceptions.BadSignatureError, exceptions.CryptoError, TypeError, ValueError):
        return False
    return True
