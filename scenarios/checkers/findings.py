"""What checkers write down: one Finding an invariant, with its first violation."""

from __future__ import annotations

from scenarios.record import Check


class Caught(Exception):
    """A finding that a run was to end at has failed."""


class Finding:
    """One invariant: how often it was looked at, and the first time it did not hold.

    ``on`` False: it looks away. ``ends`` True: its first violation ends the run with ``Caught``.
    Ask ``held`` first; only where it says False the words are made and given to ``fail``.
    """

    __slots__ = ("always", "broken", "ends", "first", "name", "on", "seen")

    def __init__(self, name: str, *, always: bool = True) -> None:
        self.name, self.always = name, always
        self.on, self.ends = True, False
        self.seen = 0
        self.broken = 0
        self.first = ""

    def held(self, holds: bool) -> bool:
        """Count one look."""
        self.seen += 1
        return holds or not self.on

    def fail(self, what: str, at: float) -> None:
        """It did not hold at ``at`` (virtual seconds)."""
        self.broken += 1
        self.first = self.first or f"at {at:.6f} s: {what}"
        if self.ends:
            raise Caught(self.name)

    def check(self) -> Check:
        value = f"{self.seen} looked at" if not self.broken else self.first
        return Check(self.name, not self.broken, value, None)


# Every invariant: its key in code and tests, how people read it, and whether a run shows it even
# where there was nothing to look at.
INVARIANTS: dict[str, tuple[str, bool]] = {
    "unique": ("no version twice with different content", True),
    "grow": ("versions only grow", True),
    "genuine": ("only what its owner published is applied", True),
    "signed": ("only what its owner signed is taken", True),
    "foreign": ("nothing of another consortium, epoch or training is applied", True),
    "labels": ("no round beyond the training's end is applied", True),
    "shape": ("what is applied has the schema's length", True),
    "finite": ("only finite models are applied", True),
    "bound": ("no model beyond the norm bound is applied", True),
    "replayed": ("nothing older than before is applied", True),
    "boots": ("no member is heard under two boots of one incarnation", True),
    "asked": ("only neighbours' models are applied, but to start again", True),
    "in-hand": ("the replica of the round in hand is not overwritten", True),
    "sources": ("only applied models of neighbours are mixed", True),
    "weights": ("weights are positive and sum to at most 1", True),
    "edges": ("an edge is mixed when both ends hold each other's version", True),
    "deadline": ("nobody waits longer than the deadline", True),
    "jumps": ("at most one jump in three rounds", False),
    "ahead": ("nobody jumps beyond where an honest node is", False),
    "starts": ("nobody starts again from fewer than three models", False),
    "alone": ("no training begins alone", True),
    "heard": ("who publishes is heard by a neighbour", True),
    "accused": ("no honest node is accused", True),
    "proved": ("who is shown a contradiction accuses its signer", False),
    "banned": ("nothing of who is in quarantine is mixed", False),
    "rate": ("no link's signed messages are taken beyond its rate", False),
    "credit": ("no more is asked for than the credit", False),
    "incarnations": ("no incarnation is used before it is on the disk", False),
    "versions": ("no version is offered before it is on the disk", False),
    "receipts": ("nothing is acknowledged before its receipt is on the disk", False),
    "sides": ("each side of a partition goes on training", False),
    "meet": ("after a heal the sides mix with each other", False),
}


def findings() -> dict[str, Finding]:
    return {key: Finding(name, always=always) for key, (name, always) in INVARIANTS.items()}
