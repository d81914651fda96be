"""Before the start: every member's signed presence is passed on, no faster than links take it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from crypto.identity import NodeId
from node.protocol.context import Context
from node.protocol.frames import encode
from node.protocol.links import Links
from node.protocol.peers import RATE_BURST, RATE_PER_S
from node.protocol.reading import Head
from node.types.messages import HEADS_MAX, Heads, SignedHeader

# A neighbour refuses signed messages above its rate, and a head refused is not sent again. Half of
# what it takes leaves room for hellos and offers: 10,000 members are told of within 80 s.
BURST: Final = RATE_BURST / 2
PER_S: Final = RATE_PER_S / 2


@dataclass
class _Queue:
    """What one neighbour is still to be told, newest head by member, in order of arrival."""

    heads: dict[NodeId, SignedHeader] = field(default_factory=dict)
    tokens: float = BURST
    tokens_at: float = 0.0

    def refill(self, now: float) -> None:
        self.tokens = min(BURST, self.tokens + (now - self.tokens_at) * PER_S)
        self.tokens_at = now


class PresenceFlood:
    """Passes heads on. Whoever is left out here would never be counted as present."""

    def __init__(self, context: Context, links: Links) -> None:
        self._context = context
        self._links = links
        self._queues: dict[NodeId, _Queue] = {}

    def pass_on(self, heads: Iterable[Head], *, source: NodeId) -> None:
        """To every linked neighbour but ``source``, which needs none of them any more."""
        signed = {NodeId(head.header.sender): head.signed for head in heads}
        known = self._queues.get(source)
        for peer in self._links.linked():
            if peer.id != source:
                self._queues.setdefault(peer.id, _Queue()).heads.update(signed)
            elif known is not None:
                for member in signed:
                    known.heads.pop(member, None)
        self.send()

    def introduce(self, peer: NodeId, heads: Iterable[Head]) -> None:
        """Tell all of ``heads`` to a neighbour whose link is new."""
        signed = {NodeId(head.header.sender): head.signed for head in heads}
        signed.pop(peer, None)
        self._queues.setdefault(peer, _Queue()).heads = signed
        self.send()

    def send(self) -> None:
        """As much as may be sent now; what came in one message leaves in one."""
        now = self._context.now
        for peer in self._links.linked():
            queue = self._queues.get(peer.id)
            if queue is None or not queue.heads:
                continue
            queue.refill(now)
            while queue.heads and queue.tokens >= self._batch(queue):
                some = list(islice(queue.heads, HEADS_MAX))
                frame = encode(Heads(tuple(queue.heads.pop(member) for member in some)))
                queue.tokens -= len(some)
                self._links.send(peer, frame)

    def wake_at(self) -> float | None:
        """When the next neighbour may be told more."""
        times = [
            queue.tokens_at + max(0.0, self._batch(queue) - queue.tokens) / PER_S
            for member, queue in self._queues.items()
            if queue.heads and self._links.peers[member].linked
        ]
        return min(times, default=None)

    def end(self) -> None:
        """The training begins: who is still waiting joins it without being told more."""
        self._queues.clear()

    def _batch(self, queue: _Queue) -> int:
        return min(len(queue.heads), HEADS_MAX)
