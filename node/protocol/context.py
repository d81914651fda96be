"""What the parts of the core share: who we are, the rules, and the list of effects being made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from crypto.identity import NodeId
from node.errors import RemoteProtocolError
from node.protocol.reading import Reader
from node.types.events import Effect, Note, Notice, Persist, Record, Rejected
from node.types.roster import Member, Pins, Policy, Roster

DETAIL_MAX: Final = 200  # characters of a reason that reach log and journal


class Rng(Protocol):
    """The seeded generator handed in: jitter and samples, never secrets."""

    def random(self) -> float: ...

    def sample(self, population: list[NodeId], k: int) -> list[NodeId]: ...


Sign = Callable[[str, bytes], bytes]  # (purpose, message) -> 64-byte signature
Verify = Callable[[bytes, str, bytes, bytes], bool]  # (public key, purpose, message, signature)
Entropy = Callable[[int], bytes]


class Context:
    """Handed to every part of one core. Holds no protocol state but counters."""

    def __init__(
        self,
        *,
        me: NodeId,
        roster: Roster,
        pins: Pins,
        policy: Policy,
        sign: Sign,
        verify: Verify,
        entropy: Entropy,
        rng: Rng,
        reader: Reader,
    ) -> None:
        self.me = me
        self.roster = roster
        self.pins = pins
        self.policy = policy
        self.sign = sign
        self.verify = verify
        self.entropy = entropy
        self.rng = rng
        self.read = reader
        self.now = 0.0
        self.effects: list[Effect] = []
        self.rejections: Counter[str] = Counter()
        self._last_persist = 0

    @property
    def self_member(self) -> Member:
        return self.roster.members[self.me]

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def note(self, notice: Notice) -> None:
        self.effects.append(Note(notice))

    def persist(self, record: Record) -> int:
        """Ask for ``record`` to be made durable; the id that Persisted will answer with."""
        self._last_persist += 1
        self.effects.append(Persist(self._last_persist, record))
        return self._last_persist

    def reject(self, peer: NodeId, error: RemoteProtocolError) -> None:
        """Count bad input and go on."""
        self.rejections[error.reason] += 1
        self.note(Rejected(peer, error.reason, str(error)[:DETAIL_MAX]))
