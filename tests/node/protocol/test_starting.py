"""When a training begins: enough members, never alone, and it says whom it lacks."""

from __future__ import annotations

from typing import Any

import pytest
from cores import policy
from lone import WALL_MS, Lone

from node.protocol.phases import Phase
from node.types import events as ev
from node.types.messages import Heads, Ping


def starting(**changes: Any) -> Lone:
    return Lone(policy=policy(20, 2, **changes))


def test_without_a_setting_all_neighbours_must_be_linked() -> None:
    lone = starting()
    lone.link(1, 2)
    assert lone.core.phase is Phase.STARTING
    lone.link(3)
    assert lone.core.phase is Phase.TRAINING


def test_it_names_whom_it_lacks_and_each_state_once() -> None:
    lone = starting(start_members=5)
    for _ in range(3):
        lone.feed(ev.Wake())
    lone.link(1, 2)
    lone.feed(ev.Wake())
    ids = lone.ids
    assert [(n.present, n.needed, set(n.lacking)) for n in lone.all(ev.Waiting)] == [
        (1, 5, set(ids[1:])),
        (2, 5, set(ids[2:])),
        (3, 5, set(ids[3:])),
    ]


def test_members_further_away_count_by_their_signed_presence() -> None:
    lone = starting(start_members=5)
    lone.link(1, 2, 3)
    assert lone.core.phase is Phase.STARTING
    lone.frame(1, Heads((lone.presence(4, 0),)))
    assert lone.core.phase is Phase.TRAINING


def test_never_alone_however_late() -> None:
    lone = starting(start_by_ms=WALL_MS + 1000, start_at_least=2)
    lone.wake(1e6)
    assert lone.core.phase is Phase.STARTING
    wake = lone.core.next_wake()
    assert wake is None or wake > 1e6, "a timer in the past makes the shell spin"
    lone.frame(1, Heads((lone.presence(4, 0),)))  # no link: not even heard
    assert lone.core.phase is Phase.STARTING
    lone.link(1)
    assert lone.core.phase is Phase.TRAINING


@pytest.mark.parametrize("least", [2, 3])
def test_at_latest_begins_with_at_least(least: int) -> None:
    lone = starting(start_members=5, start_by_ms=WALL_MS + 1000, start_at_least=least)
    lone.link(*range(1, least - 1))
    lone.wake(1.5)
    assert lone.core.phase is Phase.STARTING
    lone.link(3)
    assert lone.core.phase is Phase.TRAINING


def test_before_at_latest_at_least_is_not_enough() -> None:
    lone = starting(start_members=5, start_by_ms=WALL_MS + 1000, start_at_least=2)
    lone.link(1, 2, 3)
    lone.wake(0.999)
    assert lone.core.phase is Phase.STARTING
    assert lone.core.next_wake() == pytest.approx(1.0)


def test_a_training_that_runs_is_joined() -> None:
    lone = starting(start_members=5)
    lone.link(1, round_=1)
    assert lone.core.phase is Phase.STARTING, "the links that come up now are not left out"
    lone.link(2, 3)
    assert lone.core.phase is Phase.TRAINING


def test_a_training_that_runs_is_joined_without_those_who_never_come() -> None:
    lone = starting(start_members=5)
    lone.link(1, round_=1)
    for at in (10.0, 20.0):
        lone.now = at
        lone.frame(1, Ping())
        lone.wake(at)
    assert lone.core.phase is Phase.STARTING
    assert lone.core.start_gate.wake_at() == 30.0
    assert (lone.core.next_wake() or 99) <= 30.0
    lone.frame(1, Ping())
    lone.wake(30.0)
    assert lone.core.phase is Phase.TRAINING


def test_a_resumed_node_waits_for_its_neighbours_but_not_for_ever() -> None:
    state = ev.CoreState(round=3, version=3, incarnation=1)
    lone = Lone(state=state)
    lone.link(1, 2)
    assert lone.core.phase is Phase.STARTING
    lone.wake(29.9)
    assert lone.core.phase is Phase.STARTING
    lone.wake(30.0)
    assert lone.core.phase is Phase.TRAINING
    assert lone.all(ev.Train) == [ev.Train(4)]
