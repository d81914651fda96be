"""What every transport offers the runtime: links to members, and calls about them.

Which of two links of one pair stays is decided here, for all transports alike.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from crypto.identity import NodeId
from node.errors import LocalProtocolError
from node.protocol.frames import is_chunk
from node.types.messages import CREDIT_LINK_BYTES, FRAME_BYTES_MAX, KiB

# Twice the chunks a peer may have asked for: more is left over only if it stopped reading.
OUTBOX_BYTES_MAX: Final = 2 * CREDIT_LINK_BYTES
HANDSHAKE_S: Final = 10.0
# What is taken of one link. A message costs 20 to 50 us, so that a flood of them costs a tenth of a
# core, and 50 ms at once; a link at 1.3 GB/s brings 2,600 chunks and 650 Wants in a second.
FRAMES_PER_S: Final = 2048.0
FRAMES_BURST: Final = 1024.0
CHUNK_COSTS: Final = 0.25  # so that chunks may come at 4 GB/s; those unasked for end the link
PACED_BYTES: Final = 4 * KiB  # of a message that count as one frame: parsing takes longer

Gate = Callable[[NodeId], bool]


class LinkHandler(Protocol):
    """Whom a transport tells; all calls come in the loop's thread, none from within a method
    that the handler itself called.
    """

    def on_link(self, link: Link) -> None:
        """An authenticated link stands. Told once a link, before any frame of it."""

    def on_frame(self, link: Link, frame: memoryview) -> None:
        """One whole frame; the view is valid during the call only."""

    def on_down(self, link: Link, why: str) -> None:
        """Told once for every link that was told, whoever ended it."""

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        """No address of ``peer`` led to a link, and none stands."""


@dataclass
class Stats:
    """Bytes on the wire by peer, and what was refused or broken off, by reason."""

    sent: Counter[NodeId] = field(default_factory=Counter)
    received: Counter[NodeId] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # before a link stood
    violations: Counter[str] = field(default_factory=Counter)  # on a link, which was then closed


class Pace:
    """How fast the frames of one link are taken; what comes faster waits at the other end."""

    def __init__(self, now: float) -> None:
        self._tokens = FRAMES_BURST
        self._at = now

    def spend(self, frame: memoryview) -> None:
        """A frame was taken, whatever it was."""
        chunk = len(frame) > 1 and is_chunk(frame)
        self._tokens -= CHUNK_COSTS if chunk else 1.0 + len(frame) // PACED_BYTES

    def wait_s(self, now: float) -> float:
        """How long nothing more should be taken; 0 where all is well."""
        self._tokens = min(FRAMES_BURST, self._tokens + (now - self._at) * FRAMES_PER_S)
        self._at = now
        return max(0.0, -self._tokens / FRAMES_PER_S)


class Link(ABC):
    """One end of an authenticated, encrypted, ordered pipe of frames."""

    via = ""  # what it goes over, for people

    def __init__(self, owner: Transport, peer: NodeId, *, initiator: bool) -> None:
        self._owner = owner
        self.peer = peer
        self.initiator = initiator  # whether this end dialled
        self.closed = False
        self.up_at = asyncio.get_running_loop().time()

    @property
    @abstractmethod
    def outbox_bytes(self) -> int:
        """Bytes accepted by ``send`` that the network has not taken."""

    def send(self, frame: bytes | memoryview) -> None:
        """Queue one frame; it is copied before the call returns.

        A closed link drops it. A peer that lets the outbox grow past its bound loses the link.
        """
        self.send_chunk(b"", frame)

    def send_chunk(self, prefix: bytes, data: bytes | memoryview) -> None:
        """Queue one frame of two parts without joining them; ``data`` is free on return.

        Await ``drained`` between large ones. Raises LocalProtocolError above FRAME_BYTES_MAX.
        """
        data = memoryview(data).cast("B")  # lengths are bytes, whatever the items are
        size = len(prefix) + len(data)
        if not 0 < size <= FRAME_BYTES_MAX:
            raise LocalProtocolError(f"a frame of {size} bytes, allowed are 1 to {FRAME_BYTES_MAX}")
        if self.closed:
            return
        if self.outbox_bytes + size > self._owner.outbox_bytes_max:
            self._owner.stats.violations["outbox"] += 1
            self.close(f"it does not read: {self.outbox_bytes} bytes wait for it")
            return
        self._write(prefix, data)

    @abstractmethod
    async def drained(self) -> None:
        """Return when the outbox is short, or the link closed."""

    def close(self, why: str) -> None:
        """End the link after what was sent; ``on_down`` follows from the loop. Once is enough."""
        if not self.closed:
            self._owner.retire(self, why)
            self._shut()

    def end(self, why: str) -> None:
        """The pipe broke: nothing more can be sent (for transports)."""
        if not self.closed:
            self._owner.retire(self, why)

    @abstractmethod
    def _write(self, prefix: bytes, data: bytes | memoryview) -> None: ...

    @abstractmethod
    def _shut(self) -> None: ...


class Transport(ABC):
    """Dials and accepts; owns every link and task it started."""

    def __init__(
        self,
        me: NodeId,
        *,
        gate: Gate | None = None,
        race_s: float = HANDSHAKE_S,
        outbox_bytes_max: int = OUTBOX_BYTES_MAX,
    ) -> None:
        self.me = me
        self.gate: Gate = gate if gate is not None else lambda _: True
        self.outbox_bytes_max = outbox_bytes_max
        self.links: dict[NodeId, Link] = {}
        self.stats = Stats()
        # told (up, why) whenever a broker comes or goes, where there is one
        self.on_broker: Callable[[bool, str], None] = lambda up, why: None
        self._race_s = race_s
        self._handler: LinkHandler | None = None
        self._downs: list[tuple[Link, str]] = []

    def attach(self, handler: LinkHandler) -> None:
        """Name the one who is told; before ``listen`` and ``dial``."""
        self._handler = handler

    @property
    def handler(self) -> LinkHandler:
        if self._handler is None:
            raise LocalProtocolError("a transport was used before anybody was attached")
        return self._handler

    @abstractmethod
    async def listen(self) -> None:
        """Accept links from now on. Raises ConfigError where the address cannot be used."""

    @abstractmethod
    def dial(self, peer: NodeId) -> None:
        """Try to reach ``peer``: ``on_link`` or ``on_dial_failed`` follows.

        Does nothing while a link or a dial to it stands.
        """

    @abstractmethod
    async def close(self) -> None:
        """End everything; when it returns nothing of this transport runs any more."""

    def admit(self, link: Link) -> bool:
        """Let a new link in, or refuse it as the duplicate that must go."""
        self._tell_downs()
        old = self.links.get(link.peer)
        if old is not None:
            if not self._replaces(link, old):
                link.closed = True
                return False
            old.close("replaced by a newer link to the same member")
            self._tell_downs()
        self.links[link.peer] = link
        self.handler.on_link(link)
        return True

    def retire(self, link: Link, why: str) -> None:
        """Take a link that was admitted out; its ``on_down`` comes from the loop."""
        link.closed = True
        if self.links.get(link.peer) is link:
            del self.links[link.peer]
            self._downs.append((link, why))
            asyncio.get_running_loop().call_soon(self._tell_downs)

    def _replaces(self, link: Link, old: Link) -> bool:
        """Both ends must answer alike, or they would keep one half each.

        Two that dial at once meet within one handshake's time: the one whose initiator has the
        lower id stays. Later, or from the same initiator, the other end dialled since it lost
        the old link (it does not dial while it has one).
        """
        old_enough = asyncio.get_running_loop().time() - old.up_at > self._race_s
        if old_enough or link.initiator == old.initiator:
            return True
        initiator = self.me if link.initiator else link.peer
        return initiator == min(self.me, link.peer)

    def _tell_downs(self) -> None:
        while self._downs:
            link, why = self._downs.pop(0)
            self.handler.on_down(link, why)
