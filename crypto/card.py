"""The card: what a member mails to the others. Signed by its member key, checked by everybody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from crypto.armour import unwrap, wrap
from crypto.certificate import check_certificate, make_certificate
from crypto.identity import NodeId, node_id, verify
from crypto.keys import Keys, validate_name
from crypto.packed import decode
from crypto.purposes import CARD
from node.errors import ConfigError

_ADDRESS: Final = re.compile(
    r"(?P<scheme>tcp|mqtts?|wss)://"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<path>/[A-Za-z0-9_./-]{0,255})?"
)
ADDRESSES_MAX: Final = 8


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member in its own words. ``samples``: rows it trains on, its weight in the average."""

    name: str
    node_id: Annotated[bytes, Meta(min_length=32, max_length=32)]
    member_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    node_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    certificate: Annotated[bytes, Meta(max_length=2048)]
    addresses: Annotated[tuple[str, ...], Meta(max_length=ADDRESSES_MAX)]
    samples: Annotated[int, Meta(ge=0, lt=2**53)]
    version: Annotated[int, Meta(ge=1, lt=2**32)] = 1


class SignedCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A card's exact bytes and the member key's signature over them."""

    card: Annotated[bytes, Meta(max_length=8192)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


def check_address(address: str) -> str:
    """An address such as ``tcp://host:7400``, ``mqtts://host`` or ``wss://host/mqtt``.

    Only tcp needs a port; a user or password has no place in it. Raises ConfigError.
    """
    found = _ADDRESS.fullmatch(address)
    wrong = found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65536)
    if found is not None and found["scheme"] == "tcp":
        wrong = wrong or found["port"] is None or found["path"] is not None
    if wrong:
        raise ConfigError(
            f"address {address[:80]!r}: expected such as tcp://gv.clinic.example:7400"
        )
    return address


def make_card(keys: Keys, *, addresses: Sequence[str], samples: int) -> str:
    """The armoured card of a member.

    Raises ConfigError where the member key is not at hand, and for whatever ``read_card`` would
    refuse.
    """
    if keys.member is None:
        raise ConfigError("a card is signed by the member key, and that is not in this directory")
    card = Card(
        name=keys.name,
        node_id=keys.node_id,
        member_key=keys.member.public,
        node_key=keys.node.public,
        certificate=make_certificate(keys.node),
        addresses=tuple(check_address(address) for address in addresses),
        samples=samples,
    )
    raw = msgspec.msgpack.encode(card)
    signed = msgspec.msgpack.encode(SignedCard(raw, keys.member.sign(CARD, raw)))
    parse_card(signed, source=f"card of {keys.name}")
    return wrap("CARD", signed)


def read_card(text: str, *, source: str) -> tuple[Card, bytes]:
    """The card in ``text``, verified; and its signed bytes, to be kept in a charter.

    Raises ConfigError naming ``source`` and what does not hold.
    """
    signed = unwrap("CARD", text, source=source)
    return parse_card(signed, source=source), signed


def parse_card(signed: bytes, *, source: str) -> Card:
    """A card from its signed bytes, everything about it checked. Raises ConfigError."""
    outer = decode(signed, SignedCard, source=source, what="a card")
    card = decode(outer.card, Card, source=source, what="a card")
    if NodeId(card.node_id) != node_id(card.member_key):
        raise ConfigError(f"{source}: the node id is not that of the member key")
    if not verify(card.member_key, CARD, outer.card, outer.signature):
        raise ConfigError(f"{source}: the member key did not sign this card")
    try:
        validate_name(card.name)
        for address in card.addresses:
            check_address(address)
        check_certificate(card.certificate, card.node_key)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return card
