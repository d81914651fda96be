"""One neighbour as this node sees it: its link, its replica, what it holds of ours.

Dialling, keeping a quiet link alive and giving up on a silent one are decided here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from crypto.identity import NodeId
from node.protocol.reading import Head
from node.types.messages import Hello

PING_S: Final = 5.0
SILENT_S: Final = 3 * PING_S  # three pings in a row were not heard
DIAL_FIRST_S: Final = 0.2
DIAL_SOON_S: Final = 0.5  # a neighbour just lost is worth two dials a second: rounds go on
DIAL_SOON_TRIES: Final = 120  # a minute
DIAL_MAX_S: Final = 10.0
# the higher id lets the lower one dial first; it dials itself where the other cannot reach it
DIAL_SECOND_S: Final = 1.0
# Offers, heads and hellos of one link: 256 a second cost at most 2 % of a core in signatures
RATE_BURST: Final = 512.0
RATE_PER_S: Final = 256.0


@dataclass
class Replica:
    """The neighbour's public model as applied here: its header, and the frame that offered it."""

    head: Head
    offer: bytes  # the whole Offer frame: relayed as it is to whoever asks
    arrived: float
    receipt: int  # the Persist of its Receipt: no Have before that


@dataclass
class Peer:
    """State kept per neighbour for the life of the process."""

    id: NodeId
    name: str
    up: bool = False
    hello: Hello | None = None
    heard_at: float = 0.0
    sent_at: float = 0.0
    dialling: bool = False
    dialled_at: float = 0.0
    dial_at: float | None = None
    dial_tries: int = 0
    down_why: str = "never linked"
    bye: str = ""  # why it left this link, in its own words
    replica: Replica | None = None
    floor: Head | None = None  # newest header applied, also by an earlier process
    mixed_round: int = 0  # highest round label of this peer that was mixed already
    timed_round: int = 0  # highest one whose late arrival was noted
    have_version: int = 0  # highest of our versions (under our boot) that it applied
    used_round: int = 0  # the last round in which it says that it mixed our version …
    used_boot: int = 0  # … under this incarnation: of what a lost disk forgot it holds nothing
    left_out: range = range(0)  # the last rounds in a row that it says it mixed without ours
    refused_version: int = 0
    refused_why: str = ""
    bad_round: int = 0  # the newest round whose version of this peer was refused here
    bad_why: str = ""
    counted_rounds: list[int] = field(default_factory=list)  # of late, where we counted the edge
    tokens: float = RATE_BURST
    tokens_at: float = 0.0
    served: Counter[bytes] = field(default_factory=Counter)  # chunks of each payload sent to it …
    served_version: int = 0  # … since this version of ours
    missed_count: int = 0
    missed_first: int = 0
    missed_last: int = 0
    missed_why: str = ""

    @property
    def linked(self) -> bool:
        """Authenticated, and both agree on consortium, training and model."""
        return self.up and self.hello is not None

    def link_up(self, now: float) -> None:
        self.up, self.hello, self.bye = True, None, ""
        self.dialling, self.dial_at, self.dial_tries = False, None, 0
        self.heard_at = self.sent_at = now
        self.have_version = self.refused_version = 0

    def link_down(self, now: float, why: str, jitter: float) -> None:
        self.up, self.hello = False, None
        self.down_why = self.bye or why
        self.retry(now, jitter)

    def retry(self, now: float, jitter: float) -> None:
        """Dial again after a capped, jittered backoff (full jitter over the upper half).

        It runs from the beginning of a dial that failed: one that took its time has waited.
        """
        since = self.dialled_at if self.dialling else now
        self.dialling = False
        cap = DIAL_SOON_S if self.dial_tries < DIAL_SOON_TRIES else DIAL_MAX_S
        delay = min(DIAL_FIRST_S * 2 ** min(self.dial_tries, 8), cap)
        self.dial_tries += 1
        self.dial_at = max(now, since + delay * (0.5 + 0.5 * jitter))

    def pay(self, now: float, cost: float = 1.0) -> bool:
        """Take ``cost`` tokens of the link's rate; False when it has not as many left."""
        self.tokens = min(RATE_BURST, self.tokens + (now - self.tokens_at) * RATE_PER_S)
        self.tokens_at = now
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def wake_at(self) -> float | None:
        """The next instant at which this link itself needs something."""
        if self.up:
            return min(self.sent_at + PING_S, self.heard_at + SILENT_S)
        return None if self.dialling else self.dial_at

    def miss(self, round_: int, why: str) -> None:
        self.missed_count += 1
        self.missed_first = self.missed_first or round_
        self.missed_last, self.missed_why = round_, why
