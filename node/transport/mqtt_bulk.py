"""Chunks through a broker, published once for all neighbours: the messages, and who has what.

A transfer is one payload (its root) on one random topic under one fresh AES-256-GCM key, which
each neighbour gets inside its own link. The nonce is chunk and part, so a repair is the same bytes
again; another payload, another size of part or another process has another key. Co-recipients
cannot forge: the core checks each chunk against the signed header's digests of the plaintext.
The sending half is mqtt_sending.py, the receiving half mqtt_receiving.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crypto.identity import NodeId
from node.protocol.frames import MESSAGE
from node.transport.mqtt_pipe import KEY_BYTES, TAG_BYTES
from node.types.messages import CHUNK_BYTES, PAYLOAD_BYTES_MAX, VERSION

if TYPE_CHECKING:
    from node.transport.mqtt import MqttTransport
    from node.transport.mqtt_connection import MqttLink

CHUNKS_MAX: Final = PAYLOAD_BYTES_MAX // CHUNK_BYTES  # 4096
ROOT_BYTES: Final = 32
TOPIC_BYTES: Final = 16
HEAD_BYTES: Final = 16  # sequence 8, chunk 4, part 2, parts 2
GCM_TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = TAG_BYTES + HEAD_BYTES + GCM_TAG_BYTES

# kinds of notes between the transports of two ends of a link
KEY: Final = 2  # root 32, topic 16, key 32, bytes of a part 4, chunks 4
JOINED: Final = 3  # topic 16, chunks that may come unasked 4, bitmap of chunks at hand
DECLINED: Final = 4  # topic 16: the broker does not let us subscribe; send inside the link
LOST: Final = 5  # topic 16, first sequence 8, end 8

END: Final = 2**64 - 1  # in LOST: up to whatever was published


class Piece(NamedTuple):
    """One published message, opened."""

    sequence: int
    chunk: int
    part: int
    parts: int
    sealed: memoryview


class Cipher:
    """The key of one transfer on one topic."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._aead = AESGCM(key)
        self._tag_key = blake3(key, derive_key_context="grapevine/1 mqtt transfer tag").digest()

    def seal(
        self, sequence: int, chunk: int, part: int, parts: int, plain: bytes | memoryview
    ) -> bytes:
        """A message; equal but for tag and sequence whenever the same part is published again."""
        head = _numbers(chunk, part, parts)
        text = self._aead.encrypt(head[:6] + bytes(6), plain, head)
        sequenced = sequence.to_bytes(8, "big") + head
        tag = blake3(sequenced, key=self._tag_key).update(text).digest(TAG_BYTES)
        return b"".join((tag, sequenced, text))

    def check(self, message: bytes) -> Piece | None:
        """Who made it knew the key; else None."""
        view = memoryview(message)
        if len(view) < OVERHEAD_BYTES:
            return None
        if blake3(view[TAG_BYTES:], key=self._tag_key).digest(TAG_BYTES) != view[:TAG_BYTES]:
            return None
        head = view[TAG_BYTES : TAG_BYTES + HEAD_BYTES]
        whole = int.from_bytes(head, "big")
        sequence, chunk = whole >> 64, whole >> 32 & 0xFFFFFFFF
        return Piece(
            sequence, chunk, whole >> 16 & 0xFFFF, whole & 0xFFFF, view[TAG_BYTES + HEAD_BYTES :]
        )

    def open(self, piece: Piece) -> bytes | None:
        head = _numbers(piece.chunk, piece.part, piece.parts)
        try:
            return self._aead.decrypt(head[:6] + bytes(6), piece.sealed, head)
        except InvalidTag:
            return None


def _numbers(chunk: int, part: int, parts: int) -> bytes:
    return chunk.to_bytes(4, "big") + part.to_bytes(2, "big") + parts.to_bytes(2, "big")


def key_note(root: bytes, topic: bytes, key: bytes, part_bytes: int, chunks: int) -> bytes:
    tail = part_bytes.to_bytes(4, "big") + chunks.to_bytes(4, "big")
    return bytes((KEY,)) + root + topic + key + tail


class KeyNote(NamedTuple):
    root: bytes
    topic: bytes
    key: bytes
    part_bytes: int
    chunks: int


def read_key_note(data: bytes) -> KeyNote | None:
    """None unless it is one, within bounds."""
    if len(data) != ROOT_BYTES + TOPIC_BYTES + KEY_BYTES + 8:
        return None
    at = ROOT_BYTES + TOPIC_BYTES
    tail = data[at + KEY_BYTES :]
    part_bytes, chunks = int.from_bytes(tail[:4], "big"), int.from_bytes(tail[4:], "big")
    if not 256 <= part_bytes <= CHUNK_BYTES or not 1 <= chunks <= CHUNKS_MAX:
        return None
    return KeyNote(
        data[:ROOT_BYTES], data[ROOT_BYTES:at], data[at : at + KEY_BYTES], part_bytes, chunks
    )


class Bulk:
    """Both halves, as links see them."""

    def __init__(self, owner: MqttTransport) -> None:
        from node.transport.mqtt_receiving import Receiving
        from node.transport.mqtt_sending import Sending

        self.sending = Sending(owner)
        self.receiving = Receiving(owner)

    def publish(self, link: MqttLink, prefix: bytes, data: bytes | memoryview) -> None:
        self.sending.publish(link, prefix, data)

    def outgoing(self, link: MqttLink, frame: bytes | memoryview) -> bool:
        """See a frame of the core's that leaves; True: it goes later, not now."""
        if len(frame) < 8 or frame[0] != VERSION or frame[1] != MESSAGE:
            return False
        self.sending.offered(link, frame)
        return self.receiving.wanted(link, frame)

    def note(self, link: MqttLink, note: bytes) -> None:
        kind, data = note[:1], note[1:]
        if kind == bytes((KEY,)):
            self.receiving.keyed(link, data)
        else:
            self.sending.note(link, kind, data)

    def waiting_bytes(self, peer: NodeId) -> int:
        return self.sending.waiting_bytes(peer)

    def down(self, link: MqttLink) -> None:
        self.sending.down(link.peer)
        self.receiving.down(link.peer)

    def broker_back(self) -> None:
        self.sending.pump()
        self.receiving.broker_back()

    def close(self) -> None:
        self.sending.close()
        self.receiving.close()
