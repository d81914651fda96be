"""Each checker sees what it is there for: fed with the violation it fails, without it holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cores import make_roster, policy
from msgspec import structs

from crypto.hashing import tree_digest
from node.types import events as ev
from node.types.messages import KEYFRAME, Header, SignedHeader
from scenarios.checkers import Checkers
from scenarios.faults import Partition, When

ROSTER, IDS, _ = make_roster([(0, 1), (1, 2), (2, 3), (3, 0)], 4)
A, B, C, D = IDS
MODEL = b"\x01" * 64
DIGEST = tree_digest(MODEL)
BOOT = b"b" * 16
SIGNED = SignedHeader(b"", bytes(64))


def published(version: int = 1, incarnation: int = 5, model: bytes = DIGEST) -> ev.Publishing:
    return ev.Publishing(incarnation, BOOT, version, 1, model)


def received(member: bytes, version: int = 1, incarnation: int = 5) -> ev.Received:
    return ev.Received(member, incarnation, BOOT, version, 1, DIGEST)


def apply(member: bytes, version: int = 1, model: bytes = DIGEST) -> ev.Apply:
    header = Header(
        consortium=bytes(32),
        epoch=0,
        training=bytes(32),
        sender=member,
        key_version=0,
        incarnation=5,
        boot_id=BOOT,
        round=1,
        kind=KEYFRAME,
        version=version,
        base=None,
        codec="full",
        length=64,
        root=model,
        model=model,
        mixed_round=0,
        counted=(),
    )
    return ev.Apply(member, model, header)


def mix(*sources: tuple[bytes, float, int]) -> ev.Mix:
    return ev.Mix(1, tuple(ev.Source(m, weight, age) for m, weight, age in sources), True)


def done(waited: float = 0.1, mixed: tuple[bytes, ...] = (), round_: int = 1) -> ev.RoundDone:
    return ev.RoundDone(
        round=round_,
        mixed=tuple(ev.Source(m, 0.3, 0) for m in mixed),
        missing=(),
        own_weight=0.4,
        loss=None,
        waited_s=waited,
        half_edges=0,
        late=0,
        alone=False,
        kept_own="",
    )


def held() -> Checkers:
    """A run in which A and B published, and each applied the other's version."""
    checkers = Checkers(ROSTER, policy(deadline_max_s=2.0))
    for me in (A, B):
        checkers.notice(me, published(), 0.0)
    for me, other in ((A, B), (B, A)):
        checkers.apply(me, apply(other), MODEL, 0.1)
        checkers.notice(me, received(other), 0.1)
        checkers.mix(me, mix((other, 0.3, 0)), 0.2)
        checkers.notice(me, done(mixed=(other,)), 0.2)
    return checkers


VIOLATIONS: dict[str, Callable[[Checkers], None]] = {
    "unique": lambda c: c.notice(A, published(model=b"x" * 32), 1.0),
    "grow": lambda c: c.notice(A, published(version=1, incarnation=4), 1.0),
    "genuine": lambda c: c.apply(A, apply(C), MODEL, 1.0),
    "replayed": lambda c: c.notice(A, received(B, incarnation=4), 1.0),
    "sources": lambda c: c.mix(A, mix((D, 0.3, 0)), 1.0),
    "weights": lambda c: c.mix(A, mix((B, 1.0, 0)), 1.0),
    "deadline": lambda c: c.notice(A, done(waited=2.1), 1.0),
    "accused": lambda c: c.notice(A, ev.Equivocation(B, SIGNED, SIGNED), 1.0),
}


def names(checkers: Checkers) -> list[str]:
    return [check.name for check in checkers.checks() if not check.ok]


def test_a_good_run_holds() -> None:
    assert names(held()) == []


@pytest.mark.parametrize("which", sorted(VIOLATIONS))
def test_each_violation_is_seen_and_said_when(which: str) -> None:
    checkers = held()
    VIOLATIONS[which](checkers)
    finding = getattr(checkers, which)
    assert finding.name in names(checkers)
    assert finding.first.startswith("at 1.000000 s: ")


@pytest.mark.parametrize(
    ("effect", "payload"),
    [
        (apply(B), b"\x02" * 64),  # other bytes than the header's digest names
        (apply(B, version=2), MODEL),  # a version that was never published
        (apply(B, model=b"y" * 32), MODEL),  # another digest than published
    ],
)
def test_a_model_that_is_not_what_was_published_is_seen(effect: ev.Apply, payload: bytes) -> None:
    checkers = held()
    checkers.apply(A, effect, payload, 1.0)
    assert names(checkers) == [checkers.genuine.name]


@pytest.mark.parametrize(
    "effect",
    [
        mix((B, 0.2, 0), (B, 0.2, 0)),
        mix((C, 0.2, 0)),  # no neighbour of A
        mix((B, 0.2, 5)),  # staler than the policy allows
    ],
)
def test_a_source_that_may_not_be_mixed_is_seen(effect: ev.Mix) -> None:
    checkers = held()
    checkers.mix(A, effect, 1.0)
    assert names(checkers) == [checkers.sources.name]


def test_replicas_end_with_the_process() -> None:
    checkers = held()
    checkers.boot(A)
    checkers.mix(A, mix((B, 0.3, 0)), 1.0)
    assert names(checkers) == [checkers.sources.name]


@pytest.mark.parametrize("weight", [0.0, -0.1])
def test_a_weight_that_is_not_positive_is_seen(weight: float) -> None:
    checkers = held()
    checkers.mix(A, mix((B, weight, 0)), 1.0)
    assert names(checkers) == [checkers.weights.name]


def test_an_attacker_may_be_accused() -> None:
    checkers = Checkers(ROSTER, policy(), attackers=[B])
    checkers.notice(A, ev.Equivocation(B, SIGNED, SIGNED), 1.0)
    assert names(checkers) == []


CUT = Partition(at=When(1.0), sides=(("n0", "n1"), ("n2", "n3")))


def after_heal(rounds: dict[str, int], met: bool, long: bool = True) -> Checkers:
    checkers = held()
    checkers.cut(CUT, 1.0, dict.fromkeys(("n0", "n1", "n2", "n3"), 3))
    checkers.healed(9.0, rounds, long=long)
    across = {B: (C,), C: (B,)} if met else {B: (A,), C: (D,)}
    for node, sources in across.items():
        checkers.notice(node, done(mixed=sources, round_=9), 10.0)
    checkers.end(11.0)
    return checkers


def test_both_sides_must_go_on() -> None:
    on = {"n0": 9, "n1": 9, "n2": 9, "n3": 9}
    stuck = {**on, "n2": 3, "n3": 3}
    assert names(after_heal(on, met=True)) == []
    assert names(after_heal(stuck, met=True)) == ["each side of a partition goes on training"]
    assert names(after_heal(stuck, met=True, long=False)) == []


def test_the_sides_must_meet() -> None:
    on = {"n0": 9, "n1": 9, "n2": 9, "n3": 9}
    assert names(after_heal(on, met=False)) == ["after a heal the sides mix with each other"]


def test_findings_carry_over_into_the_run() -> None:
    checkers = held()
    made = {check.name: check for check in checkers.checks()}
    assert made[checkers.unique.name].value == "2 looked at"
    assert structs.asdict(made[checkers.unique.name])["ok"] is True


def test_a_wait_that_a_pause_lengthened_is_excused_and_no_other() -> None:
    checkers = held()
    checkers.resumed(A, 5.0)
    checkers.notice(A, done(waited=2.1), 6.0)  # it began to wait before it stood still
    assert names(checkers) == []
    checkers.notice(A, done(waited=2.1), 8.0)
    assert names(checkers) == [checkers.deadline.name]


def test_a_lost_disk_excuses_its_node_and_not_those_who_apply_what_is_old() -> None:
    checkers = held()
    checkers.restored(A)
    checkers.notice(A, published(version=1, incarnation=4), 1.0)
    assert names(checkers) == []
    checkers.notice(B, published(version=1, incarnation=4), 1.0)
    assert names(checkers) == [checkers.grow.name]
    checkers.notice(B, received(A, incarnation=4), 1.0)
    assert set(names(checkers)) == {checkers.grow.name, checkers.replayed.name}
