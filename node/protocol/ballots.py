"""keep = "agreed": signed ballots on candidate models are flooded; the best median wins."""

from __future__ import annotations

import math
from statistics import median
from typing import Final

from crypto.identity import NodeId
from crypto.purposes import STATEMENT
from node.errors import BadSignature, Foreign, OutOfBounds
from node.protocol.context import Context
from node.protocol.frames import decode_ballot, encode_ballot
from node.types.messages import Ballot, Score, SignedBallot

LAST: Final = 0  # stands for the last model, which is a candidate too


class Ballots:
    """One ballot per member; the choice is a pure function of the ballots."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.signed: dict[NodeId, SignedBallot] = {}
        self._scores: dict[NodeId, dict[int, float]] = {}

    def cast(self, scores: tuple[Score, ...], incarnation: int) -> None:
        """Sign and keep this node's own ballot; a score that is not a number is no vote."""
        context = self._context
        scores = tuple(score for score in scores if math.isfinite(score.value))
        ballot = Ballot(
            context.roster.consortium, context.pins.training, context.me, incarnation, scores
        )
        raw = encode_ballot(ballot)
        self.signed[context.me] = SignedBallot(raw, context.sign(STATEMENT, raw))
        self._scores[context.me] = {score.round: score.value for score in scores}

    def receive(self, signed: SignedBallot) -> bool:
        """Check and keep a ballot; True if it is new. Raises RemoteProtocolError."""
        ballot = decode_ballot(signed.ballot)
        context = self._context
        sender = NodeId(ballot.sender)
        if ballot.consortium != context.roster.consortium:
            raise Foreign("ballot of another consortium")
        if ballot.training != context.pins.training:
            raise Foreign("ballot of another training")
        if sender not in context.roster.members:
            raise Foreign("ballot of somebody who is not a member")
        if sender in self.signed:
            return False
        key = context.roster.members[sender].node_key
        if not context.verify(key, STATEMENT, signed.ballot, signed.signature):
            raise BadSignature("ballot signature does not verify")
        scores = {score.round: score.value for score in ballot.scores}
        if set(scores) - {LAST, *context.policy.candidates}:
            raise OutOfBounds("ballot on a round that is no candidate")
        if not all(math.isfinite(value) for value in scores.values()):
            raise OutOfBounds("ballot with a score that is not a number")
        self.signed[sender] = signed
        self._scores[sender] = scores
        return True

    def complete(self) -> bool:
        return len(self.signed) == len(self._context.roster.members)

    def choice(self) -> tuple[int, int]:
        """(round, voters): the candidate with the best median, the latest of equals.

        LAST unless more than half of the members voted.
        """
        voters = len(self._scores)
        if 2 * voters <= len(self._context.roster.members):
            return LAST, voters
        best, chosen = -math.inf, LAST
        for round_ in (*sorted(self._context.policy.candidates), LAST):
            values = [s[round_] for _, s in sorted(self._scores.items()) if round_ in s]
            if 2 * len(values) > len(self._context.roster.members) and median(values) >= best:
                best, chosen = median(values), round_
        return chosen, voters
