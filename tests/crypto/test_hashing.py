"""Digests of payloads: leaves that are checked one by one, and a root that binds them."""

from __future__ import annotations

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from crypto.hashing import LEAF, leaf_digests, root, tree_digest


def test_leaves_are_plain_digests_of_64_kib_pieces() -> None:
    data = bytes(range(256)) * 520  # two whole leaves and a part
    pieces = [data[:LEAF], data[LEAF : 2 * LEAF], data[2 * LEAF :]]
    assert [len(piece) for piece in pieces] == [LEAF, LEAF, 2048]
    assert leaf_digests(data) == b"".join(blake3(piece).digest() for piece in pieces)


def test_no_bytes_have_no_leaves_and_a_digest() -> None:
    assert leaf_digests(b"") == b""
    assert leaf_digests(bytearray()) == b""
    assert tree_digest(b"") == root(b"", 0)
    assert len(tree_digest(b"")) == 32
    assert tree_digest(b"") != tree_digest(b"\x00")


def test_every_kind_of_buffer_gives_the_same() -> None:
    import array

    numbers = array.array("f", range(50_000))
    raw = numbers.tobytes()
    expected = tree_digest(raw)
    assert tree_digest(bytearray(raw)) == expected
    assert tree_digest(memoryview(numbers)) == expected
    assert tree_digest(memoryview(raw)[:]) == expected


def test_the_root_binds_order_and_length_and_is_no_leaf() -> None:
    one, two = leaf_digests(b"1"), leaf_digests(b"2")
    assert root(one + two, 2 * LEAF) != root(two + one, 2 * LEAF)
    assert root(one, 1) != root(one, 2)
    framed = (1).to_bytes(8, "little") + one
    assert root(one, 1) != blake3(framed).digest()


def test_leaf_and_root_of_known_bytes_never_change() -> None:
    """Two members of different versions must find the same: a change here is a new protocol."""
    assert (
        tree_digest(b"").hex() == "2c0d99ba56f653834a2ac205539c46a57c2134408a6fecf14fab6105c0f6cb23"
    )
    assert (
        tree_digest(bytes(LEAF + 1)).hex()
        == "8104b5fa7b4eb03363b4e19f255efec1be6382893ec457ef1e90f34bc4d875d7"
    )


@given(st.integers(0, 3 * LEAF - 1), st.integers(0, 7))
def test_every_flipped_bit_changes_the_root(at: int, bit: int) -> None:
    data = bytearray(3 * LEAF)
    before = tree_digest(data)
    data[at] ^= 1 << bit
    assert tree_digest(data) != before
