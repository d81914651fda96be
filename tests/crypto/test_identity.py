"""Node ids and signatures: one spelling, a checksum, and one purpose each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from crypto.identity import (
    NodeId,
    SigningKey,
    format_id,
    node_id,
    parse_id,
    short_id,
    verify,
    verify_raw,
)
from crypto.purposes import PURPOSES
from node.errors import ConfigError, LocalProtocolError

KEY = SigningKey.from_seed(bytes(range(32)))
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the Ed25519 base point, RFC 8032


@given(st.binary(min_size=32, max_size=32))
def test_an_id_survives_its_text(raw: bytes) -> None:
    text = format_id(NodeId(raw))
    assert len(text) == 58
    assert text.isascii()
    assert parse_id(text) == raw
    assert parse_id(f" {text.upper()}\r\n") == raw
    assert text[2:].startswith(short_id(NodeId(raw)))
    assert len(short_id(NodeId(raw))) == 8


def test_every_single_mistyped_character_is_found() -> None:
    text = format_id(node_id(KEY.public))
    for at in range(2, len(text)):
        other = "a" if text[at] != "a" else "b"
        with pytest.raises(ConfigError, match="wrong checksum"):
            parse_id(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t[:-1], "wrong length, 55"),
        (lambda t: t + "a", "wrong length, 57"),
        (lambda t: "xx" + t[2:], "does not begin with 'gv'"),
        (lambda t: t[:-1] + "1", "'1' is not in its alphabet"),
        (lambda t: t[:-1] + "ä", "'ä' is not in its alphabet"),
        (lambda t: t * 1000, "wrong length"),
        (lambda t: "", "does not begin"),
    ],
)
def test_a_wrong_id_is_told_what_is_wrong(change, why) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=why) as caught:
        parse_id(change(format_id(node_id(KEY.public))))
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_an_id_is_a_hash_of_the_key_in_a_domain_of_its_own() -> None:
    import hashlib

    assert node_id(KEY.public) != hashlib.blake2b(KEY.public, digest_size=32).digest()
    assert node_id(KEY.public) == node_id(bytes(KEY.public))


def test_a_signature_is_valid_for_its_purpose_alone() -> None:
    for purpose in PURPOSES:
        signature = KEY.sign(purpose, b"message")
        for other in PURPOSES:
            assert verify(KEY.public, other, b"message", signature) == (other == purpose)
        assert not verify_raw(KEY.public, b"message", signature)


def test_no_purpose_runs_into_the_message() -> None:
    """A NUL ends the purpose, and none holds one: two pairs never give the same signed bytes."""
    assert not any("\x00" in purpose for purpose in PURPOSES)
    assert not verify(KEY.public, "head", b"er\x00m", KEY.sign("header", b"m"))


def test_an_unknown_purpose_is_a_bug_of_ours_and_verifies_nothing() -> None:
    with pytest.raises(LocalProtocolError, match="weather"):
        KEY.sign("weather", b"")
    assert not verify(KEY.public, "weather", b"", bytes(64))


def test_each_flipped_bit_is_refused() -> None:
    message = b"thirty bytes"
    signature = KEY.sign("header", message)

    def flips(data: bytes) -> list[bytes]:
        return [
            data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            for at in range(len(data))
            for bit in range(8)
        ]

    assert not any(verify(KEY.public, "header", message, bad) for bad in flips(signature))
    assert not any(verify(KEY.public, "header", bad, signature) for bad in flips(message))
    assert not any(verify(bad, "header", message, signature) for bad in flips(KEY.public))


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100))
def test_verifying_never_raises(public: bytes, message: bytes, signature: bytes) -> None:
    assert not verify(public, "header", message, signature)
    assert not verify(public, "header", memoryview(message), memoryview(signature))


def test_lengths_are_checked_before_libsodium_reads_them() -> None:
    """The binding does not look at the key's length: a short one would be read past its end."""
    signature = KEY.sign("header", b"m")
    assert not verify(KEY.public + b"x", "header", b"m", signature)
    assert not verify(KEY.public[:31], "header", b"m", signature)
    raw = bindings.crypto_sign(b"m", KEY._secret)[:64]
    assert verify_raw(KEY.public, b"m", raw)
    assert not verify_raw(KEY.public + b"x", b"m", raw)
    assert not verify_raw(KEY.public, b"", raw + b"m")
    for purpose in ("", "weather", *sorted(PURPOSES)):
        assert not verify(KEY.public, purpose, b"m", raw)


def test_malleable_signatures_and_weak_keys_are_refused() -> None:
    """All members must agree on what is valid: no second signature, no key for any message."""
    signature = KEY.sign("header", b"m")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(KEY.public, "header", b"m", signature[:32] + scalar.to_bytes(32, "little"))
    neutral = bytes([1]) + bytes(31)  # the point of order one signs everything with S = 0
    assert not verify(neutral, "header", b"m", neutral + bytes(32))


def test_a_key_comes_from_the_entropy_it_is_given_and_signs_alike() -> None:
    key = SigningKey.generate(lambda size: bytes([7]) * size)
    assert key.seed == bytes([7]) * 32
    assert key.public == SigningKey.from_seed(key.seed).public
    view = memoryview(bytearray(b"m"))
    assert key.sign("card", view) == key.sign("card", b"m")
    assert verify(key.public, "card", view, key.sign("card", b"m"))
    assert SigningKey.generate().public != SigningKey.generate().public
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        SigningKey(bytes(31))


def test_the_secret_is_never_shown() -> None:
    shown = repr(KEY) + str(KEY) + f"{KEY}"
    assert KEY.seed.hex() not in shown
    assert repr(KEY.seed) not in shown
    assert KEY.public.hex()[:16] in shown
