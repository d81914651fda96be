"""When a training begins: enough members, never alone, and it says whom it lacks."""

from __future__ import annotations

from typing import Any

import pytest
from cores import policy
from lone import WALL_MS, Lone

from node.protocol.frames import decode_header
from node.protocol.peers import RATE_BURST, RATE_PER_S
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
    lone.link(1)
    lone.frame(1, Heads((lone.presence(1, 1), lone.presence(4, 1))))
    assert lone.core.phase is Phase.STARTING, "the links that come up now are not left out"
    lone.link(2, 3)
    assert lone.core.phase is Phase.TRAINING


def test_one_member_alone_cannot_begin_a_training_before_enough_are_present() -> None:
    lone = starting(start_members=5)
    lone.link(1, round_=9)
    lone.frame(1, Heads((lone.presence(1, 9, version=9),)))
    lone.frame(1, lone.offer(1, 10))
    lone.link(2, 3)
    for at in (10.0, 20.0, 30.0, 40.0):
        lone.now = at
        for neighbour in (1, 2, 3):
            lone.frame(neighbour, Ping())
        lone.wake(at)
    assert lone.core.phase is Phase.STARTING
    lone.frame(2, Heads((lone.presence(2, 1),)))
    assert lone.core.phase is not Phase.STARTING


def test_a_training_that_runs_is_joined_without_those_who_never_come() -> None:
    lone = starting(start_members=5)
    lone.link(1)
    lone.frame(1, Heads((lone.presence(1, 1), lone.presence(4, 1))))
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


CROWD = 700


def crowd(**changes: Any) -> Lone:
    """Member 0 with three neighbours among 700 members who all must be present."""
    edges = [(0, 1), (0, 2), (0, 3), *((i, i + 1) for i in range(3, CROWD - 1))]
    return Lone(edges=edges, count=CROWD, policy=policy(20, 2, start_members=CROWD, **changes))


def told(lone: Lone, to: int) -> list[bytes]:
    """Whose presence a neighbour was told of, in order."""
    heads = [signed for message in lone.sent(Heads, to) for signed in message.heads]
    return [decode_header(signed.header).sender for signed in heads]


def test_the_presence_of_hundreds_reaches_every_neighbour_below_its_rate() -> None:
    lone = crowd()
    lone.link(1, 2, 3)
    for i in range(4, CROWD):
        lone.core.links.peers[lone.ids[1]].tokens = 9.0  # as if it came more slowly
        lone.frame(1, Heads((lone.presence(i, 0),)))
    assert lone.core.phase is Phase.TRAINING, "everybody is counted"
    lone = crowd(start_by_ms=WALL_MS + 10**9)
    lone.link(1, 2)
    for i in range(4, CROWD):
        lone.core.links.peers[lone.ids[1]].tokens = 9.0
        lone.frame(1, Heads((lone.presence(i, 0),)))
    assert lone.core.phase is Phase.STARTING, "one neighbour is not linked"
    assert RATE_BURST / 4 < len(told(lone, 2)) <= RATE_BURST
    now = 0.0
    while len(told(lone, 2)) <= CROWD - 4:
        wake = lone.core.next_wake()
        assert wake is not None
        now = max(now + 1e-6, wake)
        lone.frame(1, Ping())  # the links live
        lone.frame(2, Ping())
        lone.wake(now)
        assert len(told(lone, 2)) <= RATE_BURST + RATE_PER_S * now, "none is refused there"
    assert now < 2 + CROWD / RATE_PER_S * 2
    assert told(lone, 2)[-(CROWD - 4) :] == lone.ids[4:CROWD], "each once, in order"
    assert len(told(lone, 1)) <= 2, "who told us is not told"


def test_a_late_link_is_told_of_everybody_before_the_start() -> None:
    lone = crowd()
    lone.link(1)
    for i in range(4, 304):
        lone.core.links.peers[lone.ids[1]].tokens = 9.0
        lone.frame(1, Heads((lone.presence(i, 0),)))
    lone.link(2)
    for second in range(4):
        lone.wake(float(second))
    assert set(lone.ids[4:304]) <= set(told(lone, 2))
    assert lone.ids[2] not in told(lone, 2)


def test_what_a_neighbour_said_itself_is_taken_off_its_list() -> None:
    lone = crowd()
    lone.link(1, 2)
    heads = [lone.presence(i, 0) for i in range(4, 404)]
    for signed in heads[:380]:
        lone.core.links.peers[lone.ids[1]].tokens = 9.0
        lone.frame(1, Heads((signed,)))
    before = len(told(lone, 2))
    assert before < 380
    newer = [lone.presence(i, 0, incarnation=WALL_MS + 1) for i in range(300, 384)]
    lone.core.links.peers[lone.ids[2]].tokens = 100.0
    lone.frame(2, Heads(tuple(newer[:64])))
    for second in range(1, 5):
        lone.wake(float(second))
    said = told(lone, 2)[before:]
    assert not set(lone.ids[300:364]) & set(said)
    assert set(lone.ids[364:384]) <= set(said)


def test_of_hundreds_that_lack_the_first_are_named_and_not_at_every_head() -> None:
    lone = crowd()
    lone.link(1)
    for i in range(4, 54):
        lone.core.links.peers[lone.ids[1]].tokens = 9.0
        lone.frame(1, Heads((lone.presence(i, 0),)))
    lone.now = 1.5
    lone.frame(1, Ping())
    waiting = lone.all(ev.Waiting)
    assert [(n.present, len(n.lacking), n.more) for n in waiting] == [
        (1, 64, True),
        (2, 64, True),
        (52, 64, True),
    ]
    assert list(waiting[-1].lacking) == sorted(waiting[-1].lacking)
    assert not set(waiting[-1].lacking) & {lone.ids[i] for i in (0, 1, *range(4, 54))}


def test_what_is_being_applied_is_in_place_before_the_first_round() -> None:
    """Else a jump takes up a round whose replica is about to be replaced by a later one."""
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    lone = Lone(state=state, hold=(ev.Train, ev.Apply))
    lone.link(1, 2, round_=9)
    for version in (9, 10):
        lone.frame(1, lone.offer(1, version))
        if version == 9:
            lone.feed(ev.Applied(lone.ids[1], lone.all(ev.Apply)[-1].root, True))
    lone.link(3, round_=9)  # the last whom the start waits for
    assert lone.core.phase is Phase.STARTING
    lone.feed(ev.Applied(lone.ids[1], lone.all(ev.Apply)[-1].root, True))
    assert lone.core.phase is Phase.TRAINING
    assert lone.all(ev.Train)[-1].round == 9


def test_a_stream_of_versions_does_not_put_the_start_off() -> None:
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    lone = Lone(state=state, hold=(ev.Train, ev.Apply))
    lone.link(1, 2, round_=9)
    lone.frame(1, lone.offer(1, 9))
    lone.wake(lone.core.context.policy.deadline_max_s + 1)
    assert lone.core.phase is Phase.STARTING
    lone.frame(1, lone.offer(1, 10))  # waits: nothing more is applied before the start
    lone.feed(ev.Applied(lone.ids[1], lone.all(ev.Apply)[-1].root, True))
    assert lone.core.phase is not Phase.STARTING


def test_a_stream_of_versions_does_not_put_the_first_start_off() -> None:
    """A start that waits for members has no deadline: what comes after them waits."""
    lone = Lone(policy=policy(20, 2), hold=(ev.Train, ev.Apply))
    lone.link(1, 2)
    lone.frame(1, lone.offer(1, 1, round=1))
    lone.frame(1, lone.offer(1, 2, round=1))
    lone.link(3)  # the last whom the start waits for
    assert lone.core.phase is Phase.STARTING
    lone.feed(ev.Applied(lone.ids[1], lone.all(ev.Apply)[-1].root, True))
    assert len(lone.all(ev.Apply)) == 1
    assert lone.core.phase is Phase.TRAINING


def test_a_link_counts_once_its_members_signed_presence_is_here() -> None:
    """Who starts with it can then show the others that it was there, whatever becomes of it."""
    lone = starting(start_members=4)
    lone.link(1, 2)
    lone.feed(ev.LinkUp(lone.ids[3]))
    lone.frame(3, lone.hello(3))
    assert lone.core.phase is Phase.STARTING
    lone.frame(3, Heads((lone.presence(3, 0),)))
    assert lone.core.phase is Phase.TRAINING


def test_who_ran_on_alone_is_joined_where_all_have_been_heard_of() -> None:
    lone = starting(start_members=4)
    lone.link(1)
    lone.frame(1, Heads((lone.presence(2, 0), lone.presence(1, 1))))
    lone.wake(30.0)
    assert lone.core.phase is Phase.STARTING, "3 has never been heard of"
    lone.link(1)
    lone.frame(1, Heads((lone.presence(3, 0),)))
    for at in (40.0, 60.0, 80.0):  # the link stands, and the longest wait passes
        lone.now = at
        lone.frame(1, Ping())
        lone.wake(at)
    assert lone.core.phase is Phase.TRAINING


def test_a_training_that_runs_is_not_joined_without_a_link() -> None:
    """Heard of, and then cut off: who trained on its own would call it a round of the training."""
    lone = starting(start_members=5)
    lone.link(1)
    lone.frame(1, Heads((lone.presence(1, 1), lone.presence(4, 1))))
    lone.feed(ev.LinkDown(lone.ids[1], "cut"))
    lone.wake(40.0)
    lone.wake(80.0)
    assert lone.core.phase is Phase.STARTING
    lone.link(1)
    assert lone.core.phase is Phase.TRAINING
