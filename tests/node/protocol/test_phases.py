"""The phase table against a copy, and events that come when they must not."""

from __future__ import annotations

import itertools

import pytest
from lone import Lone

from node.errors import LocalProtocolError
from node.protocol.phases import TRANSITIONS, Phase, Step, after
from node.types import events as ev

# Read against the design by eye, then copied: a change of the table must be meant.
EXPECTED = """
starting behind catching-up | starting train training | starting publish encoding
starting finish final | starting stop leaving
catching-up train training | catching-up publish encoding | catching-up finish final
catching-up stop leaving
training trained encoding | training stop leaving
encoding encoded collecting | encoding stop leaving
collecting collected mixing | collecting stop leaving
mixing behind catching-up | mixing train training | mixing publish encoding
mixing finish final | mixing stop leaving
final stop leaving | leaving saved stopped
"""
PAIRS = list(itertools.product(Phase, Step))


def test_the_table_is_the_one_that_was_designed() -> None:
    rows = [row.split() for line in EXPECTED.strip().splitlines() for row in line.split("|")]
    expected = {(Phase(p), Step(s)): Phase(q) for p, s, q in rows}
    assert expected == TRANSITIONS


@pytest.mark.parametrize(("phase", "step"), [p for p in PAIRS if p not in TRANSITIONS])
def test_a_missing_pair_is_a_bug_of_ours(phase: Phase, step: Step) -> None:
    with pytest.raises(LocalProtocolError, match=step.value):
        after(phase, step)


ANSWERS = {
    ev.Trained: ev.Trained(1, None, 0),
    ev.Encoded: ev.Encoded(9, Lone().payload(b"12345678")),
    ev.Mixed: ev.Mixed(1),
    ev.Rebased: ev.Rebased(1, "x0"),
    ev.Finalised: ev.Finalised(),
    ev.Start: ev.Start(0),
}
AWAITED = {
    Phase.STARTING: (ev.Start,),
    Phase.TRAINING: (ev.Trained,),
    Phase.ENCODING: (ev.Encoded,),
    Phase.COLLECTING: (),
    Phase.MIXING: (ev.Mixed,),
    Phase.FINAL: (ev.Finalised,),
}


def arrive_in(phase: Phase) -> Lone:
    """A core that has come as far as ``phase``."""
    held = {
        Phase.TRAINING: {ev.Train},
        Phase.ENCODING: {ev.Encode},
        Phase.MIXING: {ev.Mix},
        Phase.FINAL: {ev.Finalise},
    }.get(phase, set())
    lone = Lone(edges=[(0, 1)], count=2, hold=held)
    if phase is not Phase.STARTING:
        lone.link(1, round_=1)
    if phase in (Phase.MIXING, Phase.FINAL):
        for version in range(1, 23):
            if lone.core.phase is phase:
                break
            lone.frame(1, lone.offer(1, version))
            lone.have(1, version)
    assert lone.core.phase is phase
    return lone


@pytest.mark.parametrize(
    ("phase", "kind"),
    [(p, k) for p, awaited in AWAITED.items() for k in ANSWERS if k not in awaited],
)
def test_an_answer_in_the_wrong_phase_is_a_bug_of_ours(phase: Phase, kind: type) -> None:
    lone = arrive_in(phase)
    before = lone.core.snapshot()
    with pytest.raises(LocalProtocolError):
        lone.feed(ANSWERS[kind])
    assert lone.core.phase is phase
    assert lone.core.snapshot() == before


def test_an_unasked_applied_is_a_bug_of_ours() -> None:
    lone = arrive_in(Phase.TRAINING)
    with pytest.raises(LocalProtocolError):
        lone.feed(ev.Applied(lone.ids[1], b"r" * 32, True))


def test_nothing_follows_after_stopped() -> None:
    lone = arrive_in(Phase.TRAINING)
    lone.feed(ev.Stop())
    assert lone.core.phase is Phase.STOPPED
    assert lone.core.next_wake() is None
    assert lone.feed(ev.Trained(1, None, 1)) == []
    assert len(lone.all(ev.Exit)) == 1


def test_leaving_waits_for_the_disk_alone() -> None:
    lone = Lone(edges=[(0, 1)], count=2, hold={ev.Persist})
    lone.link(1)
    lone.feed(ev.Stop())
    assert lone.core.phase is Phase.LEAVING
    assert lone.core.next_wake() is None, "a timer that nothing answers makes the shell spin"
    last = lone.all(ev.Persist)[-1].id
    lone.feed(ev.Trained(1, None, 1))
    lone.feed(ev.Persisted(last - 1))
    assert lone.core.phase is Phase.LEAVING
    lone.feed(ev.Persisted(last))
    assert lone.core.phase is Phase.STOPPED


def test_stop_after_round_finishes_the_round_in_hand() -> None:
    lone = arrive_in(Phase.COLLECTING)
    lone.feed(ev.Stop(after_round=True))
    assert lone.core.phase is Phase.COLLECTING
    lone.frame(1, lone.offer(1, 1))
    lone.have(1, 1)
    assert lone.core.phase is Phase.STOPPED
    assert lone.core.round == 1
    assert not lone.all(ev.Exit)[0].finished
