"""A broker that does as it likes: a proxy before a real one that tampers with what is published.

It speaks MQTT 3.1.1 with both sides, acknowledges what it swallows, records all it sees, and is
drawn from a seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Final

PUBLISH: Final = 3
PUBACK: Final = 4
LOOPBACK: Final = "127.0.0.1"


class Message:
    """One PUBLISH packet."""

    def __init__(self, flags: int, body: bytes) -> None:
        self.qos, self.retain = flags >> 1 & 3, bool(flags & 1)
        size = int.from_bytes(body[:2], "big")
        self.topic = body[2 : 2 + size].decode()
        rest = body[2 + size :]
        self.id = rest[:2] if self.qos else b""
        self.payload = rest[2:] if self.qos else rest

    def packet(self, *, topic: str | None = None, payload: bytes | None = None) -> bytes:
        """As it is delivered, at QoS 0: a client need not acknowledge it to us."""
        name = (topic or self.topic).encode()
        body = len(name).to_bytes(2, "big") + name + (self.payload if payload is None else payload)
        return bytes((PUBLISH << 4 | self.retain,)) + length(len(body)) + body

    def acknowledgement(self) -> bytes:
        return bytes((PUBACK << 4, 2)) + self.id


def length(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


class Side:
    """One client's connection: what is delivered to it passes through ``Hostile.deliver``."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.topics: list[str] = []  # that it was delivered something on
        self.held: list[bytes] = []

    def send(self, packet: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(packet)


class Hostile:
    """``behaviours``: any of drop, delay, duplicate, reorder, replay, readdress, corrupt."""

    def __init__(self, upstream: str, *behaviours: str, rate: float = 0.1, seed: int = 1) -> None:
        self.upstream_port = int(upstream.rsplit(":", 1)[1])
        self.behaviours, self.rate, self.rng = behaviours, rate, random.Random(seed)
        self.recording = bytearray()
        self.counts: dict[str, int] = {}
        self.record = False
        self.kill_after_message = False
        self.passes: Callable[[Message, bool], bool] = lambda message, towards_broker: True
        self._history: list[tuple[Side, Message]] = []
        self.sides: list[Side] = []
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._server: asyncio.Server | None = None
        self.published_bytes = 0  # by clients, that got through
        self.bytes_per_s: float | None = None  # that it takes of each client
        self.url = ""

    async def start(self, port: int = 0) -> str:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, port)
        self.url = f"mqtt://{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"
        return self.url

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Drop every connection."""
        for side in self.sides:
            side.writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        up_writer: asyncio.StreamWriter | None = None
        try:
            up_reader, up_writer = await asyncio.open_connection(LOOPBACK, self.upstream_port)
            side = Side(writer)
            self.sides.append(side)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._upwards(reader, up_writer, side))
                group.create_task(self._downwards(up_reader, up_writer, side))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        except* asyncio.CancelledError:
            pass  # asyncio's streams complain of a handler that was cancelled
        finally:
            for one in (writer, up_writer):
                if one is not None:
                    one.close()
            self._tasks.pop(task, None)

    async def _upwards(
        self, reader: asyncio.StreamReader, up: asyncio.StreamWriter, side: Side
    ) -> None:
        loop = asyncio.get_running_loop()
        taken_at = loop.time()
        while True:
            kind, flags, body, raw = await read_packet(reader)
            if self.bytes_per_s is not None:
                taken_at = max(taken_at, loop.time() - 0.1) + len(raw) / self.bytes_per_s
                await asyncio.sleep(taken_at - loop.time())
            if kind == PUBLISH:
                message = Message(flags, body)
                if not self.passes(message, True):
                    if message.qos:
                        side.send(message.acknowledgement())
                    continue
                self.published_bytes += len(message.payload)
            up.write(raw)
            if self.record:
                self.recording += raw
            await up.drain()
            if kind == PUBLISH and self.kill_after_message:
                raise OSError("closed after a message")

    async def _downwards(
        self, reader: asyncio.StreamReader, up: asyncio.StreamWriter, side: Side
    ) -> None:
        while True:
            kind, flags, body, raw = await read_packet(reader)
            if self.record:
                self.recording += raw
            if kind != PUBLISH:
                side.send(raw)
            else:
                message = Message(flags, body)
                if message.qos:
                    up.write(message.acknowledgement())
                if self.passes(message, False):
                    self.deliver(side, message)
            with contextlib.suppress(ConnectionError):
                await side.writer.drain()

    def deliver(self, side: Side, message: Message) -> None:
        if message.topic not in side.topics:
            side.topics.append(message.topic)
        self._history = [*self._history[-200:], (side, message)]
        packets = [message.packet()]
        for behaviour in self.behaviours:
            if self.rng.random() < self.rate:
                self.counts[behaviour] = self.counts.get(behaviour, 0) + 1
                packets = getattr(self, f"_{behaviour}")(side, message, packets)
        for packet in packets:
            side.send(packet)
        if packets and side.held:
            held, side.held = side.held, []
            for packet in held:
                side.send(packet)

    def _drop(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        return []

    def _delay(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        loop = asyncio.get_running_loop()
        for packet in packets:
            loop.call_later(self.rng.uniform(0.01, 0.3), side.send, packet)
        return []

    def _duplicate(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        return packets * 2

    def _reorder(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        side.held += packets
        return []

    def _replay(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        mine = [old for where, old in self._history if where is side]
        return [*packets, *(old.packet() for old in self.rng.sample(mine, min(3, len(mine))))]

    def _readdress(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        """To another topic of the same client, and to another client."""
        wrong = message.packet(topic=self.rng.choice(side.topics))
        for other in self.sides:
            if other is not side and other.topics:
                other.send(message.packet(topic=self.rng.choice(other.topics)))
        return [wrong, *packets]

    def _corrupt(self, side: Side, message: Message, packets: list[bytes]) -> list[bytes]:
        if not message.payload:
            return packets
        changed = bytearray(message.payload)
        changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
        return [message.packet(payload=bytes(changed)), *packets]


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, int, bytes, bytes]:
    """(kind, flags, body, all of it)."""
    first = await reader.readexactly(1)
    head, size, shift = bytearray(first), 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        head.append(byte)
        size |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            break
    body = await reader.readexactly(size)
    return first[0] >> 4, first[0] & 15, body, bytes(head) + body


def packets(recording: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """The packets of a recording, one after another, as ``read_packet`` has them."""
    at = 0
    while at < len(recording):
        size, shift, body = 0, 0, at + 1
        while True:
            byte = recording[body]
            size |= (byte & 127) << shift
            shift, body = shift + 7, body + 1
            if not byte & 128:
                break
        end = body + size
        yield recording[at] >> 4, recording[at] & 15, recording[body:end], recording[at:end]
        at = end


@contextlib.contextmanager
def behind(upstream: str, *behaviours: str, record: bool = False) -> Iterator[Hostile]:
    """A hostile broker in a thread of its own, for nodes in processes of theirs."""
    loop = asyncio.new_event_loop()
    proxy = Hostile(upstream, *behaviours)
    proxy.record = record
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result()
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
