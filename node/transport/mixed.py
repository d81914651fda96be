"""Several transports as one: a member is reached the best way that both ends have.

Direct sockets come first, a broker second, at both ends alike, so that they agree which of two
links stays. A dial falls back from one to the next; while only a worse link stands, the better way
is tried again from time to time, and taken when it works.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from crypto.identity import NodeId
from node.transport.links import Link, Transport

BETTER_S: Final = 20.0  # between two tries of a better way, and jitter


class _Inner:
    """One of the transports, as its handler sees it: rank 0 is the best."""

    def __init__(self, owner: MixedTransport, rank: int, transport: Transport) -> None:
        self.owner, self.rank, self.transport = owner, rank, transport

    def on_link(self, link: Link) -> None:
        self.owner.linked(self, link)

    def on_frame(self, link: Link, frame: memoryview) -> None:
        self.owner.heard(link, frame)

    def on_down(self, link: Link, why: str) -> None:
        self.owner.lost(link, why)

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self.owner.failed(self, peer, why)


class MixedTransport(Transport):
    """``transports``: the best first. ``reach``: whether one of them knows a way to a member."""

    def __init__(
        self,
        me: NodeId,
        transports: Sequence[Transport],
        *,
        reach: Callable[[int, NodeId], bool],
        better_s: float = BETTER_S,
    ) -> None:
        super().__init__(me)
        self._inner = [_Inner(self, rank, one) for rank, one in enumerate(transports)]
        self._reach = reach
        self._better_s = better_s
        self._ranks: dict[Link, int] = {}
        self._dials: dict[NodeId, tuple[int, list[str]]] = {}  # rank being tried, why not so far
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        for inner in self._inner:
            inner.transport.stats = self.stats  # one count for all
            inner.transport.attach(inner)

    async def listen(self) -> None:
        for inner in self._inner:
            inner.transport.on_broker = self.on_broker
            await inner.transport.listen()
        self._look_later()

    def dial(self, peer: NodeId) -> None:
        if self._closing or peer in self.links or peer in self._dials:
            return
        self._dials[peer] = (-1, [])
        asyncio.get_running_loop().call_soon(self._try_next, peer)

    async def close(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for inner in self._inner:
            await inner.transport.close()

    # ── what the transports tell ────────────────────────────────────────────────────────────

    def linked(self, inner: _Inner, link: Link) -> None:
        """The better of two stays; between equals each transport has decided already."""
        self._dials.pop(link.peer, None)
        old = self.links.get(link.peer)
        if old is not None and self._ranks[old] < inner.rank:
            link.close("there is a better way to the same member")
            return
        self._ranks[link] = inner.rank
        self.links[link.peer] = link
        if old is not None:
            del self._ranks[old]
            old.close("a better way was found")
            self.handler.on_down(old, "a better way was found")
        self.handler.on_link(link)

    def heard(self, link: Link, frame: memoryview) -> None:
        if self.links.get(link.peer) is link:
            self.handler.on_frame(link, frame)

    def lost(self, link: Link, why: str) -> None:
        if self.links.get(link.peer) is link:
            del self.links[link.peer]
            del self._ranks[link]
            self.handler.on_down(link, why)

    def failed(self, inner: _Inner, peer: NodeId, why: str) -> None:
        dial = self._dials.get(peer)
        if dial is not None and dial[0] == inner.rank:  # else a try of a better way: as before
            dial[1].append(why)
            self._try_next(peer)

    # ── own doing ───────────────────────────────────────────────────────────────────────────

    def _try_next(self, peer: NodeId) -> None:
        dial = self._dials.get(peer)
        if dial is None or self._closing:
            return
        rank, whys = dial
        for inner in self._inner[rank + 1 :]:
            if self._reach(inner.rank, peer):
                self._dials[peer] = (inner.rank, whys)
                inner.transport.dial(peer)
                return
        del self._dials[peer]
        self.handler.on_dial_failed(peer, "; ".join(whys) or "it has no address that we can use")

    def _look_later(self) -> None:
        delay = self._better_s * random.uniform(0.75, 1.25)
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        """Try the better ways to those that are linked by a worse one."""
        for peer, link in sorted(self.links.items()):
            for inner in self._inner[: self._ranks[link]]:
                if self._reach(inner.rank, peer):
                    inner.transport.dial(peer)
        self._look_later()
