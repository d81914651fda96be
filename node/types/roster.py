"""Who takes part and under which policy, as the core sees it: compiled from charter or scenario."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from crypto.identity import NodeId
from node.types.settings import Rule, Wait


class Member(Struct, frozen=True, kw_only=True):
    """One member of the roster, with what its neighbours need to know of it."""

    id: NodeId
    name: str
    node_key: bytes  # 32 bytes, Ed25519: verifies headers
    samples: int  # n, at least 1; fixed per incarnation, bounded by the charter
    neighbours: tuple[NodeId, ...]  # sorted
    certificate: bytes = b""  # DER, pinned by the channel
    addresses: tuple[str, ...] = ()
    key_version: int = 0


class Roster(Struct, frozen=True, kw_only=True):
    """The members of one epoch. ``members`` iterates in sorted NodeId order."""

    consortium: bytes  # 32 bytes: the consortium id
    epoch: int
    members: Mapping[NodeId, Member]

    def name(self, node: NodeId) -> str:
        """The member's name; for a stranger the first bytes of its id."""
        member = self.members.get(node)
        return member.name if member else bytes(node[:4]).hex()


class Pins(Struct, frozen=True, kw_only=True):
    """Digests (32 bytes each) that both ends of a link must share before it counts."""

    training: bytes
    schema: bytes
    initial: bytes
    code: bytes
    payload_bytes: int  # exact length of a full payload: 4 bytes a shared parameter


class Policy(Struct, frozen=True, kw_only=True):
    """The part of the learning policy that the core obeys; times in seconds."""

    rounds: int  # with local training
    final_mixing: int  # train-free rounds after them
    final_omega: float = 1.0  # their over-relaxation, from 1 (none) to below 2
    rule: Rule = "mean"
    f: int = 0
    wait: Wait = "adaptive"
    deadline_min_s: float = 0.5
    deadline_max_s: float = 30.0
    deadline_mads: float = 6.0
    max_staleness: int = 4
    linger_s: float = 10.0
    checkpoint_every: int = 1
    candidates: tuple[int, ...] = ()  # rounds whose models are kept for keep = "agreed"
    start_members: int | None = None  # this many members (self included) must be present
    start_at_least: int | None = None  # enough once start_by_ms is past
    start_by_ms: int | None = None  # wall clock, ms since 1970

    @property
    def last_round(self) -> int:
        """The label of the training's last round."""
        return self.rounds + self.final_mixing
