"""How far the others are: no liar moves it beyond what others support."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lone import Lone

from node.protocol.catchup import frontier
from node.protocol.phases import Phase
from node.types import events as ev
from node.types.messages import CHUNK_BYTES, Ask, Heads, Ping

TOP = 1000
LABELS = st.integers(0, 100)


@pytest.mark.parametrize(
    ("own", "neighbours", "further", "expected"),
    [
        (3, [], [], 3),
        (3, [TOP], [], 3),  # one neighbour alone proves nothing
        (3, [9, TOP], [], 9),
        (3, [3, TOP], [], 3),
        (3, [9, 9, 9], [], 9),
        (3, [9, 9, TOP], [], 9),
        (3, [2, 9, TOP], [], 3),
        (3, [8, 9, 10, TOP], [], 9),
        (3, [TOP], [9, 8], 8),  # two further members attest 8
        (3, [TOP, TOP], [9, 8, TOP], 9),
        (3, [9, 9], [1, 1], 3),
        (7, [3, 3, 3], [], 7),  # never backwards
        (3, [99, 99, 99], [], 50),  # never past the end
    ],
)
def test_table(own: int, neighbours: list[int], further: list[int], expected: int) -> None:
    assert frontier(own, neighbours, further, last=50) == expected


@given(LABELS, st.lists(LABELS, max_size=8), st.lists(LABELS, max_size=8), st.booleans())
def test_one_liar_never_moves_it_past_an_honest_label(
    own: int, neighbours: list[int], further: list[int], near: bool
) -> None:
    honest = max([own, *neighbours, *further])
    lie = ([*neighbours, TOP], further) if near else (neighbours, [*further, TOP])
    assert frontier(own, *lie, last=TOP) <= honest


@given(LABELS, st.lists(LABELS, min_size=3, max_size=12), st.data())
def test_a_minority_of_neighbours_never_moves_it_past_the_honest(
    own: int, honest: list[int], data: st.DataObject
) -> None:
    liars = data.draw(st.lists(st.integers(0, TOP), max_size=len(honest)))
    assert frontier(own, [*honest, *liars], [], last=TOP) <= max(own, *honest)


def test_heads_of_a_member_in_quarantine_are_not_counted() -> None:
    edges = [(0, 1), (1, 2), (2, 3), (3, 4)]
    lone = Lone(edges=edges)
    lone.link(1)
    for i in (2, 3):
        lone.frame(1, Heads((lone.presence(i, 9),)))
    assert lone.core.catch_up.frontier(1) == 9
    lone.frame(1, Heads((lone.presence(3, 9, model=b"x" * 32),)))
    assert lone.ids[3] in lone.core.heads.quarantined
    assert lone.core.catch_up.frontier(1) == 1


def behind(**more: object) -> Lone:
    """Resumed at round 5 of 20; three neighbours say that they work on round 15."""
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    lone = Lone(state=state, **more)  # type: ignore[arg-type]
    lone.link(1, 2, 3, round_=15)
    return lone


def test_far_behind_starts_from_a_median_of_three() -> None:
    lone = behind()
    assert lone.core.phase is Phase.CATCHING_UP
    for i in (1, 2):
        lone.frame(i, lone.offer(i, 15))
    assert lone.core.phase is Phase.CATCHING_UP
    lone.frame(3, lone.offer(3, 15))
    assert lone.all(ev.Rebase) == [ev.Rebase(14, tuple(sorted(lone.ids[1:4])))]
    assert lone.all(ev.Train)[-1].round == 15
    assert lone.all(ev.Jumped) == [ev.Jumped(5, 14, "test")]


def test_stale_keyframes_are_not_started_from() -> None:
    lone = behind()
    for i in (1, 2, 3):
        lone.frame(i, lone.offer(i, 15, round=10))
    assert lone.core.phase is Phase.CATCHING_UP
    for at in (10.0, 20.0, 30.0):
        lone.now = at
        for i in (1, 2, 3):
            lone.frame(i, Ping())
        lone.wake(at)
    assert lone.all(ev.Rebase) == [ev.Rebase(14, ())]


def test_whoever_was_ahead_is_gone_then_the_own_model_stays() -> None:
    lone = behind()
    for i in (1, 2, 3):
        lone.feed(ev.LinkDown(lone.ids[i], "cut"))
    lone.wake(40.0)
    assert lone.all(ev.Rebase) == []
    assert lone.core.phase is Phase.TRAINING
    assert lone.all(ev.Train)[-1].round == 6


def test_a_little_behind_keeps_the_own_model() -> None:
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    lone = Lone(state=state)
    lone.link(1, 2, 3, round_=9)
    assert lone.all(ev.Jumped) == [ev.Jumped(5, 8, "own model")]
    assert lone.all(ev.Train)[-1].round == 9


def test_at_most_one_jump_in_three_rounds() -> None:
    state = ev.CoreState(round=5, version=5, incarnation=1, jumped_at=4)
    lone = Lone(state=state, hold=())
    lone.link(1, 2, 3)
    for i in (1, 2, 3):
        lone.frame(i, lone.offer(i, 9, round=12))
    jumps = [n for n in lone.all(ev.Jumped) if n.from_round < 7]
    assert jumps == []


def test_further_members_are_asked_for_through_a_neighbour_and_again_when_it_is_gone() -> None:
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (1, 4)]
    state = ev.CoreState(round=5, version=5, incarnation=1)
    lone = Lone(edges=edges, state=state)
    lone.link(1, 2, round_=15)
    lone.frame(1, Heads((lone.presence(3, 15), lone.presence(4, 15))))
    assert lone.core.phase is Phase.CATCHING_UP
    wanted = Ask(lone.ids[3])
    assert lone.sent(Ask).count(wanted) == 1
    first = next(i for i in (1, 2) if wanted in lone.sent(Ask, i))
    second = 3 - first
    lone.feed(ev.LinkDown(lone.ids[first], "cut"))
    assert wanted in lone.sent(Ask, second)
    # the answer is borrowed for the median and forgotten after it
    for i in (1, 2):
        lone.link(i, round_=15)
        lone.frame(i, lone.offer(i, 15))
    lone.frame(second, lone.offer(3, 15))
    assert lone.ids[3] in lone.all(ev.Rebase)[0].members
    assert lone.all(ev.Forget) == [ev.Forget(lone.ids[3])]


def test_nothing_borrowed_is_left_after_the_new_start() -> None:
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    edges = [(0, 1), (0, 2), (0, 3), (0, 5), (1, 4)]
    lone = Lone(edges=edges, count=6, state=state, payload_bytes=2 * CHUNK_BYTES)
    lone.link(1, 2, 3, 5, round_=15)
    lone.frame(1, Heads((lone.presence(4, 15),)))
    lone.frame(1, lone.offer(4, 15))
    lone.chunk(1, 15, 0)
    assert lone.ids[4] in lone.core.reception.transfers.by_member
    lone.feed(ev.LinkDown(lone.ids[1], "cut"))
    for i in (2, 3, 5):
        lone.frame(i, lone.offer(i, 15))
        lone.chunk(i, 15, 0)
        lone.chunk(i, 15, 1)
    assert len(lone.all(ev.Rebase)) == 1
    assert not lone.core.reception.transfers.by_member
    assert lone.all(ev.DropPayload)[-1].member == lone.ids[4]


def test_an_answer_that_is_no_longer_needed_is_nobodys_fault() -> None:
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    edges = [(0, 1), (0, 2), (0, 3), (0, 5), (1, 4)]
    lone = Lone(edges=edges, count=6, state=state)
    lone.link(1, 2, 3, 5, round_=15)
    lone.frame(1, Heads((lone.presence(4, 15),)))
    assert lone.sent(Ask, 1) == [Ask(lone.ids[4])]
    for i in (2, 3, 5):
        lone.frame(i, lone.offer(i, 15))
    assert len(lone.all(ev.Rebase)) == 1
    lone.frame(2, lone.offer(4, 15))  # who was not asked for it
    assert lone.rejections == {"foreign": 1}
    lone.frame(1, lone.offer(4, 15))  # who was: once, and without effect
    assert lone.rejections == {"foreign": 1}
    assert not [s for s in lone.all(ev.StoreChunk) if s.member == lone.ids[4]]
    lone.frame(1, lone.offer(4, 15))
    assert lone.rejections == {"foreign": 2}


def test_what_one_neighbour_was_asked_for_is_not_taken_from_another() -> None:
    """Else a liar takes every transfer over, under its publisher's own signature, and stalls it."""
    state = ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5)
    edges = [(0, 1), (0, 2), (0, 3), (0, 5), (1, 4)]
    lone = Lone(edges=edges, count=6, state=state, payload_bytes=2 * CHUNK_BYTES)
    lone.link(1, 2, 3, 5, round_=15)
    lone.frame(1, Heads((lone.presence(4, 15),)))
    assert lone.sent(Ask, 1) == [Ask(lone.ids[4])]
    lone.frame(1, lone.offer(4, 15))
    lone.frame(2, lone.offer(4, 15))
    assert lone.rejections == {"foreign": 1}
    lone.chunk(1, 15, 0)
    lone.chunk(1, 15, 1)
    assert lone.ids[4] in lone.core.reception.borrowed
