"""MessagePack in files: whatever is in them, one ConfigError of one line."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from crypto.packed import decode
from node.errors import ConfigError


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    left: int
    right: bytes


def test_what_was_packed_is_read() -> None:
    pair = Pair(1, b"two")
    assert decode(msgspec.msgpack.encode(pair), Pair, source="x", what="a pair") == pair


@pytest.mark.parametrize(
    ("data", "into", "why"),
    [
        (b"", Pair, "truncated"),
        (b"\x82\xa4left\x01", Pair, "truncated"),
        (b"\x81\xa4left\x01", Pair, "missing required field `right`"),
        (b"\x81\xa2\xc4\xff\x01", dict[str, int], "not UTF-8"),
        (b"\x91" * 100_000, Any, "recursion"),
        (b"\xdd\xff\xff\xff\xff", Any, "truncated"),
    ],
)
def test_each_damage_is_one_line(data: bytes, into: type[Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"^f: not a pair: .*{why}") as caught:
        decode(data, into, source="f", what="a pair")
    assert "\n" not in str(caught.value)
