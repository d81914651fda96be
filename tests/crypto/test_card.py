"""Cards: signed by the member key, checked wholly by whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from crypto.armour import unwrap, wrap
from crypto.card import Card, SignedCard, check_address, make_card, parse_card, read_card
from crypto.certificate import make_certificate
from crypto.identity import SigningKey, node_id
from crypto.keys import Keys
from crypto.purposes import CARD, PURPOSES
from node.errors import ConfigError

MEMBER = SigningKey.from_seed(b"m" * 32)
NODE = SigningKey.from_seed(b"n" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)
KEYS = Keys("clinic-a", node_id(MEMBER.public), MEMBER, NODE)
ADDRESSES = ("tcp://gv.a.example:7400", "wss://broker.example/mqtt")
TEXT = make_card(KEYS, addresses=ADDRESSES, samples=120)


def forged(purpose: str = CARD, signer: SigningKey = MEMBER, **changes: Any) -> bytes:
    """A card with some fields changed, and signed afterwards."""
    card, _ = read_card(TEXT, source="x")
    raw = msgspec.msgpack.encode({**msgspec.structs.asdict(card), **changes})
    return msgspec.msgpack.encode(SignedCard(raw, signer.sign(purpose, raw)))


def test_what_was_mailed_is_read() -> None:
    card, signed = read_card(TEXT, source="a.card")
    assert (card.name, card.samples, card.addresses) == ("clinic-a", 120, ADDRESSES)
    assert card.node_id == KEYS.node_id
    assert (card.member_key, card.node_key) == (MEMBER.public, NODE.public)
    assert card.certificate == make_certificate(NODE)
    assert read_card(TEXT.replace("\n", "\r\n"), source="x") == (card, signed)


def test_the_signed_bytes_can_be_kept_and_checked_again() -> None:
    card, signed = read_card(TEXT, source="a.card")
    assert parse_card(signed, source="charter") == card


def test_one_card_for_one_content() -> None:
    assert make_card(KEYS, addresses=ADDRESSES, samples=120) == TEXT


def test_every_flipped_bit_of_the_content_is_refused() -> None:
    signed = unwrap("CARD", TEXT, source="x")
    for at in range(len(signed)):
        for bit in range(8):
            bad = bytearray(signed)
            bad[at] ^= 1 << bit
            with pytest.raises(ConfigError, match=r"^heart\.toml: ") as caught:
                parse_card(bytes(bad), source="heart.toml")
            assert "\n" not in str(caught.value)


def test_every_flipped_bit_of_the_text_is_refused_or_harmless() -> None:
    card, _ = read_card(TEXT, source="x")
    raw = TEXT.encode()
    for at in range(len(raw)):
        for bit in range(8):
            bad = bytearray(raw)
            bad[at] ^= 1 << bit
            try:
                assert read_card(bad.decode("latin-1"), source="x")[0] == card
            except ConfigError:
                continue
            assert not raw[at : at + 1].strip()  # white space for white space


def test_every_truncation_is_refused() -> None:
    signed = unwrap("CARD", TEXT, source="x")
    for length in range(len(signed)):
        with pytest.raises(ConfigError):
            parse_card(signed[:length], source="x")
    with pytest.raises(ConfigError):
        parse_card(signed + b"\x00", source="x")


def test_a_signature_for_another_purpose_is_refused() -> None:
    for purpose in sorted(PURPOSES - {CARD}):
        with pytest.raises(ConfigError, match="did not sign this card"):
            parse_card(forged(purpose), source="x")
    parse_card(forged(CARD), source="x")


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"node_id": node_id(OTHER.public)}, "node id is not that of the member key"),
    ({"member_key": OTHER.public}, "node id is not that of the member key"),
    ({"node_key": OTHER.public}, "not the one that belongs to the node key"),
    ({"certificate": make_certificate(OTHER)}, "not the one that belongs to the node key"),
    ({"certificate": b""}, "not the one that belongs"),
    ({"name": "Clinic A"}, "1 to 40 characters"),
    ({"name": "a\nb"}, "1 to 40 characters"),
    ({"addresses": ("http://a.example:80",)}, "expected such as tcp://"),
    ({"addresses": ("tcp://a.example:1",) * 9}, "addresses"),
    ({"samples": -1}, "samples"),
    ({"samples": 2**60}, "samples"),
    ({"samples": 1.5}, "samples"),
    ({"samples": True}, "samples"),
    ({"version": 0}, "version"),
    ({"node_key": b"short"}, "node_key"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("changes", "why"), WRONG)
def test_a_validly_signed_card_that_says_nonsense_is_refused(
    changes: Mapping[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=f"^b.card: .*{why}") as caught:
        read_card(wrap("CARD", forged(**changes)), source="b.card")
    assert "\n" not in str(caught.value)


def test_a_card_signed_by_the_node_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="did not sign this card"):
        parse_card(forged(signer=NODE), source="x")


def test_nested_and_huge_declarations_are_refused() -> None:
    for junk in (b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"", b"\xc0"):
        with pytest.raises(ConfigError, match="not a card"):
            parse_card(junk, source="x")


def test_a_card_needs_the_member_key() -> None:
    with pytest.raises(ConfigError, match="member key"):
        make_card(KEYS._replace(member=None), addresses=(), samples=1)


@pytest.mark.parametrize(
    ("addresses", "samples"),
    [(("tcp://a",), 1), ((), -1), ((), 2**60), (("tcp://a.example:1",) * 9, 1)],
)
def test_nobody_mails_what_all_would_refuse(addresses: tuple[str, ...], samples: int) -> None:
    with pytest.raises(ConfigError):
        make_card(KEYS, addresses=addresses, samples=samples)


def test_a_member_that_only_dials_out_has_no_address() -> None:
    assert read_card(make_card(KEYS, addresses=(), samples=0), source="x")[0].addresses == ()


@pytest.mark.parametrize(
    "address",
    [
        "tcp://gv.a.example:7400",
        "tcp://127.0.0.1:1",
        "tcp://[::1]:65535",
        "tcp://a:7400",
        "mqtt://broker",
        "mqtts://broker.example:8883",
        "wss://broker.example/mqtt",
        "wss://broker.example:443/a/b",
    ],
)
def test_good_addresses(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a.example:7400",
        "tcp://a.example",
        "tcp://:7400",
        "tcp://a.example:0",
        "tcp://a.example:65536",
        "tcp://a.example:7400/path",
        "tcp://a.example:7400 ",
        "tcp://a b:7400",
        "tcp://-a:7400",
        "tcp://user:secret@a.example:7400",
        "ws://a.example:80",
        "http://a.example:80",
        "mqtts://broker?x=1",
        "tcp://a.example:7400\n",
        "tcp://ä.example:7400",
        "tcp://" + "a" * 300 + ":1",
        "tcp://a.example:٧",
    ],
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ConfigError, match="expected such as") as caught:
        check_address(address)
    assert "\n" not in str(caught.value)


def test_a_card_is_plain_data() -> None:
    assert Card.__struct_config__.forbid_unknown_fields
