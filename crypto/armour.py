"""Text armour: bytes in a text that mail, CRLF conversion, quoting and reflowing cannot change.

    -----BEGIN GRAPEVINE CARD-----
    base64, 64 characters a line, without padding
    -----END GRAPEVINE CARD-----

Whatever stands around the block is ignored, and so is white space within. The last 8 bytes are a
checksum: it tells a damaged file from a forged one and is no protection against the latter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from pathlib import Path
from typing import Final

from node.errors import ConfigError

# 1,000 cards of under 1 KB stand in a large charter: 16 MiB leave room for ten such.
TEXT_BYTES_MAX: Final = 16 << 20
_LINE: Final = 64
_CHECKSUM_BYTES: Final = 8
_FRAME: Final = re.compile(r"-----\s*(BEGIN|END)\s+GRAPEVINE\s+([A-Z]+(?:\s+[A-Z]+)*)\s*-----")


def wrap(label: str, content: bytes) -> str:
    """``content`` as an armoured text under ``label`` (capitals, such as ``CARD``)."""
    raw = base64.b64encode(content + _checksum(label, content)).decode().rstrip("=")
    lines = [raw[start : start + _LINE] for start in range(0, len(raw), _LINE)]
    frame = f"GRAPEVINE {label}-----"
    return "\n".join([f"-----BEGIN {frame}", *lines, f"-----END {frame}", ""])


def unwrap(label: str, text: str, *, source: str) -> bytes:
    """The bytes that ``wrap`` put in. Raises ConfigError naming ``source`` and what is wrong."""
    what = label.lower()
    if len(text) > TEXT_BYTES_MAX:
        raise ConfigError(f"{source}: larger than {TEXT_BYTES_MAX >> 20} MiB, no {what}")
    marks = list(_FRAME.finditer(text))
    labels = [" ".join(mark[2].split()) for mark in marks]
    other = [found for found in labels if found != label]
    if other:
        raise ConfigError(f"{source}: holds a {other[0].lower()} where a {what} is expected")
    if not marks or marks[0][1] != "BEGIN":
        raise ConfigError(f"{source}: no {what}: '-----BEGIN GRAPEVINE {label}-----' not found")
    if len(marks) == 1:
        raise ConfigError(f"{source}: the {what} is cut short, its END line is missing")
    if len(marks) > 2 or marks[1][1] != "END":
        raise ConfigError(f"{source}: holds more than one {what}; give each its own file")
    body = "".join(text[marks[0].end() : marks[1].start()].split())
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{source}: the {what} is damaged: not base64") from None
    if base64.b64encode(raw).decode().rstrip("=") != body:  # one spelling: no stray bits at its end
        raise ConfigError(f"{source}: the {what} is damaged: not the base64 that was written")
    content, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if checksum != _checksum(label, content):
        raise ConfigError(f"{source}: the {what} is damaged: its checksum does not fit")
    return content


def read_text(path: Path) -> str:
    """Read an armoured file. Raises ConfigError if it is absent, too large or no text."""
    try:
        with path.open("rb") as file:
            raw = file.read(TEXT_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > TEXT_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {TEXT_BYTES_MAX >> 20} MiB")
    # Latin-1 never fails: text in whatever encoding may stand around the block, ASCII within.
    return raw.decode("latin-1")


def _checksum(label: str, content: bytes) -> bytes:
    digest = hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES, key=label.encode())
    return digest.digest()
