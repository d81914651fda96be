"""Armour: what mail does to a text leaves the bytes as they were, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto import armour
from crypto.armour import read_text, unwrap, wrap
from node.errors import ConfigError


@given(st.binary(max_size=300))
def test_bytes_survive(content: bytes) -> None:
    text = wrap("CARD", content)
    assert unwrap("CARD", text, source="x") == content
    assert max(len(line) for line in text.splitlines()) <= 64


TEXT = wrap("CARD", bytes(range(200)))


@pytest.mark.parametrize(
    "mangled",
    [
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\r"),
        TEXT.replace("\n", "\n    "),
        TEXT.replace("\n", " \t\n"),
        TEXT.replace("\n", " "),
        TEXT.replace("\n", "\n\n"),
        "Dear all,\n\nhere is our card (ä, =3D):\n\n" + TEXT + "\nBest regards\n",
        "\ufeff" + TEXT,
        TEXT.rstrip("\n"),
    ],
)
def test_what_mail_does_is_harmless(mangled: str) -> None:
    assert unwrap("CARD", mangled, source="x") == bytes(range(200))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'-----BEGIN GRAPEVINE CARD-----' not found"),
        ("hello", "not found"),
        (TEXT[: TEXT.index("-----END")], "cut short"),
        (TEXT[: len(TEXT) // 2], "cut short"),
        (TEXT.split("-----\n", 1)[1], "not found"),
        (TEXT + TEXT, "more than one card"),
        (wrap("CONSORTIUM", b""), "holds a consortium where a card is expected"),
        (wrap("CARD", b"").replace("\n", "\n!", 1), "not base64"),
        ("-----BEGIN GRAPEVINE CARD-----\nAAAA\n-----END GRAPEVINE CARD-----", "checksum"),
        ("-----BEGIN GRAPEVINE CARD-----\nAAAAA\n-----END GRAPEVINE CARD-----", "not base64"),
        ("-----BEGIN GRAPEVINE CARD----------END GRAPEVINE CARD-----", "checksum"),
        ("-----BEGIN GRAPEVINE CARD-----ä-----END GRAPEVINE CARD-----", "not base64"),
    ],
)
def test_a_damaged_text_is_told_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^mail.txt: .*{why}") as caught:
        unwrap("CARD", text, source="mail.txt")
    assert "\n" not in str(caught.value)


def test_one_content_has_one_spelling() -> None:
    """The last base64 character carries bits that no byte has: they must be zero."""
    text = wrap("CARD", b"12")  # 10 bytes with the checksum: 4 stray bits
    at = text.index("\n-----END") - 1
    for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/":
        if other != text[at]:
            with pytest.raises(ConfigError, match="damaged"):
                unwrap("CARD", text[:at] + other + text[at + 1 :], source="x")


def test_a_large_text_is_refused_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(armour, "TEXT_BYTES_MAX", 100)
    with pytest.raises(ConfigError, match="larger than"):
        unwrap("CARD", TEXT, source="x")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.card"
    with pytest.raises(ConfigError, match="no such file"):
        read_text(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_text(tmp_path)
    path.write_bytes(b"\xff\xfe\x00 greetings\r\n" + TEXT.encode())
    assert unwrap("CARD", read_text(path), source="x") == bytes(range(200))
    monkeypatch.setattr(armour, "TEXT_BYTES_MAX", 100)
    with pytest.raises(ConfigError, match="larger than"):
        read_text(path)
