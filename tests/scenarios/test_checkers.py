"""Each checker sees what it is there for: fed with the violation it fails, without it holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cores import make_roster, policy
from msgspec import structs

from crypto.hashing import tree_digest
from crypto.identity import SigningKey
from node.protocol.frames import encode, encode_header
from node.types import events as ev
from node.types.messages import KEYFRAME, Have, Header, Hello, Offer, SignedHeader
from node.types.roster import Pins
from scenarios.checkers.findings import INVARIANTS, Caught
from scenarios.checkers.taken import Ball
from scenarios.checkers.watch import Checkers, blind
from scenarios.faults import Partition, When

ROSTER, IDS, KEYS = make_roster([(0, 1), (1, 2), (2, 3), (3, 0)], 4)
A, B, C, D = IDS
PINS = Pins(
    training=b"t" * 32, schema=bytes(32), initial=bytes(32), code=bytes(32), payload_bytes=64
)
BALL = Ball(np.zeros(16, "<f4"), 10.0)
MODEL = np.ones(16, "<f4").tobytes()
DIGEST = tree_digest(MODEL)
BOOT = b"b" * 16
SIGNED = SignedHeader(b"", bytes(64))


def published(version: int = 1, incarnation: int = 5, model: bytes = DIGEST) -> ev.Publishing:
    return ev.Publishing(incarnation, BOOT, version, 1, model)


def received(
    member: bytes, version: int = 1, incarnation: int = 5, boot: bytes = BOOT
) -> ev.Received:
    return ev.Received(member, incarnation, boot, version, 1, DIGEST)


def apply(member: bytes, version: int = 1, model: bytes = DIGEST, **changes: object) -> ev.Apply:
    header = Header(
        consortium=ROSTER.consortium,
        epoch=ROSTER.epoch,
        training=PINS.training,
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
    header = structs.replace(header, **changes)
    return ev.Apply(member, model, header)


def receipt(member: bytes, signer: SigningKey, purpose: str = "header") -> ev.Receipt:
    raw = encode_header(apply(member).header)
    return ev.Receipt(member, SignedHeader(raw, signer.sign(purpose, raw)))


def takes(checkers: Checkers, node: bytes, effect: ev.Apply, payload: bytes, at: float) -> None:
    checkers.apply(node, effect, payload, at)
    checkers.applied(node, effect, payload, at, ok=True)


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


def held(*attackers: bytes) -> Checkers:
    """A run in which A and B published, and each applied the other's version."""
    checkers = Checkers(ROSTER, policy(deadline_max_s=2.0), PINS, attackers=attackers, ball=BALL)
    for me in (A, B):
        checkers.boot(me, ev.CoreState())
        checkers.notice(me, ev.Linked(B if me == A else A), 0.0)
        checkers.notice(me, ev.PhaseChanged("training", 1), 0.0)
        checkers.notice(me, published(), 0.0)
    for me, other in ((A, B), (B, A)):
        takes(checkers, me, apply(other), MODEL, 0.1)
        checkers.record(me, receipt(other, KEYS[other]), 0.1)
        checkers.notice(me, received(other), 0.1)
    for me, other in ((A, B), (B, A)):
        checkers.mix(me, mix((other, 0.3, 0)), 0.2)
        checkers.notice(me, done(mixed=(other,)), 0.2)
    return checkers


VIOLATIONS: dict[str, Callable[[Checkers], None]] = {
    "unique": lambda c: c.notice(A, published(model=b"x" * 32), 1.0),
    "grow": lambda c: c.notice(A, published(version=1, incarnation=4), 1.0),
    "genuine": lambda c: c.apply(A, apply(D), MODEL, 1.0),
    "signed": lambda c: c.record(A, receipt(B, KEYS[C]), 1.0),
    "foreign": lambda c: c.apply(A, apply(B, epoch=1), MODEL, 1.0),
    "labels": lambda c: c.apply(A, apply(B, round=1000), MODEL, 1.0),
    "shape": lambda c: c.apply(A, apply(B), MODEL + bytes(4), 1.0),
    "finite": lambda c: c.applied(A, apply(B), NAN, 1.0, ok=True),
    "bound": lambda c: c.applied(A, apply(B), HUGE, 1.0, ok=True),
    "boots": lambda c: c.notice(A, received(B, boot=b"o" * 16), 1.0),
    "asked": lambda c: c.apply(A, apply(C), MODEL, 1.0),
    "in-hand": lambda c: in_hand(c),
    "edges": lambda c: one_sided(c),
    "jumps": lambda c: jump_twice(c),
    "ahead": lambda c: c.notice(A, ev.Jumped(1, 40, "own model"), 1.0),
    "starts": lambda c: c.rebase(A, ev.Rebase(3, (B, D)), 1.0),
    "alone": lambda c: alone(c),
    "heard": lambda c: unheard(c),
    "banned": lambda c: ban(c),
    "incarnations": lambda c: says(c, hello(6)),
    "versions": lambda c: says(c, offer(2)),
    "receipts": lambda c: says(c, encode(Have(5, BOOT, 2, True, ""))),
    "replayed": lambda c: c.notice(A, received(B, incarnation=4), 1.0),
    "sources": lambda c: c.mix(A, mix((D, 0.3, 0)), 1.0),
    "weights": lambda c: c.mix(A, mix((B, 1.0, 0)), 1.0),
    "deadline": lambda c: c.notice(A, done(waited=2.1), 1.0),
    "accused": lambda c: c.notice(A, ev.Equivocation(B, SIGNED, SIGNED), 1.0),
}


NAN = np.full(16, np.nan, "<f4").tobytes()
HUGE = np.full(16, 1e30, "<f4").tobytes()


def in_hand(checkers: Checkers) -> None:
    """Round 2 is in hand, and its replica of B gives way to round 3's."""
    for round_ in (2, 3):
        checkers.applied(A, apply(B, version=round_, round=round_), MODEL, 1.0, ok=True)


def one_sided(checkers: Checkers) -> None:
    """A has published again; B holds nothing of it when A mixes B's version of that round."""
    checkers.notice(A, published(version=2), 0.9)
    checkers.applied(A, apply(B, version=2, round=2), MODEL, 0.9, ok=True)
    checkers.mix(A, ev.Mix(2, (ev.Source(B, 0.3, 0),), True), 1.0)


def jump_twice(checkers: Checkers) -> None:
    checkers.notice(B, published(version=9), 0.5)
    checkers.notice(B, ev.PhaseChanged("training", 30), 0.5)
    checkers.notice(A, ev.Jumped(1, 5, "own model"), 0.5)
    checkers.notice(A, done(mixed=(B,), round_=6), 0.5)
    checkers.notice(A, ev.Jumped(6, 9, "own model"), 1.0)


def alone(checkers: Checkers) -> None:
    checkers.boot(C, ev.CoreState())
    checkers.notice(C, ev.PhaseChanged("training", 1), 1.0)


def unheard(checkers: Checkers) -> None:
    checkers.notice(C, ev.Linked(B), 0.5)
    for version in range(1, 7):
        checkers.notice(C, published(version=version), 0.5)
    checkers.end(1.0, finished=(A, C))


def ban(checkers: Checkers) -> None:
    """A accuses B (it may: B attacks) and mixes it all the same."""
    checkers.notice(A, ev.Equivocation(B, SIGNED, SIGNED), 0.5)
    checkers.mix(A, mix((B, 0.3, 0)), 1.0)


def hello(incarnation: int) -> bytes:
    same = (ROSTER.consortium, 0, PINS.training, bytes(32), bytes(32), bytes(32))
    return encode(Hello(*same, incarnation, BOOT, 1, None))


def offer(version: int) -> bytes:
    raw = encode_header(apply(A, version=version).header)
    return encode(Offer(SignedHeader(raw, bytes(64)), bytes(32), MODEL))


def says(checkers: Checkers, frame: bytes) -> None:
    """A sends a frame to B; its disk holds incarnation 5, version 1, and B's version 1."""
    signed = receipt(B, KEYS[B]).signed
    disk = ev.CoreState(version=1, incarnation=5, floors={B: signed})
    checkers.sends(A, disk, B, frame, 1.0)


def names(checkers: Checkers) -> list[str]:
    return [check.name for check in checkers.checks() if not check.ok]


def test_a_good_run_holds() -> None:
    assert names(held()) == []


@pytest.mark.parametrize("which", sorted(VIOLATIONS))
def test_each_violation_is_seen_and_said_when(which: str) -> None:
    checkers = held(*((B,) if which == "banned" else ()))
    VIOLATIONS[which](checkers)
    finding = checkers.findings[which]
    assert finding.name in names(checkers)
    assert finding.first.startswith("at 1.000000 s: ")


@pytest.mark.parametrize("which", sorted(VIOLATIONS))
def test_each_finding_can_be_made_to_look_away(which: str) -> None:
    checkers = held(*((B,) if which == "banned" else ()))
    blind(checkers, [which])
    VIOLATIONS[which](checkers)
    assert INVARIANTS[which][0] not in names(checkers)


@pytest.mark.parametrize("which", sorted(VIOLATIONS))
def test_an_ablated_run_ends_at_what_it_was_run_for(which: str) -> None:
    checkers = held(*((B,) if which == "banned" else ()))
    checkers.findings[which].ends = True
    with pytest.raises(Caught):
        VIOLATIONS[which](checkers)


@pytest.mark.parametrize(
    "frame",
    [hello(5), offer(1), encode(Have(5, BOOT, 1, True, "")), encode(Have(5, BOOT, 9, False, "x"))],
    ids=["hello", "offer", "have", "refusal"],
)
def test_what_is_on_the_disk_may_be_said(frame: bytes) -> None:
    checkers = held()
    says(checkers, frame)
    assert names(checkers) == []


def test_what_was_refused_is_held_no_longer() -> None:
    checkers = held()
    checkers.applied(A, apply(B, version=2), NAN, 0.5, ok=False)
    checkers.mix(A, mix((B, 0.3, 0)), 1.0)
    assert names(checkers) == [INVARIANTS["sources"][0]]


def test_a_signature_for_another_purpose_is_none() -> None:
    checkers = held()
    checkers.record(A, receipt(B, KEYS[B], "statement"), 1.0)
    assert names(checkers) == [INVARIANTS["signed"][0]]


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
    assert names(checkers) == [INVARIANTS["genuine"][0]]


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
    assert names(checkers) == [INVARIANTS["sources"][0]]


def test_what_its_owner_mixed_without_us_may_give_way() -> None:
    """The same as ``in_hand``, but B was done with round 2 and had nothing of A in it."""
    checkers = held()
    checkers.notice(B, done(mixed=(C,), round_=2), 0.9)
    in_hand(checkers)
    assert names(checkers) == []


@pytest.mark.parametrize("further", [0, 1, 2])
def test_what_its_owner_mixed_with_us_may_not(further: int) -> None:
    """However far B has gone on since."""
    checkers = held()
    checkers.notice(B, done(mixed=(A, C), round_=2), 0.9)
    for round_ in range(3, 3 + further):
        checkers.notice(B, done(mixed=(C,), round_=round_), 0.9)
    in_hand(checkers)
    assert names(checkers) == [INVARIANTS["in-hand"][0]]


def test_a_round_that_was_mixed_again_after_a_kill_counts_as_the_last_time() -> None:
    checkers = held()
    checkers.notice(B, done(mixed=(A, C), round_=2), 0.8)
    checkers.notice(B, done(mixed=(C,), round_=2), 0.9)
    in_hand(checkers)
    assert names(checkers) == []


@pytest.mark.parametrize("again", [(2,), (1, 2)], ids=str)
def test_what_was_mixed_again_alone_is_that_round_and_no_earlier_one(
    again: tuple[int, ...],
) -> None:
    """B mixed rounds 1 and 2 with A, then some again, from a backup. A does round 1 once more."""
    checkers = held()
    checkers.notice(B, done(mixed=(A,), round_=2), 0.8)
    for round_ in again:
        checkers.notice(B, done(round_=round_), 0.9)
    checkers.notice(A, published(version=2), 1.0)
    checkers.mix(A, mix((B, 0.3, 0)), 1.0)
    assert names(checkers) == ([INVARIANTS["edges"][0]] if 1 in again else [])


def test_what_an_attacker_says_of_its_rounds_harms_its_own_edge() -> None:
    checkers = held(B)
    in_hand(checkers)
    assert names(checkers) == []


def test_replicas_end_with_the_process() -> None:
    checkers = held()
    checkers.boot(A, ev.CoreState())
    checkers.mix(A, mix((B, 0.3, 0)), 1.0)
    assert names(checkers) == [INVARIANTS["sources"][0]]


@pytest.mark.parametrize("weight", [0.0, -0.1])
def test_a_weight_that_is_not_positive_is_seen(weight: float) -> None:
    checkers = held()
    checkers.mix(A, mix((B, weight, 0)), 1.0)
    assert names(checkers) == [INVARIANTS["weights"][0]]


def test_who_is_linked_with_nobody_or_with_a_liar_alone_need_not_be_heard() -> None:
    """On real processes a node may come back when the others have finished and gone."""
    for company in ([], [ev.Linked(B)], [ev.Linked(D), ev.Unlinked(D, "it left")]):
        checkers = held(B)
        for notice in company:
            checkers.notice(C, notice, 0.4)
        for version in range(1, 9):
            checkers.notice(C, published(version=version), 0.5)
        checkers.end(1.0, finished=(A, C))
        assert names(checkers) == []


def test_an_attacker_may_be_accused() -> None:
    checkers = Checkers(ROSTER, policy(), PINS, attackers=[B])
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
    assert made[INVARIANTS["unique"][0]].value == "2 looked at"
    assert structs.asdict(made[INVARIANTS["unique"][0]])["ok"] is True


def test_a_wait_that_a_pause_lengthened_is_excused_and_no_other() -> None:
    checkers = held()
    checkers.resumed(A, 5.0)
    checkers.notice(A, done(waited=2.1), 6.0)  # it began to wait before it stood still
    assert names(checkers) == []
    checkers.notice(A, done(waited=2.1), 8.0)
    assert names(checkers) == [INVARIANTS["deadline"][0]]


def test_a_lost_disk_excuses_its_node_and_not_those_who_apply_what_is_old() -> None:
    checkers = held()
    checkers.restored(A)
    checkers.notice(A, published(version=1, incarnation=4), 1.0)
    assert names(checkers) == []
    checkers.notice(A, received(B, incarnation=4), 1.0)
    assert names(checkers) == []
    checkers.notice(B, published(version=1, incarnation=4), 1.0)
    assert names(checkers) == [INVARIANTS["grow"][0]]
    checkers.notice(B, received(A, incarnation=4), 1.0)
    assert set(names(checkers)) == {INVARIANTS["grow"][0], INVARIANTS["replayed"][0]}
