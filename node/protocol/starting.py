"""When a training may begin: enough members are present, and never alone."""

from __future__ import annotations

from typing import Final

from crypto.identity import NodeId
from node.protocol.context import Context
from node.protocol.heads import HeadBook
from node.protocol.links import Links
from node.types.events import Waiting

AT_LEAST: Final = 2  # self and one other


class StartGate:
    """Counts who is present: linked neighbours, and members whose signed presence arrived."""

    def __init__(self, context: Context, links: Links, heads: HeadBook, *, resumed: bool) -> None:
        self._context = context
        self._links = links
        self._heads = heads
        self._resumed = resumed
        self._lacking: tuple[NodeId, ...] | None = None
        self._join_by: float | None = None  # a training that runs is joined without the rest

    def deadline(self, wall_ms: int) -> float | None:
        """When waiting ends, if it does: at ``at_latest``; after a resume at the longest wait."""
        policy = self._context.policy
        if self._resumed:
            return self._context.now + policy.deadline_max_s
        if policy.start_by_ms is None:
            return None
        return self._context.now + max(0, policy.start_by_ms - wall_ms) / 1000

    def open(self, *, expired: bool) -> bool:
        """Whether to begin now; otherwise says once whom it still lacks."""
        peers = self._links.peers
        linked = [peer.id for peer in self._links.linked()]
        if self._resumed:
            return expired or len(linked) == len(peers)
        if not peers or self._may_join(len(linked) == len(peers)):
            return True
        return self._enough(linked, expired=expired)

    def wake_at(self) -> float | None:
        """When a running training is joined with the links that stand."""
        waiting = self._join_by is not None and self._context.now < self._join_by
        return self._join_by if waiting else None

    def _may_join(self, complete: bool) -> bool:
        """Into a running training at once where all links stand, else after the longest wait."""
        if not self._running():
            return False
        now = self._context.now
        if self._join_by is None:
            self._join_by = now + self._context.policy.deadline_max_s
        return complete or now >= self._join_by

    def _running(self) -> bool:
        """Whether a linked neighbour says that the training has begun already."""
        return any(
            max(self._heads.round_of(peer.id), peer.hello.round if peer.hello else 0) >= 1
            for peer in self._links.linked()
        )

    def _enough(self, linked: list[NodeId], *, expired: bool) -> bool:
        context, peers = self._context, self._links.peers
        policy = context.policy
        present = set(linked) | {m for m in self._heads.newest if m not in peers}
        needed = policy.start_members or 1 + len(peers)
        wanted = context.roster.members if policy.start_members else peers
        lacking = tuple(m for m in sorted(wanted) if m not in present and m != context.me)
        if lacking != self._lacking:
            self._lacking = lacking
            context.note(Waiting(1 + len(present), needed, lacking))
        if not linked:
            return False
        if expired and 1 + len(present) >= (policy.start_at_least or AT_LEAST):
            return True
        if policy.start_members is None:
            return not lacking
        return 1 + len(present) >= needed
