"""Frames to messages and back. Nothing else parses or builds bytes of the wire.

Received bytes are what is hashed and verified; nothing is encoded again to check it.
"""

from __future__ import annotations

import zlib
from typing import Final, TypeVar

import msgspec

from node.errors import MalformedFrame
from node.types.messages import (
    CHUNK_BYTES,
    FRAME_BYTES_MAX,
    VERSION,
    Ballot,
    Chunk,
    Header,
    Message,
)

T = TypeVar("T")

MESSAGE: Final = 0
CHUNK: Final = 1
_MESSAGE_PREFIX: Final = 6  # version, form, CRC-32
CHUNK_PREFIX: Final = 2 + 32 + 4  # version, form, root, index

_messages = msgspec.msgpack.Decoder(Message)
_headers = msgspec.msgpack.Decoder(Header)
_ballots = msgspec.msgpack.Decoder(Ballot)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """The whole frame of a message."""
    body = _encoder.encode(message)
    return bytes((VERSION, MESSAGE)) + zlib.crc32(body).to_bytes(4, "big") + body


def chunk_prefix(root: bytes, index: int) -> bytes:
    """What stands before a chunk's data; the shell sends both without joining them."""
    return bytes((VERSION, CHUNK)) + root + index.to_bytes(4, "big")


def is_chunk(frame: bytes | memoryview) -> bool:
    """Whether it carries a part of a payload, rather than a message."""
    return frame[1] == CHUNK


def decode(frame: bytes | memoryview) -> Message | Chunk:
    """Parse one frame. Raises MalformedFrame for anything that is not exactly one of ours."""
    if len(frame) > FRAME_BYTES_MAX:
        raise MalformedFrame(f"frame of {len(frame)} bytes, at most {FRAME_BYTES_MAX}")
    if len(frame) < _MESSAGE_PREFIX:
        raise MalformedFrame(f"frame of {len(frame)} bytes is too short")
    if frame[0] != VERSION:
        raise MalformedFrame(f"wire version {frame[0]}, this node speaks {VERSION}")
    if frame[1] == CHUNK:
        return _decode_chunk(memoryview(frame))
    if frame[1] != MESSAGE:
        raise MalformedFrame(f"unknown form {frame[1]}")
    body = frame[_MESSAGE_PREFIX:]
    if zlib.crc32(body) != int.from_bytes(frame[2:_MESSAGE_PREFIX], "big"):
        raise MalformedFrame("checksum does not match")
    message: Message = _typed(_messages, body)
    return message


def _decode_chunk(frame: memoryview) -> Chunk:
    data = frame[CHUNK_PREFIX:]
    if not 0 < len(data) <= CHUNK_BYTES:
        raise MalformedFrame(f"chunk of {len(data)} bytes")
    index = int.from_bytes(frame[34:CHUNK_PREFIX], "big")
    return Chunk(root=bytes(frame[2:34]), index=index, data=data)


def encode_header(header: Header) -> bytes:
    """The bytes that are signed."""
    return _encoder.encode(header)


def decode_header(data: bytes) -> Header:
    """Parse signed header bytes. Raises MalformedFrame."""
    return _typed(_headers, data)


def encode_ballot(ballot: Ballot) -> bytes:
    return _encoder.encode(ballot)


def decode_ballot(data: bytes) -> Ballot:
    return _typed(_ballots, data)


def _typed(decoder: msgspec.msgpack.Decoder[T], data: bytes | memoryview) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedFrame(str(error)) from None
