"""The card: what a member mails to the others. Signed by its member key, checked by everybody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from crypto.armour import unwrap, wrap
from crypto.certificate import certificate_public_key, make_certificate
from crypto.identity import NodeId, node_id, verify
from crypto.keys import Keys, validate_name
from crypto.purposes import CARD
from node.errors import ConfigError

_ADDRESS: Final = re.compile(
    r"(?:tcp|mqtts?|wss)://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})(?:/[\w./-]*)?"
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
    """An address such as ``tcp://host:7400``. Raises ConfigError."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[1]) < 65536:
        raise ConfigError(
            f"address '{address[:80]}': expected such as tcp://gv.clinic.example:7400"
        )
    return address


def make_card(keys: Keys, *, addresses: Sequence[str], samples: int) -> str:
    """The armoured card of a member. Raises ConfigError where the member key is not at hand."""
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
    signed = SignedCard(raw, keys.member.sign(CARD, raw))
    return wrap("CARD", msgspec.msgpack.encode(signed))


def read_card(text: str, *, source: str) -> tuple[Card, bytes]:
    """The card in ``text``, verified; and its signed bytes, to be kept in a charter.

    Raises ConfigError naming ``source`` and what does not hold.
    """
    signed = unwrap("CARD", text, source=source)
    return parse_card(signed, source=source), signed


def parse_card(signed: bytes, *, source: str) -> Card:
    """A card from its signed bytes, everything about it checked. Raises ConfigError."""
    try:
        outer = msgspec.msgpack.decode(signed, type=SignedCard)
        card = msgspec.msgpack.decode(outer.card, type=Card)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source}: not a card: {error}") from None
    if NodeId(card.node_id) != node_id(card.member_key):
        raise ConfigError(f"{source}: the node id is not that of the member key")
    if not verify(card.member_key, CARD, outer.card, outer.signature):
        raise ConfigError(f"{source}: the member key did not sign this card")
    try:
        validate_name(card.name)
        for address in card.addresses:
            check_address(address)
        if certificate_public_key(card.certificate) != card.node_key:
            raise ConfigError("the certificate is of another key than the node key")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return card
