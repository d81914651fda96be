"""When a training may begin: enough members are present, and never alone."""

from __future__ import annotations

from itertools import islice
from typing import Final

from crypto.identity import NodeId
from node.protocol.context import Context
from node.protocol.heads import HeadBook
from node.protocol.links import Links
from node.types.events import Waiting

AT_LEAST: Final = 2  # self and one other
ATTESTING: Final = 2  # members whose signed labels show that a training runs
LACKING_MAX: Final = 64  # members named as lacking
NOTE_EVERY_S: Final = 1.0


class StartGate:
    """Counts who is present: linked neighbours, and members whose signed presence arrived."""

    def __init__(self, context: Context, links: Links, heads: HeadBook, *, resumed: bool) -> None:
        self._context = context
        self._links = links
        self._heads = heads
        self._resumed = resumed
        # at the last note: how many of those that are needed were present, who was linked, when
        self._told: tuple[int, list[NodeId], float] = (0, [], 0.0)
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
        if not peers or (linked and self._may_join(len(linked) == len(peers))):
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
        """Whether the training has begun already, as other members have signed.

        One alone is believed where all that must be present have been heard of: it runs on after
        a neighbour died in the moment of the start. Else one liar could begin a training before
        its members are there.
        """
        present = 1 + len(self._heads.newest)
        needed = 1 if present >= (self._context.policy.start_members or 0) else ATTESTING
        quarantined = self._heads.quarantined
        begun = (member for member in self._heads.begun if member not in quarantined)
        return sum(1 for _ in islice(begun, needed)) == needed

    def _enough(self, linked: list[NodeId], *, expired: bool) -> bool:
        peers, heard = self._links.peers, self._heads.newest
        policy = self._context.policy
        further = len(heard) - sum(peer in heard for peer in peers)
        needed = policy.start_members or 1 + len(peers)
        self._tell(1 + len(linked) + further, needed, linked)
        # a neighbour counts once its signed presence is here: that can be shown to others
        present = 1 + sum(peer in heard for peer in linked) + further
        if not linked:
            return False
        if expired and present >= (policy.start_at_least or AT_LEAST):
            return True
        if policy.start_members is None:
            return len(linked) == len(peers)
        return present >= needed

    def _tell(self, present: int, needed: int, linked: list[NodeId]) -> None:
        """Say whom this node lacks, where that has changed: of thousands the first few.

        A link is news at once; of who is heard of, a thousand in a second, once a second.
        """
        context, peers, heard = self._context, self._links.peers, self._heads.newest
        all_count = context.policy.start_members is not None
        count, before, at = self._told
        news = all_count and present != count and context.now >= at + NOTE_EVERY_S
        if count and linked == before and not news:
            return
        self._told = (present, linked, context.now)
        here = {context.me, *linked}
        wanted = context.roster.members if all_count else peers  # both in sorted order
        lacking = (m for m in wanted if m not in here and (m in peers or m not in heard))
        named = tuple(islice(lacking, LACKING_MAX))
        context.note(Waiting(present, needed, named, more=next(lacking, None) is not None))
