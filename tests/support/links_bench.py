"""One bench for every transport: members with keys, a recorder each, and ways to stall a link."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import brokers

from crypto.certificate import make_certificate, private_key_pem
from crypto.channel import Channel, make_context
from crypto.identity import NodeId, SigningKey, node_id
from node.transport import mqtt
from node.transport.addresses import PeerAddress
from node.transport.links import Link, Transport
from node.transport.memory import MemoryNetwork, MemoryTransport
from node.transport.mqtt import MqttTransport
from node.transport.mqtt_login import login
from node.transport.tcp import Limits, TcpTransport
from node.types.settings import MqttSettings

# kind of transport -> what brings up its broker
BROKERS: dict[str, Callable[[], str]] = {"amqtt": brokers.amqtt, "mosquitto": brokers.mosquitto}

KEYS = sorted(
    (SigningKey.from_seed(bytes([n]) * 32) for n in range(1, 5)), key=lambda k: node_id(k.public)
)
IDS = [node_id(key.public) for key in KEYS]
CERTIFICATES = [make_certificate(key) for key in KEYS]


class Recorder:
    """A handler that keeps what it is told and lets a test wait for it."""

    def __init__(self, changed: asyncio.Event) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.on: Callable[[Link, bytes], None] | None = None
        self._changed = changed

    def on_link(self, link: Link) -> None:
        self._add("link", link.peer, link)

    def on_frame(self, link: Link, frame: memoryview) -> None:
        data = bytes(frame)
        self._add("frame", link.peer, data)
        if self.on is not None:
            self.on(link, data)

    def on_down(self, link: Link, why: str) -> None:
        self._add("down", link.peer, why)

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self._add("failed", peer, why)

    def _add(self, *event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    def of(self, kind: str) -> list[Any]:
        return [event[2] for event in self.events if event[0] == kind]

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def first(self, kind: str, count: int = 1) -> Any:
        """The ``count``-th event of a kind: the link, the frame, or why."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]


class Bench:
    """Members 0 to 3, in the order of their ids."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork()
        self.transports: list[Transport] = []
        self.heard: dict[int, Recorder] = {}
        self._changed = asyncio.Event()  # of them all: conditions may look at several
        self.consortium = secrets.token_bytes(32)  # tests that share a broker do not meet
        self.redial = False  # as the core does, where a dial may fail by chance
        self.url = ""
        if kind in BROKERS:
            self.url = BROKERS[kind]()

    async def member(self, me: int, *, knows: tuple[int, ...] = (0, 1, 2), **options: Any) -> Any:
        """A listening transport; those made before it know its address, and it theirs."""
        transport: Any
        if self.kind == "memory":
            transport = MemoryTransport(IDS[me], self.network, **options)
        elif self.kind in BROKERS:
            transport = self.through_broker(me, knows, **options)
        else:
            options.setdefault("limits", Limits(closing_s=0.1))  # stalled peers take nothing
            transport = TcpTransport(
                IDS[me],
                certificate=CERTIFICATES[me],
                key_pem=private_key_pem(KEYS[me]),
                peers={IDS[n]: PeerAddress(CERTIFICATES[n]) for n in knows},
                listen="127.0.0.1:0",
                **options,
            )
        self.heard[me] = Recorder(self._changed)
        transport.attach(self.heard[me])
        await transport.listen()
        if self.kind in BROKERS:
            await self.until(lambda: transport.session.up)
        if self.kind == "tcp":
            for other in self.transports:
                other._addresses[IDS[me]] = (transport.listening,)
                transport._addresses[other.me] = (other.listening,)
        self.transports.append(transport)
        return transport

    def through_broker(self, me: int, knows: tuple[int, ...], **options: Any) -> MqttTransport:
        options.setdefault("limits", mqtt.Limits(closing_s=0.5))
        version = "3.1.1" if self.kind == "amqtt" else "auto"
        chosen = {"version": version, **options.pop("broker", {})}
        settings = MqttSettings(broker=self.url, **chosen)
        return MqttTransport(
            IDS[me],
            login(settings, base=Path()),
            consortium=self.consortium,
            epoch=0,
            certificate=CERTIFICATES[me],
            key_pem=private_key_pem(KEYS[me]),
            sign=KEYS[me].sign,
            peers={IDS[n]: PeerAddress(CERTIFICATES[n], (self.url,)) for n in knows},
            **options,
        )

    async def pair(self, **options: Any) -> tuple[Any, Any, Link, Link]:
        """Two members and the link between them, dialled by the first."""
        a, b = await self.member(0, **options), await self.member(1, **options)
        if self.redial:
            tell = self.heard[0].on_dial_failed
            self.heard[0].on_dial_failed = lambda peer, why: (tell(peer, why), a.dial(peer))
        a.dial(b.me)
        return a, b, await self.heard[0].first("link"), await self.heard[1].first("link")

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that no handler is told of: counters."""
        while not condition():  # noqa: ASYNC110 - nothing to be woken by
            await asyncio.sleep(0.001)

    def stall(self, link: Any) -> None:
        """The end that has ``link`` reads no more."""
        if self.kind == "memory":
            self.network.hold(link.peer, link._owner.me)
        elif self.kind in BROKERS:
            link.connection._take = lambda body: None
        else:
            link._connection._transport.pause_reading()

    def go_on(self, link: Any) -> None:
        if self.kind == "memory":
            self.network.release(link.peer, link._owner.me)
        elif self.kind in BROKERS:
            del link.connection._take
        else:
            link._connection._transport.resume_reading()


def play(kind: str, scene: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    """Run a scene; afterwards nothing of the transports may be left."""

    async def whole() -> None:
        bench = Bench(kind)
        try:
            await scene(bench)
        finally:
            for transport in bench.transports:
                await transport.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks that nobody owns: {left}"

    asyncio.run(whole())


class RawPeer:
    """A member that speaks TLS by hand, to say what no transport of ours would."""

    def __init__(self, me: int, target: TcpTransport) -> None:
        self._target = target
        known = [CERTIFICATES[n] for n in range(3)]
        context = make_context(
            server_side=False,
            certificate=CERTIFICATES[me],
            key_pem=private_key_pem(KEYS[me]),
            trusted=known,
        )
        self.channel = Channel(context, server_side=False)

    async def connect(self) -> RawPeer:
        address = self._target.listening
        assert address is not None
        self.reader, self.writer = await asyncio.open_connection(address.host, address.port)
        while not self.channel.ready:
            await self.flush()
            self.channel.receive(await self.reader.read(65536))
        await self.flush()
        return self

    def encrypted(self, data: bytes) -> bytes:
        self.channel.write(data)
        return self.channel.pending()

    async def flush(self) -> None:
        self.writer.write(self.channel.pending())
        await self.writer.drain()

    async def ended(self) -> None:
        """Return when the other end has closed."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.writer.close()
