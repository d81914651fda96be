"""One topic of publish-once under one key: who reads there, and what was published when.

It knows who is how far, and publishes nothing itself: mqtt_sending.py does.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from crypto.identity import NodeId
from node.transport.mqtt_bulk import TOPIC_BYTES, Cipher
from node.transport.mqtt_pipe import KEY_BYTES
from node.types.messages import CHUNK_BYTES

HOLD_S: Final = 1.0  # that one slow member may hold the others up
LOG_MAX: Final = 16_384  # publications that can be asked for by sequence: 8 MiB in parts of 512 B


@dataclass
class Member:
    joined: bool = False
    direct: bool = False  # it cannot subscribe: chunks go inside the link
    allowance: int = 0  # chunks that may come to it unasked
    asked: set[int] = field(default_factory=set)
    marks: dict[int, int] = field(default_factory=dict)  # publications at its last ask, by chunk
    early: int = 0  # published and not asked by it yet


@dataclass
class Pending:
    """A publication that waits; ``parts``: None for all."""

    data: bytes
    peers: set[NodeId]
    parts: set[int] | None
    repair: bool = False  # the transport's own doing: whoever asks again all the same is served


class Group:
    """One topic and key, and the members that read there."""

    def __init__(self, root: bytes, chunks: int, part_bytes: int, now: float) -> None:
        self.root, self.chunks, self.part_bytes, self.made_at = root, chunks, part_bytes, now
        self.topic = secrets.token_bytes(TOPIC_BYTES)
        self.cipher = Cipher(secrets.token_bytes(KEY_BYTES))
        self.members: dict[NodeId, Member] = {}
        self.counts: Counter[int] = Counter()  # publications, by chunk
        self.digests: dict[int, bytes] = {}  # of what was encrypted under this key, by chunk
        self.published_at: dict[int, float] = {}
        self.sequence = 0
        self.log: dict[int, tuple[int, int]] = {}  # sequence -> chunk, part
        self.newest: dict[tuple[int, int], int] = {}
        self.held: dict[int, Pending] = {}  # in order
        self.blocked_since: float | None = None
        self.lost: dict[int, set[int]] = {}  # chunk -> parts to repair, asked of the shell
        self.to_ask: deque[tuple[NodeId, int]] = deque()  # repairs not asked of the shell yet

    @property
    def parts(self) -> int:
        """Of a whole chunk; the last one may have fewer."""
        return -(-CHUNK_BYTES // self.part_bytes)

    def behind(self, index: int) -> set[NodeId]:
        """Who has as much unasked as it can keep, and has not asked for this chunk either."""
        return {
            peer
            for peer, member in self.members.items()
            if member.joined and member.early >= member.allowance and index not in member.asked
        }

    def held_long(self, now: float) -> bool:
        """Whether somebody has held the others up for longer than one may; asked while one does."""
        if self.blocked_since is None:
            self.blocked_since = now
        return now >= self.blocked_since + HOLD_S

    def record(self, index: int, part: int) -> None:
        """The next sequence number is this part's."""
        self.log[self.sequence] = (index, part)
        self.newest[index, part] = self.sequence
        old = self.log.pop(self.sequence - LOG_MAX, None)
        if old is not None and self.newest[old] == self.sequence - LOG_MAX:
            del self.newest[old]
        self.sequence += 1
