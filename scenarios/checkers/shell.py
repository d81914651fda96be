"""Checks on disks and links: what leaves only when it is durable, and what a link may bring.

The wire's own numbers are written down once more here, from docs/protocol.md: a checker that asked
the node for its bounds would believe whatever they became.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from crypto.identity import NodeId
from crypto.purposes import HEADER
from node.errors import RemoteProtocolError
from node.protocol.phases import Phase
from node.types.events import CoreState, Effect, Equivocation, Event, Frame, Note, Rejected
from node.types.messages import Ask, Chunk, Have, Header, Heads, Hello, Message, Offer, SignedHeader
from node.types.roster import Pins, Roster
from scenarios.memory import Memory

if TYPE_CHECKING:
    from node.protocol.core import Core
    from scenarios.checkers.watch import Checkers

RATE_BURST: Final = 512.0
RATE_PER_S: Final = 256.0
LINK_CHUNKS: Final = 16  # 8 MiB of 512 KiB
NODE_CHUNKS: Final = 128
# Fewer than a node itself remembers: what it may have forgotten is not held against it.
_SHOWN_MAX: Final = 16
# A frame's second byte 0 says message; its eighth is the message's kind (docs/protocol.md).
_MESSAGE: Final = 0
_SAYING: Final = (0, 1, 4)  # Hello, Offer, Have
_WANT: Final = 2


class Disks:
    """Nothing leaves before what it rests on is durable: it would be said twice after a crash."""

    def __init__(self, checkers: Checkers, memory: Memory) -> None:
        self._all, self._found, self._memory = checkers, checkers.findings, memory

    def sent(self, me: NodeId, disk: CoreState, peer: NodeId, frame: bytes, at: float) -> None:
        if frame[1] != _MESSAGE or frame[7] not in _SAYING:
            return
        match message := self._memory.message(frame):
            case Hello():
                self._look("incarnations", message.incarnation <= disk.incarnation, me, at)
            case Offer():
                header = self._memory.head(message.signed).header
                if header.sender == me:
                    order = header.incarnation, header.version
                    durable = order[0] <= disk.incarnation and order[1] <= disk.version
                    self._look("versions", durable, me, at)
            case Have() if message.ok:
                self._look("receipts", self._received(disk, peer, message), me, at)

    def _look(self, key: str, holds: bool, me: NodeId, at: float) -> None:
        if not self._found[key].held(holds):
            self._found[key].fail(f"{self._all.name(me)} says what its disk does not hold", at)

    def _received(self, disk: CoreState, peer: NodeId, have: Have) -> bool:
        floor = disk.floors.get(peer)
        if floor is None:
            return False
        header = self._memory.head(floor).header
        return (header.incarnation, header.version) >= (have.incarnation, have.version)


class Lines:
    """What comes over a link, and what is asked for."""

    def __init__(
        self, checkers: Checkers, roster: Roster, pins: Pins | None, memory: Memory
    ) -> None:
        self._all, self._found = checkers, checkers.findings
        self._roster, self._pins, self._memory = roster, pins, memory
        self._tokens: dict[tuple[NodeId, NodeId], tuple[float, float]] = {}  # (tokens, at)
        # per (node, attacker): the models it was shown, by (incarnation, boot, version)
        self._shown: dict[tuple[NodeId, NodeId], OrderedDict[tuple[int, bytes, int], bytes]] = {}

    def boot(self, node: NodeId, state: CoreState) -> None:
        for key in [key for key in self._shown if key[0] == node]:
            del self._shown[key]
        for pair in [pair for pair in self._tokens if pair[0] == node]:
            del self._tokens[pair]

    def sent(self, core: Core, peer: NodeId, frame: bytes, at: float) -> None:
        """Of what a Want asks for: how much is on its way by now?"""
        if frame[1] != _MESSAGE or frame[7] != _WANT:
            return
        every = core.reception.transfers.by_member.values()
        node = sum(len(transfer.waiting) for transfer in every)
        link = sum(len(transfer.waiting) for transfer in every if transfer.peer == peer)
        if not self._found["credit"].held(link <= LINK_CHUNKS and node <= NODE_CHUNKS):
            said = f"{self._all.name(core.context.me)} waits for {link} chunks of one link"
            self._found["credit"].fail(said, at)

    def watch(self, core: Core) -> None:
        """Stand between the shell and ``core``."""
        handle, me = core.handle, core.context.me

        def watched(event: Event, *, now: float) -> tuple[Effect, ...]:
            if not isinstance(event, Frame):
                return handle(event, now=now)
            peer = core.links.peers.get(event.peer)
            attends = peer is not None and peer.linked and core.phase not in _DEAF
            effects = handle(event, now=now)
            if attends:
                self._framed(me, event, effects, now)
            return effects

        core.handle = watched  # type: ignore[method-assign]

    def _framed(self, me: NodeId, event: Frame, effects: tuple[Effect, ...], at: float) -> None:
        """One frame was taken: within the rate, and with every contradiction in it noticed."""
        notes = [effect.note for effect in effects if isinstance(effect, Note)]
        if any(isinstance(note, Rejected) for note in notes):
            return
        try:
            message = self._memory.message(event.data)
        except RemoteProtocolError:
            return
        if self._all.attacks(event.peer) and isinstance(message, Hello | Offer | Ask):
            self._pay(me, event.peer, at)
        accused = {note.member for note in notes if isinstance(note, Equivocation)}
        for signed in _headers(message):
            self._show(me, signed, accused, at)

    def _pay(self, me: NodeId, peer: NodeId, at: float) -> None:
        tokens, since = self._tokens.get((me, peer), (RATE_BURST, at))
        tokens = min(RATE_BURST, tokens + (at - since) * RATE_PER_S) - 1.0
        self._tokens[me, peer] = tokens, at
        if not self._found["rate"].held(tokens >= -1.0):
            self._found["rate"].fail(
                f"{self._all.name(me)} takes all that {self._all.name(peer)} sends", at
            )

    def _show(self, me: NodeId, signed: SignedHeader, accused: set[NodeId], at: float) -> None:
        try:
            header = self._memory.head(signed).header
        except RemoteProtocolError:
            return
        sender = NodeId(header.sender)
        if not self._all.attacks(sender) or not self._valid(header, signed):
            return
        shown = self._shown.setdefault((me, sender), OrderedDict())
        key = (header.incarnation, header.boot_id, header.version)
        before = shown.setdefault(key, header.model)
        while len(shown) > _SHOWN_MAX:
            shown.popitem(last=False)
        if before == header.model:
            return
        knows = sender in accused or sender in self._all.accused(me)
        if not self._found["proved"].held(knows):
            name = self._all.name(sender)
            said = f"two models under version {header.version} and accuses nobody"
            self._found["proved"].fail(f"{self._all.name(me)} was shown {name}'s {said}", at)

    def _valid(self, header: Header, signed: SignedHeader) -> bool:
        member = self._roster.members[NodeId(header.sender)]
        here = (
            header.consortium == self._roster.consortium
            and header.epoch == self._roster.epoch
            and self._pins is not None
            and header.training == self._pins.training
            and header.key_version == member.key_version
        )
        return here and self._memory.verify(
            member.node_key, HEADER, signed.header, signed.signature
        )


_DEAF: Final = (Phase.LEAVING, Phase.STOPPED)


def _headers(message: Message | Chunk) -> tuple[SignedHeader, ...]:
    match message:
        case Offer():
            return (message.signed,)
        case Heads():
            return message.heads
    return ()
