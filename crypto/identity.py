"""Who is who: node ids, and Ed25519 signatures that are bound to one purpose.

PyNaCl (libsodium) is the only signer and verifier of the project. Its verification refuses
non-canonical signatures and keys of small order, so all members agree on what is valid.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Final, NewType

from nacl import bindings
from nacl.exceptions import BadSignatureError

from crypto.purposes import PURPOSES
from node.errors import ConfigError, LocalProtocolError

NodeId = NewType("NodeId", bytes)

Entropy = Callable[[int], bytes]

ID_BYTES: Final = 32
PUBLIC_BYTES: Final = 32
SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_PREFIX: Final = "gv"
# 32 bytes of id and 3 of checksum are exactly 56 base32 characters: no padding, one spelling.
_CHECKSUM_BYTES: Final = 3
_TEXT_CHARACTERS: Final = 56
_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyz234567")

# Made once: signing and verifying run thousands of times a second in a simulation.
_DOMAINS: Final = {
    purpose: b"grapevine/1\x00" + purpose.encode() + b"\x00" for purpose in sorted(PURPOSES)
}


def node_id(member_public: bytes) -> NodeId:
    """The id of the member whose first member public key (32 bytes) this is."""
    digest = hashlib.blake2b(member_public, digest_size=ID_BYTES, person=b"grapevine/node")
    return NodeId(digest.digest())


def format_id(node: NodeId) -> str:
    """The id as text: ``gv`` and 56 characters, the last of which are a checksum."""
    return _PREFIX + base64.b32encode(node + _checksum(node)).decode().lower()


def parse_id(text: str) -> NodeId:
    """Read an id as ``format_id`` writes it. Raises ConfigError: length, alphabet or checksum."""
    shown = repr(text if len(text) <= 80 else text[:80] + "…")
    body = text.strip().lower()
    if not body.startswith(_PREFIX):
        raise ConfigError(f"node id {shown}: does not begin with '{_PREFIX}'")
    body = body[len(_PREFIX) :]
    if len(body) != _TEXT_CHARACTERS:
        raise ConfigError(
            f"node id {shown}: wrong length, {len(body)} characters after "
            f"'{_PREFIX}' instead of {_TEXT_CHARACTERS}"
        )
    strange = sorted(set(body) - _ALPHABET)
    if strange:
        raise ConfigError(
            f"node id {shown}: '{strange[0]}' is not in its alphabet, a to z and 2 to 7"
        )
    raw = base64.b32decode(body.upper())
    node = NodeId(raw[:ID_BYTES])
    if raw[ID_BYTES:] != _checksum(node):
        raise ConfigError(f"node id {shown}: wrong checksum, a character was mistyped")
    return node


def short_id(node: NodeId) -> str:
    """The first 8 characters of the id's text after ``gv``, for logs; never for a decision."""
    return base64.b32encode(node[:5]).decode().lower()


def _checksum(node: NodeId) -> bytes:
    digest = hashlib.blake2b(node, digest_size=_CHECKSUM_BYTES, person=b"grapevine/check")
    return digest.digest()


class SigningKey:
    """An Ed25519 private key. Its representation never shows the secret."""

    __slots__ = ("_secret", "public")

    public: bytes

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise LocalProtocolError(f"a key's seed has {SEED_BYTES} bytes, not {len(seed)}")
        self.public, self._secret = bindings.crypto_sign_seed_keypair(bytes(seed))

    @classmethod
    def generate(cls, entropy: Entropy = os.urandom) -> SigningKey:
        """A new key from ``entropy``; only a simulation may hand in another source."""
        return cls(entropy(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of a 32-byte seed."""
        return cls(seed)

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; for key files and certificates alone."""
        return self._secret[:SEED_BYTES]

    def sign(self, purpose: str, message: bytes | memoryview) -> bytes:
        """A detached signature (64 bytes) for one purpose of ``crypto.purposes``.

        Raises LocalProtocolError for a purpose that is not listed there.
        """
        domain = _DOMAINS.get(purpose)
        if domain is None:
            raise LocalProtocolError(f"nothing is signed for the purpose '{purpose}'")
        signed: bytes = bindings.crypto_sign(b"".join((domain, message)), self._secret)
        return signed[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def verify(
    public: bytes, purpose: str, message: bytes | memoryview, signature: bytes | memoryview
) -> bool:
    """Whether ``signature`` was made over ``message`` for ``purpose`` by ``public``'s owner.

    Never raises: a key or signature of a wrong length is simply not valid.
    """
    domain = _DOMAINS.get(purpose)
    if domain is None or len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    return _opens(b"".join((signature, domain, message)), bytes(public))


def verify_raw(public: bytes, message: bytes, signature: bytes) -> bool:
    """As ``verify``, without a purpose: for formats that bring their own domain, such as X.509."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    return _opens(signature + message, public)


def _opens(signed: bytes, public: bytes) -> bool:
    try:
        bindings.crypto_sign_open(signed, public)
    except BadSignatureError:
        return False
    return True
