"""The phase table: where a node can be, and what moves it on. A missing pair is a bug of ours."""

from __future__ import annotations

from enum import Enum
from typing import Final

from node.errors import LocalProtocolError


class Phase(Enum):
    STARTING = "starting"  # links come up; waiting for the members that the start asks for
    CATCHING_UP = "catching-up"  # gathering keyframes to start again from
    TRAINING = "training"
    ENCODING = "encoding"
    COLLECTING = "collecting"
    MIXING = "mixing"
    FINAL = "final"  # the model is made; keyframes are served for a while
    LEAVING = "leaving"  # the last checkpoint is being written
    STOPPED = "stopped"


class Step(Enum):
    BEHIND = "behind"  # too far behind, or new in a running training
    TRAIN = "train"  # the next round has local steps
    PUBLISH = "publish"  # the next round has none (final mixing)
    TRAINED = "trained"
    ENCODED = "encoded"
    COLLECTED = "collected"  # all that can be waited for is there, or the deadline is past
    FINISH = "finish"  # the last round is mixed
    STOP = "stop"
    SAVED = "saved"


P, S = Phase, Step

TRANSITIONS: Final[dict[tuple[Phase, Step], Phase]] = {
    (P.STARTING, S.BEHIND): P.CATCHING_UP,
    (P.STARTING, S.TRAIN): P.TRAINING,
    (P.STARTING, S.PUBLISH): P.ENCODING,
    (P.STARTING, S.FINISH): P.FINAL,
    (P.CATCHING_UP, S.TRAIN): P.TRAINING,
    (P.CATCHING_UP, S.PUBLISH): P.ENCODING,
    (P.CATCHING_UP, S.FINISH): P.FINAL,
    (P.TRAINING, S.TRAINED): P.ENCODING,
    (P.ENCODING, S.ENCODED): P.COLLECTING,
    (P.COLLECTING, S.COLLECTED): P.MIXING,
    (P.MIXING, S.BEHIND): P.CATCHING_UP,
    (P.MIXING, S.TRAIN): P.TRAINING,
    (P.MIXING, S.PUBLISH): P.ENCODING,
    (P.MIXING, S.FINISH): P.FINAL,
    **{(p, S.STOP): P.LEAVING for p in Phase if p not in (P.LEAVING, P.STOPPED)},
    (P.LEAVING, S.SAVED): P.STOPPED,
}


def after(phase: Phase, step: Step) -> Phase:
    """The phase that follows. Raises LocalProtocolError where the table has no such pair."""
    try:
        return TRANSITIONS[phase, step]
    except KeyError:
        raise LocalProtocolError(f"no step '{step.value}' in phase '{phase.value}'") from None
