"""Which replicas a round mixes, with which weight, and why others are missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lone import WALL_MS, Lone

from node.protocol.edges import counts, use, weight
from node.protocol.peers import Peer, Replica
from node.protocol.phases import Phase
from node.protocol.publisher import counted_ids
from node.protocol.reading import Head
from node.types import events as ev
from node.types.messages import Heads
from node.types.roster import Member

LONE = Lone()
ME, OTHER = (LONE.roster.members[LONE.ids[i]] for i in (0, 1))


def peer(
    label: int | None,
    *,
    have: int = 0,
    mixed: int = 0,
    linked: bool = True,
    used: int = 0,
    without: range = range(0),
) -> Peer:
    made = Peer(OTHER.id, "n1", up=linked, hello=LONE.hello(1) if linked else None)
    made.down_why = "connection refused"
    if label is not None:
        header = LONE.header(1, 9, round=label)
        made.replica = Replica(Head(LONE.sign(1, header), header), b"", 0.0, 0)
    made.used_round, made.left_out = used, without
    made.have_version, made.mixed_round = have, mixed
    return made


# round 5, own version 7, at most 4 rounds stale
@pytest.mark.parametrize(
    ("found", "age", "mutual", "why"),
    [
        (peer(5, have=7), 0, True, ""),
        (peer(5, have=8), 0, True, ""),
        (peer(5, have=6), None, False, "it did not acknowledge ours in time"),
        (peer(5, have=6, linked=False), None, False, "connection refused"),
        (peer(5, used=5), 0, True, ""),  # it mixed ours before we were killed
        (peer(5, used=4), None, False, "it did not acknowledge ours in time"),
        (peer(4, used=5), 1, False, ""),
        (peer(4), 1, False, ""),
        (peer(1), 4, False, ""),
        (peer(4, have=7), 1, False, ""),
        (peer(4, linked=False), 1, False, ""),
        (peer(4, mixed=4), None, False, "its version did not come in time"),
        (peer(4, mixed=4, linked=False), None, False, "connection refused"),
        (peer(6), 1, False, ""),  # ours is late there
        (peer(7, have=7), 2, False, ""),
        (peer(30), 4, False, ""),  # further ahead than it could use ours
        (peer(6, mixed=6), None, False, "its version did not come in time"),
        (peer(5, without=range(5, 6)), 1, False, ""),  # it has gone on without ours
        (peer(5, have=7, without=range(3, 7)), 1, False, ""),  # its Have came after that
        (peer(5, have=7, without=range(3, 5)), 0, True, ""),
        (peer(5, have=7, without=range(6, 8)), 0, True, ""),
        (peer(5, have=6, without=range(6, 8)), None, False, "it did not acknowledge ours in time"),
        (peer(5, mixed=5, without=range(5, 6)), None, False, "its version did not come in time"),
        (peer(6, without=range(5, 6)), 1, False, ""),
        (peer(None), None, False, "no version from it yet"),
        (peer(None, linked=False), None, False, "connection refused"),
    ],
)
def test_table(found: Peer, age: int | None, mutual: bool, why: str) -> None:
    result = use(ME, OTHER, found, round_=5, version=7, stale_max=4)
    assert (result.mutual, result.why) == (mutual, why)
    assert (result.source is None) is (age is None)
    if result.source is not None:
        assert result.source.age == age
        assert result.source.weight == pytest.approx(weight(ME, OTHER, 0) * (1 + age) ** -0.5)
    assert counts(found, 5, 7) is mutual


def test_too_stale_is_named() -> None:
    result = use(ME, OTHER, peer(1), round_=6, version=7, stale_max=4)
    assert result.source is None
    assert result.why == "5 rounds behind, at most 4 are used"


def test_where_nothing_late_is_used_who_is_ahead_still_is() -> None:
    assert use(ME, OTHER, peer(4), round_=5, version=7, stale_max=0).source is None
    assert use(ME, OTHER, peer(5, without=range(5, 6)), round_=5, version=7, stale_max=0).why
    ahead = use(ME, OTHER, peer(6), round_=5, version=7, stale_max=0)
    assert ahead.source is not None and not ahead.mutual
    assert ahead.source.age == 1, "it does not count at the other end: never at full weight"


def test_a_refusal_is_named() -> None:
    refused = peer(5)
    refused.refused_version, refused.refused_why = 7, "not finite"
    result = use(ME, OTHER, refused, round_=5, version=7, stale_max=4)
    assert result.why == "it refused ours: not finite"


def test_nothing_published_counts_for_nothing() -> None:
    assert not counts(peer(5), 5, 0)


def member(samples: int, degree: int) -> Member:
    ids = tuple(bytes([i]) * 32 for i in range(degree))
    return Member(id=OTHER.id, name="x", node_key=b"", samples=samples, neighbours=ids)  # type: ignore[arg-type]


@given(st.integers(1, 10**7), st.integers(1, 64), st.integers(1, 10**7), st.integers(1, 64))
def test_weights_are_reversible_and_leave_a_rest(n: int, d: int, m: int, e: int) -> None:
    one, other = member(n, d), member(m, e)
    assert n * weight(one, other, 0) == pytest.approx(m * weight(other, one, 0))
    assert 0 < weight(one, other, 0) <= 1 / (d + 1)
    assert weight(one, other, 3) == pytest.approx(weight(one, other, 0) / 2)


@pytest.mark.parametrize("lost", [False, True])
def test_an_edge_that_a_lost_disk_forgot_does_not_count(lost: bool) -> None:
    """A neighbour mixed our version and started again: does it know that still?"""
    lone = Lone()
    lone.link(1, 2, 3)
    used = {"mixed_round": 5, "counted": counted_ids([lone.ids[0]])}
    lone.frame(1, Heads((lone.presence(1, 5, 5, **used),)))
    found = lone.core.links.peers[lone.ids[1]]
    assert found.used_round == 5
    kept = {} if lost else used
    again = lone.presence(1, 5, 5, incarnation=WALL_MS + 1, boot_id=b"n" * 16, **kept)
    lone.frame(2, Heads((again,)))
    assert found.used_round == (0 if lost else 5)


def test_rounds_mixed_without_us_are_kept_as_long_as_they_are_in_a_row() -> None:
    lone = Lone()
    lone.link(1, 2, 3)
    found = lone.core.links.peers[lone.ids[1]]
    ours = counted_ids([lone.ids[0]])
    for version, (mixed, counted, expected) in enumerate(
        [
            (2, (), range(2, 3)),
            (3, counted_ids([lone.ids[2]]), range(2, 4)),  # with another
            (3, (), range(2, 4)),
            (4, ours, range(2, 4)),
            (5, (), range(5, 6)),
            (6, (), range(5, 7)),
            (9, (), range(9, 10)),  # what is between was not seen
        ],
        start=1,
    ):
        said = {"mixed_round": mixed, "counted": counted}
        lone.frame(1, Heads((lone.presence(1, mixed + 1, version, **said),)))
        assert found.left_out == expected
    assert found.used_round == 4
    anew = {"incarnation": WALL_MS + 1, "boot_id": b"n" * 16}
    lone.frame(1, Heads((lone.presence(1, 3, 1, mixed_round=2, **anew),)))
    assert found.left_out == range(2, 3), "a later boot begins anew"


def collecting(round_: int = 1) -> Lone:
    """Round 1 is published; versions of it came from all three neighbours, no Have yet."""
    lone = Lone()
    lone.link(1, 2, 3)
    for i in (1, 2, 3):
        lone.frame(i, lone.offer(i, 1))
    lone.feed(ev.Trained(round_, 0.5, 1))
    assert lone.core.phase is Phase.COLLECTING
    return lone


def ages(lone: Lone) -> dict[int, int]:
    [mix] = lone.all(ev.Mix)
    return {lone.ids.index(source.member): source.age for source in mix.sources}


def test_who_went_on_without_us_is_used_as_a_late_one_and_not_waited_for() -> None:
    """Its head says so before its next version is here: then its last one does."""
    lone = collecting()
    lone.have(1, 1)
    lone.have(2, 1)
    lone.frame(3, Heads((lone.presence(3, 2, 1, mixed_round=1),)))
    assert ages(lone) == {1: 0, 2: 0, 3: 1}
    assert lone.core.late == 1 and set(lone.core.standing.counted) == set(lone.ids[1:3])


@pytest.mark.parametrize("had", [False, True])
def test_its_next_version_takes_the_place_of_the_one_that_cannot_count(had: bool) -> None:
    lone = collecting()
    if had:
        lone.have(3, 1)  # after it had mixed without ours
    [apply] = lone.all(ev.Apply, lone.frame(3, lone.offer(3, 2, mixed_round=1)))
    assert apply.header.round == 2
    lone.have(1, 1)
    lone.have(2, 1)
    assert ages(lone) == {1: 0, 2: 0, 3: 1}


def test_while_we_train_too() -> None:
    lone = Lone()
    lone.link(1, 2, 3)
    lone.frame(3, lone.offer(3, 1))
    assert len(lone.all(ev.Apply, lone.frame(3, lone.offer(3, 2, mixed_round=1)))) == 1
    assert len(lone.all(ev.Apply, lone.frame(3, lone.offer(3, 3, mixed_round=2)))) == 1


def test_a_version_that_both_ends_mix_keeps_its_place() -> None:
    """It mixed ours, or does not say: its next version waits until the round is over."""
    ours = counted_ids([LONE.ids[0]])
    for said in ({"mixed_round": 1, "counted": ours}, {"mixed_round": 0}):
        lone = collecting()
        assert lone.all(ev.Apply, lone.frame(3, lone.offer(3, 2, **said))) == []
        for i in (3, 1, 2):
            lone.have(i, 1)
        assert ages(lone) == {1: 0, 2: 0, 3: 0}
        assert [a.header.round for a in lone.all(ev.Apply)][-1] == 2
