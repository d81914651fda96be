"""The shell's view of a transport: one link a neighbour, named by its id, and its bytes counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from crypto.certificate import private_key_pem
from crypto.identity import NodeId
from node.runtime_parts import Parts
from node.transport.addresses import PeerAddress, is_broker
from node.transport.links import Link, Transport
from node.transport.mixed import MixedTransport
from node.transport.mqtt import MqttTransport
from node.transport.tcp import TcpTransport


class Owner(Protocol):
    """Whom links are told to: all calls come in the loop."""

    def on_up(self, peer: NodeId) -> None: ...
    def on_down(self, peer: NodeId, why: str) -> None: ...
    def on_dial_failed(self, peer: NodeId, why: str) -> None: ...
    def on_frame(self, peer: NodeId, frame: memoryview) -> None: ...
    def on_drained(self, peer: NodeId) -> None: ...
    def on_broker(self, up: bool, why: str) -> None: ...


class Links(Protocol):
    """What the shell asks of its links; engines may wrap one (``Wrap``)."""

    @property
    def sent_bytes(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    @property
    def refused(self) -> Mapping[str, int]: ...
    @property
    def broken_off(self) -> Mapping[str, int]: ...
    def via(self, peer: NodeId) -> str: ...
    async def start(self, owner: Owner) -> None: ...
    async def close(self) -> None: ...
    def dial(self, peer: NodeId) -> None: ...
    def hangup(self, peer: NodeId, why: str) -> None: ...
    def send(self, peer: NodeId, *parts: bytes | memoryview) -> None: ...
    def queued_bytes(self, peer: NodeId) -> int: ...


Wrap = Callable[[Links], Links]


class TransportLinks:
    """Links over any transport of node/transport. Frames to a member without a link are dropped."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._owner: Owner | None = None
        self._draining: dict[NodeId, asyncio.Task[None]] = {}

    @property
    def sent_bytes(self) -> int:
        return self._transport.stats.sent.total()

    @property
    def received_bytes(self) -> int:
        return self._transport.stats.received.total()

    def bytes_by_peer(self) -> dict[NodeId, tuple[int, int]]:
        """(sent, received) for each member that there was a link with, sorted."""
        stats = self._transport.stats
        peers = sorted({*stats.sent, *stats.received})
        return {peer: (stats.sent[peer], stats.received[peer]) for peer in peers}

    @property
    def refused(self) -> Mapping[str, int]:
        """Connections that became no link, by reason: strangers, scanners, floods."""
        return self._transport.stats.refused

    @property
    def broken_off(self) -> Mapping[str, int]:
        """Links that were closed for what a member did below the frames, by reason."""
        return self._transport.stats.violations

    def via(self, peer: NodeId) -> str:
        """What the link to ``peer`` goes over; "" where there is none."""
        link = self._transport.links.get(peer)
        return "" if link is None else link.via

    async def start(self, owner: Owner) -> None:
        """Listen. Raises ConfigError where the address cannot be used."""
        self._owner = owner
        self._transport.attach(self)
        self._transport.on_broker = owner.on_broker
        await self._transport.listen()

    async def close(self) -> None:
        for task in self._draining.values():
            task.cancel()
        await asyncio.gather(*self._draining.values(), return_exceptions=True)
        if self._owner is not None:
            await self._transport.close()

    def dial(self, peer: NodeId) -> None:
        self._transport.dial(peer)

    def hangup(self, peer: NodeId, why: str) -> None:
        link = self._transport.links.get(peer)
        if link is not None:
            link.close(why)

    def send(self, peer: NodeId, *parts: bytes | memoryview) -> None:
        """Queue one frame, given whole or as prefix and data; its bytes are free on return."""
        link = self._transport.links.get(peer)
        if link is None:
            return
        *prefix, data = parts
        link.send_chunk(b"".join(prefix), data)
        if prefix and peer not in self._draining and link.outbox_bytes:
            self._draining[peer] = asyncio.get_running_loop().create_task(self._drain(link))

    def queued_bytes(self, peer: NodeId) -> int:
        link = self._transport.links.get(peer)
        return 0 if link is None else link.outbox_bytes

    async def _drain(self, link: Link) -> None:
        """Tell once when there is room again after a chunk."""
        try:
            await link.drained()
        finally:
            del self._draining[link.peer]
        assert self._owner is not None
        self._owner.on_drained(link.peer)

    # ── what the transport tells ──

    def on_link(self, link: Link) -> None:
        assert self._owner is not None
        self._owner.on_up(link.peer)

    def on_down(self, link: Link, why: str) -> None:
        assert self._owner is not None
        self._owner.on_down(link.peer, why)

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        assert self._owner is not None
        self._owner.on_dial_failed(peer, why)

    def on_frame(self, link: Link, frame: memoryview) -> None:
        assert self._owner is not None
        self._owner.on_frame(link.peer, frame)


def node_links(parts: Parts) -> TransportLinks:
    """Links to the members of the roster by all ways that NODE.toml gives this node.

    TLS over TCP, and over a broker where [mqtt] names one; the core lets only neighbours stay.
    """
    tcp = _tcp(parts)
    if parts.login is None:
        return TransportLinks(tcp)
    members = parts.consortium.roster.members.values()
    mqtt = MqttTransport(
        parts.me.id,
        parts.login,
        consortium=parts.consortium.id,
        epoch=parts.consortium.roster.epoch,
        certificate=parts.me.certificate,
        key_pem=private_key_pem(parts.node_key),
        sign=parts.node_key.sign,
        peers=_peers(parts),
        advertise=parts.advertise,
    )
    tcp.learned = mqtt.learned
    at_broker = {m.id for m in members if any(map(is_broker, m.addresses))}

    def reach(rank: int, peer: NodeId) -> bool:
        return peer in at_broker if rank else bool(tcp.ways(peer))

    return TransportLinks(MixedTransport(parts.me.id, (tcp, mqtt), reach=reach))


def tcp_links(parts: Parts) -> TransportLinks:
    """Links over TCP alone."""
    return TransportLinks(_tcp(parts))


def _tcp(parts: Parts) -> TcpTransport:
    return TcpTransport(
        parts.me.id,
        certificate=parts.me.certificate,
        key_pem=private_key_pem(parts.node_key),
        peers=_peers(parts),
        listen=parts.settings.listen,
    )


def _peers(parts: Parts) -> dict[NodeId, PeerAddress]:
    members = parts.consortium.roster.members.values()
    return {m.id: PeerAddress(m.certificate, m.addresses) for m in members}
