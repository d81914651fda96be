"""Which replicas a round mixes, with which weight, and why others are missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lone import WALL_MS, Lone

from node.protocol.edges import counts, use, weight
from node.protocol.peers import Peer, Replica
from node.protocol.publisher import counted_ids
from node.protocol.reading import Head
from node.types.messages import Heads
from node.types.roster import Member

LONE = Lone()
ME, OTHER = (LONE.roster.members[LONE.ids[i]] for i in (0, 1))


def peer(
    label: int | None, *, have: int = 0, mixed: int = 0, linked: bool = True, used: int = 0
) -> Peer:
    made = Peer(OTHER.id, "n1", up=linked, hello=LONE.hello(1) if linked else None)
    made.down_why = "connection refused"
    if label is not None:
        header = LONE.header(1, 9, round=label)
        made.replica = Replica(Head(LONE.sign(1, header), header), b"", 0.0, 0)
    made.used_round = used
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
        (peer(6), 0, False, ""),
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
