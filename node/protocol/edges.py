"""Which replicas a round may mix, with which weight; and who is missing, and why.

An edge counts for node i in a round when i has applied j's version of that round *and* holds j's
Have for its own: then both ends use it alike, and the weighted sum of all models is conserved.
What does not count is used once, as a late one, at a weight that falls with the rounds between the
two: alike at both ends, so that an edge that is out of step for long draws neither to the other.
"""

from __future__ import annotations

from typing import NamedTuple

from node.protocol.peers import Peer
from node.types.events import Source
from node.types.roster import Member
from topology.weigh import neighbour_weight


class Use(NamedTuple):
    """How one neighbour enters a mix; ``why`` says why it does not."""

    source: Source | None
    mutual: bool = False
    why: str = ""


def counts(peer: Peer, round_: int, version: int) -> bool:
    """Whether both ends hold each other's version of this round.

    After a restart the other end may have mixed the round already, with what was published
    before: its header says so, and the edge is used here as well.
    """
    replica = peer.replica
    if replica is None or replica.head.header.round != round_ or version < 1:
        return False
    if peer.used_round == round_:
        return True
    return peer.have_version >= version and not left_out(peer, round_)


def left_out(peer: Peer, round_: int) -> bool:
    """Whether the other end says that it mixed this round without ours: it cannot count any more.

    What it published for this round, or since, is used as late ones are. Else a node that is
    always a moment too late for a neighbour would mix nothing of it, round after round. Only that
    neighbour can have signed it: a lie costs nobody but the two ends of its own edge.
    """
    return round_ in peer.left_out and peer.used_round != round_


def use(me: Member, other: Member, peer: Peer, *, round_: int, version: int, stale_max: int) -> Use:
    """What to do with ``peer`` in the mix of ``round_`` after own ``version`` was published."""
    replica = peer.replica
    if replica is None:
        return Use(None, why=_nothing(peer))
    label = replica.head.header.round
    if counts(peer, round_, version):
        return Use(Source(peer.id, weight(me, other, 0), 0), mutual=True)
    if label == round_ and not left_out(peer, round_):
        return Use(None, why=_unacknowledged(peer, version))
    if label <= peer.mixed_round:
        why = "its version did not come in time" if peer.linked else peer.down_why
        return Use(None, why=why)
    apart = max(1, abs(round_ - label))  # ours will be late there, be it of this round or ahead
    if apart > stale_max and label <= round_:
        return Use(None, why=f"{apart} rounds behind, at most {stale_max} are used")
    # who is further ahead than that uses nothing of ours, but is where this node has to go
    age = max(1, min(apart, stale_max))
    return Use(Source(peer.id, weight(me, other, age), age))


def weight(me: Member, other: Member, age: int) -> float:
    """Metropolis–Hastings by samples, discounted by (1 + age)^-1/2 where out of step."""
    base = neighbour_weight(me.samples, len(me.neighbours), other.samples, len(other.neighbours))
    return float(base * (1 + age) ** -0.5)


def _nothing(peer: Peer) -> str:
    if not peer.linked:
        return peer.down_why
    return (
        f"its version was refused: {peer.bad_why}" if peer.bad_round else "no version from it yet"
    )


def _unacknowledged(peer: Peer, version: int) -> str:
    if not peer.linked:
        return peer.down_why
    if peer.refused_version >= version:
        return f"it refused ours: {peer.refused_why}"
    return "it did not acknowledge ours in time"
