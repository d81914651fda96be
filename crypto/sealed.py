"""The sealed charter: exact bytes and the founders' detached signatures, in one armoured file.

It does not know what a charter says: that is ``node/consortium.py``'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from crypto.armour import unwrap, wrap
from crypto.identity import NodeId, SigningKey, node_id, short_id, verify
from crypto.packed import decode
from crypto.purposes import CHARTER
from node.errors import ConfigError, LocalProtocolError

WORD_BITS: Final = 11
# A word is two syllables and an ending, such as "kalon": 8·4·8·4·2 = 2,048 of them. On a telephone
# f and s, m and n, e and i are mistaken for one another: one of each pair is left out.
_CONSONANTS: Final = "bgklmrst"
_VOWELS: Final = "aiou"
_ENDINGS: Final = "ns"

_Id = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Sig = Annotated[bytes, Meta(min_length=64, max_length=64)]


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    consortium: _Id
    signer: _Id
    signature: _Sig


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: bytes
    signatures: dict[_Id, _Sig]


class Sealed(NamedTuple):
    """A charter's exact bytes, who signed them, and the id that follows from them."""

    body: bytes
    signatures: dict[NodeId, bytes]
    consortium_id: bytes


def consortium_id(body: bytes) -> bytes:
    """BLAKE2b-256 of the sealed bytes."""
    return hashlib.blake2b(body, digest_size=32, person=b"gv-consortium").digest()


def sign_charter(key: SigningKey, signer: NodeId, body: bytes) -> str:
    """A founder's signature file over the charter's exact bytes."""
    made = _Signature(consortium_id(body), signer, key.sign(CHARTER, body))
    return wrap("SIGNATURE", msgspec.msgpack.encode(made))


def read_signature(text: str, body: bytes, *, source: str) -> tuple[NodeId, bytes]:
    """(signer, signature) of a signature file. Raises ConfigError if it is for other bytes."""
    data = unwrap("SIGNATURE", text, source=source)
    made = decode(data, _Signature, source=source, what="a signature")
    if made.consortium != consortium_id(body):
        raise ConfigError(
            f"{source}: signs another charter than this one: it was changed after signing, or the "
            "file is of another consortium"
        )
    return NodeId(made.signer), made.signature


def seal(body: bytes, signatures: Mapping[NodeId, bytes]) -> str:
    """The consortium file: body and signatures."""
    ordered = {bytes(signer): signatures[signer] for signer in sorted(signatures)}
    return wrap("CONSORTIUM", msgspec.msgpack.encode(_Envelope(body, ordered)))


def unseal(text: str, *, source: str) -> Sealed:
    """Open a consortium file; its signatures are checked by ``check_founders``."""
    data = unwrap("CONSORTIUM", text, source=source)
    envelope = decode(data, _Envelope, source=source, what="a consortium file")
    signatures = {NodeId(signer): sig for signer, sig in envelope.signatures.items()}
    return Sealed(envelope.body, signatures, consortium_id(envelope.body))


def check_founders(
    body: bytes,
    signatures: Mapping[NodeId, bytes],
    founders: Mapping[NodeId, tuple[str, bytes]],
    *,
    source: str,
) -> None:
    """All founders signed these bytes, and nobody else. ``founders``: id -> (name, member key).

    Raises ConfigError naming who is missing, whose signature is wrong, or who is no founder.
    """
    if not founders:
        raise ConfigError(f"{source}: has no founders")
    strangers = sorted(set(signatures) - set(founders))
    if strangers:
        raise ConfigError(f"{source}: signed by {short_id(strangers[0])}…, who is no founder")
    missing = [founders[f][0] for f in sorted(founders) if f not in signatures]
    if missing:
        raise ConfigError(f"{source}: not signed by {', '.join(sorted(missing))}")
    for founder in sorted(founders):
        name, key = founders[founder]
        if node_id(key) != founder:
            raise ConfigError(f"{source}: the member key of {name} is not that of its node id")
        if not verify(key, CHARTER, body, signatures[founder]):
            raise ConfigError(f"{source}: the signature of {name} is not over these bytes")


def words(digest: bytes, count: int = 6) -> tuple[str, ...]:
    """``count`` words of 11 bits each from the head of ``digest``, to be read over a telephone.

    Raises LocalProtocolError if the digest is too short for them.
    """
    if WORD_BITS * count > 8 * len(digest):
        raise LocalProtocolError(f"{count} words need more than {len(digest)} bytes")
    value = int.from_bytes(digest, "big")
    total = 8 * len(digest)
    numbers = (value >> (total - WORD_BITS * (i + 1)) & (2**WORD_BITS - 1) for i in range(count))
    return tuple(_word(number) for number in numbers)


def _word(number: int) -> str:
    letters = []
    for alphabet in (_ENDINGS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS):
        number, at = divmod(number, len(alphabet))
        letters.append(alphabet[at])
    return "".join(reversed(letters))
