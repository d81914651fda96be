"""The sealed charter: what was signed is what is read, by all founders and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import sealed
from crypto.armour import unwrap, wrap
from crypto.identity import NodeId, SigningKey, node_id
from crypto.purposes import CHARTER, PURPOSES
from crypto.sealed import (
    check_founders,
    consortium_id,
    read_signature,
    seal,
    sign_charter,
    unseal,
    words,
)
from node.errors import ConfigError, LocalProtocolError

BODY = b'name = "heart"\r\n# \xc3\xa4\n' * 3
SECRETS = [SigningKey.from_seed(bytes([i]) * 32) for i in (1, 2, 3)]
IDS = [node_id(key.public) for key in SECRETS]
FOUNDERS = {
    IDS[i]: (name, SECRETS[i].public) for i, name in enumerate(("clinic-a", "clinic-b", "clinic-c"))
}
FILES = [sign_charter(key, who, BODY) for key, who in zip(SECRETS, IDS, strict=True)]
SIGNATURES = dict(read_signature(text, BODY, source="x") for text in FILES)
TEXT = seal(BODY, SIGNATURES)


def check(signatures: dict[NodeId, bytes], body: bytes = BODY) -> None:
    check_founders(body, signatures, FOUNDERS, source="heart.consortium")


def test_exact_bytes_survive_the_mail() -> None:
    for text in (TEXT, TEXT.replace("\n", "\r\n"), TEXT.replace("\n", " ")):
        opened = unseal(text, source="x")
        assert opened.body == BODY
        assert opened.signatures == SIGNATURES
        assert opened.consortium_id == consortium_id(BODY)
        check_founders(opened.body, opened.signatures, FOUNDERS, source="x")


def test_the_order_of_signing_leaves_no_trace() -> None:
    assert seal(BODY, dict(reversed(SIGNATURES.items()))) == TEXT


def test_every_flipped_bit_is_refused() -> None:
    content = unwrap("CONSORTIUM", TEXT, source="x")
    for at in range(len(content)):
        for bit in range(8):
            bad = bytearray(content)
            bad[at] ^= 1 << bit
            with pytest.raises(ConfigError) as caught:
                opened = unseal(wrap("CONSORTIUM", bytes(bad)), source="x")
                check_founders(opened.body, opened.signatures, FOUNDERS, source="x")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [TEXT, FILES[0]])
def test_every_flipped_bit_of_the_text_is_refused_or_harmless(text: str) -> None:
    raw = text.encode()

    def read(data: bytes) -> object:
        if text is TEXT:
            return unseal(data.decode("latin-1"), source="x")
        return read_signature(data.decode("latin-1"), BODY, source="x")

    for at in range(len(raw)):
        for bit in range(8):
            bad = bytearray(raw)
            bad[at] ^= 1 << bit
            try:
                assert read(bytes(bad)) == read(raw)
            except ConfigError:
                continue
            assert not raw[at : at + 1].strip()


def test_every_flipped_bit_of_a_signature_file_is_refused_in_the_end() -> None:
    content = unwrap("SIGNATURE", FILES[0], source="x")
    for at in range(len(content)):
        for bit in range(8):
            bad = bytearray(content)
            bad[at] ^= 1 << bit
            with pytest.raises(ConfigError):
                who, made = read_signature(wrap("SIGNATURE", bytes(bad)), BODY, source="x")
                check({**{k: v for k, v in SIGNATURES.items() if k != IDS[0]}, who: made})


def test_a_charter_changed_after_signing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^clinic-a\.sig: .*changed after signing"):
        read_signature(FILES[0], BODY + b" ", source="clinic-a.sig")
    with pytest.raises(ConfigError, match=r"signature of clinic-. is not over these bytes"):
        check(SIGNATURES, BODY + b" ")


def test_a_missing_founder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^heart\.consortium: not signed by clinic-b, clinic-c$"):
        check({IDS[0]: SIGNATURES[IDS[0]]})


def test_a_signer_who_is_no_founder_is_named() -> None:
    stranger = SigningKey.from_seed(b"s" * 32)
    who = node_id(stranger.public)
    with pytest.raises(ConfigError, match="who is no founder"):
        check({**SIGNATURES, who: stranger.sign(CHARTER, BODY)})


def test_one_founder_cannot_sign_for_another() -> None:
    with pytest.raises(ConfigError, match="signature of clinic-b is not"):
        check({**SIGNATURES, IDS[1]: SECRETS[0].sign(CHARTER, BODY)})


def test_a_signature_for_another_purpose_is_refused() -> None:
    for purpose in sorted(PURPOSES - {CHARTER}):
        with pytest.raises(ConfigError, match="signature of clinic-a is not"):
            check({**SIGNATURES, IDS[0]: SECRETS[0].sign(purpose, BODY)})


def test_a_founders_key_must_be_that_of_its_id() -> None:
    thief = SigningKey.from_seed(b"t" * 32)
    founders = {**FOUNDERS, IDS[0]: ("clinic-a", thief.public)}
    signatures = {**SIGNATURES, IDS[0]: thief.sign(CHARTER, BODY)}
    with pytest.raises(ConfigError, match="member key of clinic-a is not that of its node id"):
        check_founders(BODY, signatures, founders, source="x")


def test_a_charter_without_founders_is_none() -> None:
    with pytest.raises(ConfigError, match="no founders"):
        check_founders(BODY, {}, {}, source="x")


@pytest.mark.parametrize("junk", [b"", b"\xc0", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff"])
def test_garbage_in_good_armour(junk: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^x: not a consortium file"):
        unseal(wrap("CONSORTIUM", junk), source="x")
    with pytest.raises(ConfigError, match=r"^x: not a signature"):
        read_signature(wrap("SIGNATURE", junk), BODY, source="x")


def test_the_wrong_file_is_named_for_what_it_is() -> None:
    with pytest.raises(ConfigError, match="holds a signature where a consortium is expected"):
        unseal(FILES[0], source="x")
    with pytest.raises(ConfigError, match="holds a consortium where a signature is expected"):
        read_signature(TEXT, BODY, source="x")


def test_there_are_2048_words_and_each_has_its_number() -> None:
    made = [sealed._word(number) for number in range(2**sealed.WORD_BITS)]
    assert len(set(made)) == 2048
    assert {len(word) for word in made} == {5}
    assert all(word.isascii() and word.isalpha() for word in made)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 65))
def test_every_bit_that_is_read_aloud_changes_a_word(digest: bytes, bit: int) -> None:
    flipped = (int.from_bytes(digest, "big") ^ 1 << (255 - bit)).to_bytes(32, "big")
    before, after = words(digest), words(flipped)
    assert len(before) == 6
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_words_never_change_and_need_enough_bits() -> None:
    assert words(consortium_id(b"")) == words(consortium_id(b""), 8)[:6]
    assert words(bytes(32), 2) == ("baban", "baban")
    assert words(b"\xff" * 32, 1) == ("tutus",)
    with pytest.raises(LocalProtocolError, match="6 words"):
        words(bytes(8))
