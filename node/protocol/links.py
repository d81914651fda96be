"""Links to neighbours: dialling, the first frames of a link, pings, giving up on silence."""

from __future__ import annotations

import math
from collections.abc import Iterator

from crypto.identity import NodeId
from node.errors import RemoteProtocolError
from node.protocol.context import Context
from node.protocol.frames import encode
from node.protocol.peers import DIAL_MAX_S, DIAL_SECOND_S, PING_S, SILENT_S, Peer
from node.protocol.publisher import Publisher
from node.protocol.standing import Standing
from node.types.events import Dial, Hangup, Send, Unlinked
from node.types.messages import Bye, Heads, Hello, Ping, SignedHeader

_PING = encode(Ping())


class Mismatch(RemoteProtocolError):
    """Both ends are members, but not of the same training."""

    reason = "mismatch"


class Links:
    """The neighbours of this node, in sorted NodeId order, and the state of their links."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.peers: dict[NodeId, Peer] = {
            n: Peer(n, context.roster.name(n)) for n in sorted(context.self_member.neighbours)
        }
        self._wake_at: float | None = None  # no link needs anything before; None: to be found out

    def linked(self) -> Iterator[Peer]:
        return (peer for peer in self.peers.values() if peer.linked)

    def start(self) -> None:
        """Dial everybody; of two ends the one with the lower id goes first."""
        for peer in self.peers.values():
            delay = 0.0 if self._context.me < peer.id else DIAL_SECOND_S
            peer.dial_at = self._context.now + delay
            peer.tokens_at = self._context.now
        self._wake_at = None

    def up(self, peer: Peer) -> None:
        """The channel stands; it counts from its Hello on."""
        peer.link_up(self._context.now)
        self._wake_at = None

    def dial_failed(self, peer: Peer, why: str) -> None:
        peer.down_why = why
        peer.retry(self._context.now, self._context.rng.random())
        self._wake_at = None

    def send(self, peer: Peer, frame: bytes, after: int | None = None) -> None:
        peer.sent_at = self._context.now
        self._context.emit(Send(peer.id, frame, after))

    def broadcast(self, frame: bytes, *, but: NodeId | None = None) -> None:
        for peer in self.linked():
            if peer.id != but:
                self.send(peer, frame)

    def greet(
        self, peer: Peer, publisher: Publisher, round_: int, theirs: SignedHeader | None
    ) -> None:
        """Say what must agree; after the incarnation in it is on record."""
        pins, roster = self._context.pins, self._context.roster
        hello = Hello(
            consortium=roster.consortium,
            epoch=roster.epoch,
            training=pins.training,
            schema=pins.schema,
            initial=pins.initial,
            code=pins.code,
            incarnation=publisher.incarnation,
            boot_id=publisher.boot_id,
            round=round_,
            yours=theirs,
        )
        self.send(peer, encode(hello), after=publisher.durable_after)

    def announce(self, publisher: Publisher, standing: Standing) -> None:
        """Sign where we stand and tell the neighbours."""
        head = publisher.presence(
            round_=standing.round, mixed_round=standing.mixed_round, counted=standing.counted
        )
        frame = encode(Heads((head,)))
        for peer in self.linked():
            self.send(peer, frame, after=publisher.durable_after)

    def agree(self, hello: Hello) -> None:
        """Raises Mismatch, naming both digests, unless both ends run the same training."""
        pins, roster = self._context.pins, self._context.roster
        pairs = (
            ("consortium", hello.consortium, roster.consortium),
            ("training", hello.training, pins.training),
            ("model schema", hello.schema, pins.schema),
            ("initial parameters", hello.initial, pins.initial),
            ("task code", hello.code, pins.code),
        )
        for what, theirs, ours in pairs:
            if theirs != ours:
                pair = f"theirs {theirs.hex()[:16]}, ours {ours.hex()[:16]}"
                raise Mismatch(f"not the same {what}: {pair}")
        if hello.epoch != roster.epoch:
            raise Mismatch(f"not the same epoch: theirs {hello.epoch}, ours {roster.epoch}")

    def refuse(self, peer: Peer, why: str) -> None:
        """Tell the other end why, and hang up; dialled again only after the longest backoff."""
        self.send(peer, encode(Bye(why[:200])))
        self.hangup(peer, why)
        peer.dial_at = self._context.now + DIAL_MAX_S
        self._wake_at = None

    def bye(self, why: str) -> None:
        """Tell every linked neighbour that we leave on purpose."""
        self.broadcast(encode(Bye(why)))

    def hangup(self, peer: Peer, why: str) -> None:
        self._context.emit(Hangup(peer.id, why))
        self.down(peer, why)

    def down(self, peer: Peer, why: str) -> None:
        was_up = peer.up
        peer.link_down(self._context.now, why, self._context.rng.random())
        self._wake_at = None
        if was_up:
            self._context.note(Unlinked(peer.id, peer.down_why))

    def wake(self) -> None:
        """Dial, ping and give up where it is time."""
        now = self._context.now
        for peer in self.peers.values():
            if not peer.up:
                if not peer.dialling and peer.dial_at is not None and peer.dial_at <= now:
                    peer.dialling, peer.dialled_at = True, now
                    self._wake_at = None
                    self._context.emit(Dial(peer.id))
            elif peer.heard_at + SILENT_S <= now:
                self.hangup(peer, f"silent for {SILENT_S:g} s")
            elif peer.sent_at + PING_S <= now:
                self.send(peer, _PING)

    def wake_at(self) -> float | None:
        """When a link needs something, at the earliest.

        What is sent and heard on a link puts off what it needs: until a time found before has come,
        it is not looked for again. That is after every frame otherwise, over all links.
        """
        if self._wake_at is None or self._wake_at <= self._context.now:
            times = [at for peer in self.peers.values() if (at := peer.wake_at()) is not None]
            self._wake_at = min(times, default=math.inf)
        return None if self._wake_at == math.inf else self._wake_at
