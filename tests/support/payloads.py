"""Payloads over links without cores: an Offer, and two handlers that serve and fetch its chunks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from node.errors import MalformedFrame
from node.protocol.frames import chunk_prefix, decode, encode, encode_header
from node.transport.links import Link
from node.types.messages import CHUNK_BYTES, Chunk, Header, Offer, SignedHeader, Want


class Payload:
    """Bytes that are the same whoever makes them, and the frame that offers them."""

    def __init__(self, length: int, seed: int = 1) -> None:
        block = hashlib.shake_256(bytes([seed])).digest(CHUNK_BYTES)
        chunks = -(-length // CHUNK_BYTES)
        whole = bytearray(block * chunks)
        for index in range(chunks):  # no two chunks alike
            whole[index * CHUNK_BYTES : index * CHUNK_BYTES + 4] = index.to_bytes(4, "big")
        self.data = bytes(whole[:length])
        self.chunks = chunks
        self.root = hashlib.blake2b(self.data, digest_size=32).digest()
        self.offer = self.offering(length)

    def offering(self, length: int) -> bytes:
        """The frame that offers so many bytes under this root."""
        header = Header(
            consortium=bytes(32),
            epoch=0,
            training=bytes(32),
            sender=bytes(32),
            key_version=0,
            incarnation=1,
            boot_id=bytes(16),
            round=1,
            kind=0,
            version=1,
            base=None,
            codec="full",
            length=length,
            root=self.root,
            model=self.root,
            mixed_round=0,
            counted=(),
        )
        signed = SignedHeader(encode_header(header), bytes(64))
        return encode(Offer(signed, bytes(32), None))

    def chunk(self, index: int) -> bytes:
        return self.data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def message_in(frame: bytes) -> Any:
    """None for what a test sends just so."""
    try:
        return decode(frame)
    except MalformedFrame:
        return None


class Server:
    """Offers a payload and serves the Wants for it, as core and shell would: as room allows."""

    def __init__(self, recorder: Any, payload: Payload) -> None:
        self.payload = payload
        self.queued: dict[Link, list[int]] = {}
        self.draining: dict[Link, asyncio.Task[None]] = {}
        recorder.on = self._heard

    def offer(self, link: Link) -> None:
        link.send(self.payload.offer)

    def _heard(self, link: Link, frame: bytes) -> None:
        want = message_in(frame)
        if isinstance(want, Want) and want.root == self.payload.root:
            self.queued.setdefault(link, []).extend(range(want.first, want.first + want.count))
            self._pump(link)

    def _pump(self, link: Link) -> None:
        queue = self.queued[link]
        while queue and link.outbox_bytes < 1024 * 1024:
            index = queue.pop(0)
            link.send_chunk(chunk_prefix(self.payload.root, index), self.payload.chunk(index))
        if queue and link not in self.draining:
            self.draining[link] = asyncio.get_running_loop().create_task(self._drain(link))

    async def _drain(self, link: Link) -> None:
        await link.drained()
        del self.draining[link]
        if not link.closed:
            self._pump(link)


class Fetcher:
    """Asks for a payload's chunks, a window at a time, and keeps what comes.

    ``patience_s``: without a chunk for so long, what is missing is asked for again.
    """

    def __init__(
        self,
        recorder: Any,
        link: Link,
        payload: Payload,
        *,
        window: int = 16,
        patience_s: float = 5,
    ) -> None:
        self.link, self.payload, self.window = link, payload, window
        self.got: dict[int, bytes] = {}
        self.unasked: list[tuple[bytes, int]] = []
        self.asked: set[int] = set()
        self.asked_again = 0
        self.patience_s = patience_s
        self.changed = recorder._changed
        self.slow: Callable[[], bool] = lambda: False
        self._timer: asyncio.TimerHandle | None = None
        recorder.on = self._heard

    def start(self) -> None:
        self._ask()

    def keep(self, index: int, data: bytes) -> None:
        self.got[index] = data

    @property
    def complete(self) -> bool:
        return len(self.got) == self.payload.chunks

    @property
    def data(self) -> bytes:
        return b"".join(self.got[index] for index in sorted(self.got))

    def go_on(self) -> None:
        self._ask()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _heard(self, link: Link, frame: bytes) -> None:
        chunk = message_in(frame)
        if not isinstance(chunk, Chunk):
            return
        if chunk.root != self.payload.root or chunk.index not in self.asked:
            self.unasked.append((chunk.root, chunk.index))
            return
        self.asked.discard(chunk.index)
        self.keep(chunk.index, bytes(chunk.data))
        self._ask()

    def _ask(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.complete or self.slow():
            return
        for index in range(self.payload.chunks):
            if len(self.asked) >= self.window:
                break
            if index not in self.got and index not in self.asked:
                self.asked.add(index)
                self.link.send(encode(Want(self.payload.root, index, 1)))
        self._timer = asyncio.get_running_loop().call_later(self.patience_s, self._again)

    def _again(self) -> None:
        for index in sorted(self.asked):
            self.asked_again += 1
            self.link.send(encode(Want(self.payload.root, index, 1)))
        self._ask()
