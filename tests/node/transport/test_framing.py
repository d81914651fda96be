"""Frames cut from a stream, however it is chopped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import MalformedFrame, OutOfBounds
from node.transport.framing import Deframer
from node.types.messages import FRAME_BYTES_MAX


def feed(deframer: Deframer, stream: bytes) -> list[bytes]:
    found = []
    while stream:
        space = deframer.space()
        assert len(space) > 0
        count = min(len(space), len(stream))
        space[:count] = stream[:count]
        stream = stream[count:]
        found += [bytes(frame) for frame in deframer.frames(count)]
    return found


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


SMALL = st.tuples(st.lists(st.integers(1, 40), max_size=12), st.lists(st.integers(1, 50)))
LARGE = st.tuples(
    st.lists(st.integers(20_000, 90_000), max_size=4), st.lists(st.integers(9_000, 70_000))
)


@given(st.one_of(SMALL, LARGE))
def test_any_chopping_gives_the_same_frames(lengths_and_cuts):
    lengths, cuts = lengths_and_cuts
    frames = [bytes([n + 1]) * length for n, length in enumerate(lengths)]
    stream, deframer, found = framed(*frames), Deframer(), []
    for cut in [*cuts, len(stream)]:
        found += feed(deframer, stream[:cut])
        stream = stream[cut:]
    assert found == frames
    assert not deframer.unfinished


def test_bytes_one_by_one_and_the_largest_frame():
    deframer = Deframer()
    found = [
        frame for byte in framed(b"a", b"bc", b"def") for frame in feed(deframer, bytes([byte]))
    ]
    assert found == [b"a", b"bc", b"def"]
    assert feed(deframer, framed(bytes(FRAME_BYTES_MAX), b"x")) == [bytes(FRAME_BYTES_MAX), b"x"]
    assert deframer.capacity == FRAME_BYTES_MAX + 4


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_length_beyond_the_cap_allocates_nothing(length):
    deframer = Deframer()
    before = deframer.capacity
    with pytest.raises(OutOfBounds, match=f"declares a frame of {length} bytes"):
        feed(deframer, length.to_bytes(4, "big"))
    assert deframer.capacity == before


def test_an_empty_frame_is_malformed():
    with pytest.raises(MalformedFrame):
        feed(Deframer(), bytes(4))
