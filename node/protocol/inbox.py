"""Frames of one link, by kind: parsed, checked, handed to the part that answers for them.

Whatever is wrong with a frame ends here as a counted rejection; nothing is raised further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from crypto.identity import NodeId
from node.errors import MalformedFrame, OutOfBounds, RemoteProtocolError, Replayed
from node.protocol.frames import encode
from node.protocol.incoming import Unasked
from node.protocol.links import Mismatch
from node.protocol.peers import Peer
from node.protocol.reading import Head
from node.types.events import Linked
from node.types.messages import (
    INLINE_BYTES,
    Ask,
    Ballots,
    Bye,
    Chunk,
    Gone,
    Have,
    Heads,
    Hello,
    Offer,
    Ping,
    SignedHeader,
    Want,
)

if TYPE_CHECKING:
    from node.protocol.core import Core


class RateExceeded(RemoteProtocolError):
    reason = "rate"


class Inbox:
    """Dispatches the frames of all links of one core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._kinds: dict[type, Callable[[Peer, Any], None]] = {
            Hello: self._hello,
            Want: self._want,
            Chunk: self._chunk,
            Have: self._have,
            Gone: self._gone,
            Ask: self._ask,
            Heads: self._heads,
            Ballots: self._ballots,
            Bye: self._bye,
        }

    def take(self, peer: Peer, frame: bytes | memoryview) -> None:
        """Take one frame of a link that is up. Never raises for what a peer sent."""
        try:
            message = self._core.context.read.message(frame)
            if isinstance(message, Ping):
                return
            if peer.hello is None and not isinstance(message, Hello | Bye):
                raise MalformedFrame(f"{type(message).__name__} before Hello")
            if isinstance(message, Offer):
                self._offer(peer, message, frame)
            else:
                self._kinds[type(message)](peer, message)
        except RemoteProtocolError as error:
            self._core.context.reject(peer.id, error)

    def _pay(self, peer: Peer) -> None:
        """Signatures cost: each message that carries one is paid for from the link's rate."""
        self._spend(peer, 1.0)

    def _spend(self, peer: Peer, cost: float) -> None:
        if not peer.pay(self._core.context.now, cost):
            raise RateExceeded("more signed messages than its rate allows")

    def _hello(self, peer: Peer, hello: Hello) -> None:
        core = self._core
        self._pay(peer)
        try:
            core.links.agree(hello)
        except Mismatch as error:
            core.context.reject(peer.id, error)
            core.links.refuse(peer, str(error))
            return
        first = peer.hello is None
        peer.hello = hello
        if hello.yours is not None:
            try:
                self._own_proof(hello.yours)
            except RemoteProtocolError as error:  # the link itself is as good as any
                core.context.reject(peer.id, error)
        if first:
            core.context.note(Linked(peer.id))
            core.welcome(peer)

    def _own_proof(self, signed: SignedHeader) -> None:
        """A header under this node's own key: does it prove a later boot than this one?"""
        core = self._core
        header = core.context.read.head(signed).header
        if core.publisher.outdated_by(header):
            core.heads.check_own(signed, header)
            core.publisher.reincarnate(header)
            core.reincarnated()

    def _offer(self, peer: Peer, offer: Offer, frame: bytes | memoryview) -> None:
        self._pay(peer)
        self._core.rounds.account(self._core.reception.offer(peer, frame, offer))

    def _want(self, peer: Peer, want: Want) -> None:
        core = self._core
        payload = core.publisher.payload
        if payload is not None and core.publisher.serves(want.root):
            core.publisher.serve(peer, want, payload.length)
        elif (length := core.reception.kept_length(want.root)) is not None:
            core.publisher.serve(peer, want, length)
        else:
            core.publisher.gone(peer.id, want.root)

    def _chunk(self, peer: Peer, chunk: Chunk) -> None:
        try:
            self._core.reception.chunk(peer, chunk)
        except Unasked:
            if not peer.pay(self._core.context.now):
                self._core.reception.interrupted(peer.id)
                self._core.links.refuse(peer, "it sends chunks that nobody asked for")
            raise

    def _have(self, peer: Peer, have: Have) -> None:
        publisher = self._core.publisher
        if have.incarnation != publisher.incarnation or have.boot_id != publisher.boot_id:
            return  # about an earlier boot: it says nothing of what we publish now
        if not 1 <= have.version <= publisher.version:
            raise OutOfBounds(f"has version {have.version}, we are at {publisher.version}")
        if have.ok:
            peer.have_version = max(peer.have_version, have.version)
            self._core.rounds.observe(peer)
        else:
            peer.refused_version, peer.refused_why = have.version, printable(have.why)

    def _gone(self, peer: Peer, gone: Gone) -> None:
        self._core.reception.transfers.gone(peer.id, gone.root)

    def _ask(self, peer: Peer, ask: Ask) -> None:
        core = self._core
        self._pay(peer)
        if ask.member == core.context.me:
            self._spend(peer, core.publisher.offer_bytes / INLINE_BYTES)
            core.publisher.offer_to(peer.id)
        elif ask.member not in core.context.roster.members:
            raise OutOfBounds("asks for somebody who is not a member")
        else:
            self._spend(peer, core.reception.relayed_bytes(NodeId(ask.member)) / INLINE_BYTES)
            core.reception.relay(peer, NodeId(ask.member))

    def _heads(self, peer: Peer, message: Heads) -> None:
        core = self._core
        fresh: list[Head] = []
        for signed in core.heads.unknown(message.heads):
            try:
                self._pay(peer)
                head = core.context.read.head(signed)
                sender = NodeId(head.header.sender)
                if sender in core.heads.quarantined:
                    continue  # the proof is known; who passes its heads on may not know it yet
                if sender == core.context.me:
                    self._own_proof(signed)
                    continue
                before = core.heads.newest.get(sender)
                core.heads.accept(head)
            except Replayed:
                continue  # who passes on an old head may not know the new one yet
            except RemoteProtocolError as error:
                core.context.reject(peer.id, error)
                continue
            core.rounds.account(head)
            if before is None or head.order > before.order:
                fresh.append(head)
        core.forward(fresh, peer)

    def _ballots(self, peer: Peer, message: Ballots) -> None:
        core = self._core
        fresh = []
        for signed in message.ballots:
            try:
                self._pay(peer)
                if core.ballots.receive(signed):
                    fresh.append(signed)
            except RemoteProtocolError as error:  # the others in the frame may be good
                core.context.reject(peer.id, error)
        if fresh:
            core.links.broadcast(encode(Ballots(tuple(fresh))), but=peer.id)

    def _bye(self, peer: Peer, bye: Bye) -> None:
        peer.bye = f"it left: {printable(bye.why)}"


def printable(text: str) -> str:
    """A peer's words, fit for a terminal and for one line of a log."""
    return "".join(char if char.isprintable() else "?" for char in text)
