"""The end of a training: what a node still owes the others when it has finished."""

from __future__ import annotations

from lone import Lone

from crypto.identity import NodeId
from node.types.messages import HEADS_MAX, Ballots, SignedBallot


def test_a_new_link_is_told_every_ballot_however_many_there_are() -> None:
    lone = Lone()
    known = lone.core.ballots.signed
    for number in range(2 * HEADS_MAX + 1):
        raw = number.to_bytes(32, "big")
        known[NodeId(raw)] = SignedBallot(raw, bytes(64))
    lone.link(1)
    told = [ballot for message in lone.sent(Ballots, 1) for ballot in message.ballots]
    assert told == [known[member] for member in sorted(known)]
