"""Frames: what goes in comes out, and whatever is not exactly ours is MalformedFrame, cheaply."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import MalformedFrame
from node.protocol import frames
from node.protocol.frames import chunk_prefix, decode, encode
from node.types.messages import (
    CHUNK_BYTES,
    FRAME_BYTES_MAX,
    Ask,
    Ballot,
    Ballots,
    Bye,
    Chunk,
    Gone,
    Have,
    Header,
    Heads,
    Hello,
    Message,
    Offer,
    Ping,
    SignedBallot,
    SignedHeader,
    Want,
)

D = b"d" * 32
SIGNED = SignedHeader(b"header", b"s" * 64)
HEADER = Header(D, 0, D, D, 0, 1, b"b" * 16, 1, 0, 1, None, "full", 4, D, D, 0, (b"12345678",))
EXAMPLES: list[Message] = [
    Hello(D, 0, D, D, D, D, 1, b"b" * 16, 0, SIGNED),
    Hello(D, 2**32 - 1, D, D, D, D, 2**53 - 1, b"b" * 16, 2**32 - 1, None),
    Offer(SIGNED, D, b"payload"),
    Offer(SIGNED, D, None),
    Want(D, 3, 16),
    Have(1, b"b" * 16, 2, False, "größer"),
    Gone(D),
    Ask(D),
    Heads((SIGNED, SIGNED)),
    Ping(),
    Bye("why"),
    Ballots((SignedBallot(b"ballot", b"s" * 64),)),
]


def frame(body: bytes) -> bytes:
    """A frame with a right checksum: what an attacker can make as well as we."""
    return bytes((1, 0)) + zlib.crc32(body).to_bytes(4, "big") + body


def refused(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode(data)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Whatever the bounds of a type allow; large lists and buffers stay small."""
    match kind:
        case msgspec.inspect.BytesType():
            most = min(kind.max_length or 99, 99)
            return st.binary(min_size=kind.min_length or 0, max_size=most)
        case msgspec.inspect.StrType():
            return st.text(max_size=min(kind.max_length or 99, 99))
        case msgspec.inspect.IntType():
            below = 2**63 if kind.lt is None else kind.lt
            return st.integers(kind.ge, below - 1 if kind.le is None else kind.le)
        case msgspec.inspect.VarTupleType():
            return st.lists(values(kind.item_type), max_size=3).map(tuple)
        case msgspec.inspect.UnionType():
            return st.one_of(*map(values, kind.types))
        case msgspec.inspect.StructType():
            return st.builds(kind.cls, *[values(f.type) for f in kind.fields])
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.FloatType():
            return st.floats(allow_nan=False)
    raise AssertionError(kind)


def of(cls: type) -> st.SearchStrategy[Any]:
    return values(msgspec.inspect.type_info(cls))


@pytest.mark.parametrize("kind", [Hello, Offer, Want, Have, Gone, Ask, Heads, Ping, Bye, Ballots])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_message_survives_the_wire(kind: type, data: Any) -> None:
    message = data.draw(of(kind))
    sent = encode(message)
    assert decode(sent) == message
    assert decode(memoryview(sent)) == message


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_headers_and_ballots_survive(data: Any) -> None:
    header = data.draw(of(Header))
    assert frames.decode_header(frames.encode_header(header)) == header
    ballot = data.draw(of(Ballot))
    assert frames.decode_ballot(frames.encode_ballot(ballot)) == ballot


def plain(message: Any) -> Any:
    if isinstance(message, msgspec.Struct):
        return [plain(getattr(message, f)) for f in message.__struct_fields__]
    return [plain(m) for m in message] if isinstance(message, tuple) else message


@pytest.mark.parametrize("message", EXAMPLES)
def test_the_reference_decoder_reads_the_same(message: Message) -> None:
    body = encode(message)[6:]
    tag = msgspec.inspect.type_info(type(message)).tag  # type: ignore[union-attr]
    assert msgpack.unpackb(body) == [tag, *plain(message)]
    assert decode(frame(msgpack.packb([tag, *plain(message)]))) == message


def test_the_reference_decoder_reads_headers() -> None:
    raw = frames.encode_header(HEADER)
    assert msgpack.unpackb(raw) == plain(HEADER)
    assert frames.decode_header(msgpack.packb(plain(HEADER))) == HEADER


@pytest.mark.parametrize("message", EXAMPLES)
def test_every_truncation_and_every_flipped_bit_is_malformed(message: Message) -> None:
    good = encode(message)
    for end in range(len(good)):
        refused(good[:end])
    for place in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            if bad[:2] == b"\x01\x01" and len(bad) > 38:
                continue  # the form byte makes it a chunk: nobody asked for it, its digest is wrong
            refused(bytes(bad))
    refused(good + b"\x00")


@pytest.mark.parametrize("message", EXAMPLES)
def test_damage_under_a_right_checksum_is_malformed_or_another_message(message: Message) -> None:
    body = encode(message)[6:]
    for end in range(len(body)):
        refused(frame(body[:end]))
    refused(frame(body + b"\x00"))
    for place in range(len(body)):
        for bit in range(8):
            bad = bytearray(body)
            bad[place] ^= 1 << bit
            try:
                decode(frame(bytes(bad)))
            except MalformedFrame:
                continue


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_is_malformed(noise: bytes) -> None:
    for data in (noise, frame(noise), b"\x01\x00" + noise):
        try:
            decode(data)
        except MalformedFrame:
            continue
    for parse in (frames.decode_header, frames.decode_ballot):
        try:
            parse(noise)
        except MalformedFrame:
            continue


HUGE = {
    "bin": b"\x92\x05\xc6\xff\xff\xff\xff",
    "str": b"\x92\x09\xdb\xff\xff\xff\xff",
    "array": b"\x92\x07\xdd\xff\xff\xff\xff",
    "outer array": b"\xdd\xff\xff\xff\xff\x07",
    "map": b"\xdf\xff\xff\xff\xff",
    "map inside": b"\x92\x07\xdf\xff\xff\xff\xff",
    "ext": b"\x92\x09\xc9\xff\xff\xff\xff\x05",
    "leaves": b"\x94\x01\x92\xc4\x01h\xc4\x40" + b"s" * 64 + b"\xc6\xff\xff\xff\xff",
    "heads": b"\x92\x07\xdd\x00\x00\x00\x40\x92\xc6\xff\xff\xff\xff",
}
DEEP = {
    "arrays": b"\x91" * 100_000,
    "pairs": b"\x92\x07" * 50_000,
    "heads": b"\x92\x07" + b"\x91" * 100_000,
    "maps": b"\x81\x00" * 50_000,
}


@pytest.mark.parametrize("body", [*HUGE.values(), *DEEP.values()], ids=[*HUGE, *DEEP])
def test_declared_sizes_and_depth_cost_nothing(body: bytes) -> None:
    data = frame(body)
    tracemalloc.start()
    try:
        refused(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body) + 64 * 1024


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x92\x09\xa2\xff\xfe", id="bye"),
        pytest.param(
            b"\x96\x04\x01\xc4\x10" + b"b" * 16 + b"\x01\xc3\xa1\xff",
            id="have",
        ),
    ],
)
def test_text_that_is_not_utf8_is_malformed(body: bytes) -> None:
    refused(frame(body))


def test_a_header_with_text_that_is_not_utf8_is_malformed() -> None:
    raw = frames.encode_header(HEADER).replace(b"full", b"\xff\xfe\xfd\xfc")
    with pytest.raises(MalformedFrame):
        frames.decode_header(raw)


@pytest.mark.parametrize("kind", [3, 11, 127, -1, 2**40])
def test_an_unknown_kind_is_malformed(kind: int) -> None:
    refused(frame(msgpack.packb([kind, b"x" * 32])))


def test_unknown_versions_forms_and_sizes_are_malformed() -> None:
    good = encode(Ping())
    for version in (0, 2, 255):
        refused(bytes((version,)) + good[1:])
    for form in range(2, 256):
        refused(bytes((1, form)) + good[2:])
    refused(b"")
    long = Heads((SignedHeader(bytes(30 * 1024), b"s" * 64),) * 64)
    assert len(encode(long)) > FRAME_BYTES_MAX
    refused(encode(long))
    refused(frame(msgpack.packb([9, "x" * 201])))
    refused(frame(msgpack.packb([2, D, 0, 0])))
    refused(frame(msgpack.packb([2, D, 0, 17])))
    refused(frame(msgpack.packb([2, D, True, 1])))
    refused(frame(msgpack.packb([9, "why", "more"])))


def test_chunks_are_views_and_bounded() -> None:
    data = b"x" * CHUNK_BYTES
    sent = chunk_prefix(D, 7) + data
    chunk = decode(sent)
    assert isinstance(chunk, Chunk)
    assert (chunk.root, chunk.index, chunk.data) == (D, 7, data)
    assert chunk.data.obj is sent
    refused(sent + b"x")
    for end in range(len(chunk_prefix(D, 7)) + 1):
        refused(sent[:end])
    assert struct.unpack(">I", sent[34:38]) == (7,)
