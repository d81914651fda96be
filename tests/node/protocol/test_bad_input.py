"""Whatever a neighbour sends: a counted rejection, nothing raised, nothing lost."""

from __future__ import annotations

import math
import zlib
from typing import Any

import msgspec
import pytest
from cores import policy
from hypothesis import given, settings
from hypothesis import strategies as st
from lone import WALL_MS, Lone

from crypto.hashing import root as root_of
from crypto.purposes import STATEMENT
from node.protocol.frames import chunk_prefix, encode, encode_ballot
from node.protocol.peers import DIAL_MAX_S, RATE_BURST
from node.protocol.phases import Phase
from node.types import events as ev
from node.types.messages import (
    CHUNK_BYTES,
    Ask,
    Ballot,
    Ballots,
    Bye,
    Gone,
    Have,
    Heads,
    Message,
    Ping,
    Score,
    SignedBallot,
    Want,
)


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.link(1, 2, 3)
    return made


def finish_round(lone: Lone) -> None:
    """The three neighbours finish round 1 with us, whatever happened before."""
    lone.feed(ev.Trained(1, None, 1))
    for i in (1, 2, 3):
        lone.frame(i, lone.offer(i, 1))
        lone.have(i, lone.core.publisher.version)
    (done,) = lone.all(ev.RoundDone)
    assert len(done.mixed) == 3
    assert done.missing == ()


FRAMES: dict[str, Message | bytes] = {
    "nothing": b"",
    "noise": b"\x93\x01" * 40,
    "wrong version": b"\x02" + encode(Ping())[1:],
    "a chunk not asked for": chunk_prefix(b"r" * 32, 0) + b"data",
    "have of nothing": Have(1, b"b" * 16, 1, True, ""),
    "gone of nothing": Gone(b"r" * 32),
    "want of nothing": Want(b"r" * 32, 0, 1),
    "ask for a stranger": Ask(b"x" * 32),
    "ask for another": Ask(b"x" * 32),
    "heads of noise": Heads(()),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("when", ["before hello", "after"])
def test_no_frame_raises_or_costs_a_round(frame: Message | bytes, when: str) -> None:
    lone = Lone()
    lone.link(2, 3)
    lone.feed(ev.LinkUp(lone.ids[1]))
    if when == "before hello":
        lone.frame(1, frame)
        assert lone.rejections == {"malformed": 1}
        lone.frame(1, lone.hello(1))
    else:
        lone.frame(1, lone.hello(1))
        lone.frame(1, frame)
    finish_round(lone)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_body_under_a_right_checksum_raises(body: bytes) -> None:
    lone = SHARED
    lone.frame(1, b"\x01\x00" + zlib.crc32(body).to_bytes(4, "big") + body)
    lone.frame(1, b"\x01\x01" + body)


SHARED = Lone()
SHARED.link(1, 2, 3)


@pytest.mark.parametrize("what", ["consortium", "training", "schema", "initial", "code", "epoch"])
def test_a_hello_that_disagrees_is_refused_with_both_values(what: str) -> None:
    lone = Lone(policy=policy(5, start_members=3, wait="all"))
    lone.feed(ev.LinkUp(lone.ids[1]))
    theirs: Any = 9 if what == "epoch" else b"\xab" * 32
    lone.frame(1, lone.hello(1, **{what: theirs}))
    ours = getattr(lone.hello(1), what)
    assert lone.rejections == {"mismatch": 1}
    (bye,) = lone.sent(Bye, 1)
    for value in (theirs, ours):
        assert (str(value) if what == "epoch" else value.hex()[:16]) in bye.why
    assert lone.all(ev.Hangup)[0].why == bye.why
    lone.feed(ev.LinkDown(lone.ids[1], "hung up"))
    # whoever is not of this training will not be in a second either
    again = [e for at in (0.5, 2.0, 9.9) for e in lone.wake(at) if e == ev.Dial(lone.ids[1])]
    assert again == []
    assert ev.Dial(lone.ids[1]) in lone.wake(DIAL_MAX_S)
    # the others train on, and the report says why one is missing
    lone.link(2, 3)
    lone.feed(ev.Trained(1, None, 1))
    for i in (2, 3):
        lone.frame(i, lone.offer(i, 1))
        lone.have(i, 1)
    (done,) = lone.all(ev.RoundDone)
    assert len(done.mixed) == 2
    assert [(m.member, m.why) for m in done.missing] == [(lone.ids[1], bye.why)]


def test_a_frame_of_a_stranger_or_of_a_link_that_is_down_is_nothing(lone: Lone) -> None:
    before = len(lone.effects)
    lone.feed(ev.Frame(b"x" * 32, encode(Ping())))  # type: ignore[arg-type]
    lone.frame(4, lone.offer(4, 1))
    lone.feed(ev.LinkDown(lone.ids[4], "?"))
    lone.feed(ev.DialFailed(lone.ids[4], "?"))
    assert lone.effects[before:] == []
    lone.feed(ev.LinkUp(lone.ids[4]))
    assert isinstance(lone.effects[-1], ev.Hangup)


@pytest.mark.parametrize("place", range(8))
def test_an_inline_payload_with_a_flipped_byte_is_refused(lone: Lone, place: int) -> None:
    good = lone.offer(1, 1)
    assert good.payload is not None
    bad = bytearray(good.payload)
    bad[place] ^= 0x40
    lone.frame(1, msgspec.structs.replace(good, payload=bytes(bad)))
    assert lone.rejections == {"digest": 1}
    lone.frame(1, msgspec.structs.replace(good, payload=good.payload + b"x"))
    lone.frame(1, msgspec.structs.replace(good, payload=b""))
    assert lone.rejections == {"digest": 1, "bounds": 2}
    assert not lone.all(ev.StoreChunk)
    finish_round(lone)


def test_models_of_others_are_not_taken_unasked(lone: Lone) -> None:
    lone.frame(1, lone.offer(4, 1))
    lone.frame(1, lone.offer(2, 1))
    lone.frame(1, lone.offer(0, 1))
    assert lone.rejections == {"foreign": 3}
    assert not lone.all(ev.StoreChunk)
    finish_round(lone)


def test_haves_and_wants_out_of_range(lone: Lone) -> None:
    lone.have(1, 1)
    lone.feed(ev.Trained(1, None, 1))
    lone.have(1, 0)
    lone.have(1, 2)
    root = lone.core.publisher.payload.root  # type: ignore[union-attr]
    lone.frame(1, Want(root, 1, 1))
    lone.frame(1, Want(root, 0, 2))
    lone.frame(1, Want(root, 2**32 - 1, 16))
    assert lone.rejections == {"bounds": 6}
    assert not lone.all(ev.SendChunk)
    lone.frame(1, Want(root, 0, 1))
    assert lone.all(ev.SendChunk) == [ev.SendChunk(lone.ids[1], root, 0)]
    lone.frame(1, Want(b"?" * 32, 0, 1))
    assert lone.sent(Gone, 1) == [Gone(b"?" * 32)]


def test_a_peers_words_are_made_fit_for_a_terminal(lone: Lone) -> None:
    lone.feed(ev.Trained(1, None, 1))
    for i in (1, 2, 3):
        lone.frame(i, lone.offer(i, 1))
    lone.have(1, 1, ok=False, why="bad\x1b[31m\nmodel")
    lone.frame(2, Bye("\x1b]0;owned\x07"))
    lone.feed(ev.LinkDown(lone.ids[2], "reset"))
    lone.have(3, 1)
    (done,) = lone.all(ev.RoundDone)
    assert len(done.missing) == 2
    assert all(m.why.isprintable() for m in done.missing)


def test_a_bye_says_why_its_sender_is_missing(lone: Lone) -> None:
    lone.frame(1, Bye("asked to stop"))
    lone.feed(ev.LinkDown(lone.ids[1], "connection reset"))
    assert lone.all(ev.Unlinked)[-1].why == "it left: asked to stop"
    lone.feed(ev.LinkUp(lone.ids[1]))
    lone.feed(ev.LinkDown(lone.ids[1], "connection reset"))
    assert lone.all(ev.Unlinked)[-1].why == "connection reset"


def test_a_link_on_which_nobody_says_hello_is_given_up() -> None:
    lone = Lone()
    lone.feed(ev.LinkUp(lone.ids[1]))
    for at in (5.0, 10.0, 14.9):
        lone.now = at
        lone.frame(1, Ping())
        lone.frame(1, b"noise")
        lone.wake(at)
    assert not lone.all(ev.Hangup)
    assert (lone.core.next_wake() or 99) <= 15.0
    lone.wake(15.0)
    assert [h.peer for h in lone.all(ev.Hangup)] == [lone.ids[1]]


def test_a_flood_hits_the_rate_and_costs_the_flooder_alone(lone: Lone) -> None:
    verified = 0
    verify = lone.core.context.verify

    def counting(*args: Any) -> bool:
        nonlocal verified
        verified += 1
        return verify(*args)

    lone.core.context.verify = counting
    forged = msgspec.structs.replace(lone.presence(4, 1), signature=bytes(64))
    for _ in range(100):
        lone.frame(1, Heads((forged,) * 20))
    assert verified <= RATE_BURST
    assert lone.rejections["rate"] >= 100 - RATE_BURST / 20
    lone.now = 2.0
    finish_round(lone)


@pytest.mark.parametrize("kind", ["hello", "ask", "offer", "ballot"])
def test_each_message_that_costs_is_paid_for(lone: Lone, kind: str) -> None:
    message: Message = {
        "hello": lone.hello(1),
        "ask": Ask(lone.ids[0]),
        "offer": lone.offer(1, 1, round=23),
        "ballot": Ballots((SignedBallot(b"\x00", bytes(64)),)),
    }[kind]
    for _ in range(int(RATE_BURST) + 10):
        lone.frame(1, message)
    assert lone.rejections["rate"] >= 9
    assert lone.core.phase is Phase.TRAINING


def test_the_rate_does_not_depend_on_the_clocks_origin() -> None:
    lone = Lone(now=-1e6)
    lone.link(1, 2, 3)
    assert lone.rejections == {}
    finish_round(lone)


def test_a_thousand_half_open_transfers_leave_one() -> None:
    lone = Lone(payload_bytes=2 * CHUNK_BYTES)
    lone.link(1, 2, 3)
    data = lone.offer(1, 1)
    zero = lone.payload(bytes(2 * CHUNK_BYTES))
    for version in range(1, 1001):
        lone.core.links.peers[lone.ids[1]].tokens = 100.0
        leaves = zero.leaves[:-32] + version.to_bytes(32, "big")
        digest = root_of(leaves, zero.length)
        signed = lone.sign(
            1, lone.header(1, version, b"", round=1, root=digest, model=digest, length=zero.length)
        )
        lone.frame(1, msgspec.structs.replace(data, signed=signed, leaves=leaves))
    assert lone.rejections == {}
    assert len(lone.core.reception.transfers.by_member) == 1
    assert len(lone.all(ev.DropPayload)) == 999
    assert lone.core.reception.ready == {}
    lone.frame(2, lone.offer(2, 1))
    lone.chunk(2, 1, 0)
    lone.chunk(2, 1, 1)
    assert [n.member for n in lone.all(ev.Received)] == [lone.ids[2]]


def test_a_newer_version_inside_its_offer_ends_the_transfer_of_an_older_one() -> None:
    lone = Lone(hold=(ev.Train, ev.Apply))
    lone.link(1, 2, 3)
    old, new = lone.offer(1, 1), lone.offer(1, 2)
    lone.frame(1, msgspec.structs.replace(old, payload=None))
    (want,) = lone.sent(Want, 1)
    effects = lone.frame(1, new)
    assert lone.all(ev.DropPayload, effects) == [ev.DropPayload(lone.ids[1], want.root)]
    # its last chunk comes all the same: the older version must not take the newer one's place
    assert old.payload is not None
    lone.frame(1, chunk_prefix(want.root, 0) + old.payload)
    assert lone.rejections == {"bounds": 1}
    assert [apply.root for apply in lone.all(ev.Apply)] == [lone.header(1, 2).root]
    assert lone.core.reception.ready == {}


def test_a_stream_of_versions_does_not_put_the_end_of_a_round_off() -> None:
    lone = Lone(hold=(ev.Train, ev.Apply))
    lone.link(1, 2, 3)
    lone.feed(ev.Trained(1, None, 1))
    version = 1
    lone.frame(1, lone.offer(1, version, round=2))
    for step in range(1, 64):  # each Apply takes as long as the next version needs to come
        lone.now = step * 0.5
        for i in (2, 3):
            lone.frame(i, Ping())
        version += 1
        lone.frame(1, lone.offer(1, version, round=2))
        for apply in lone.all(ev.Apply)[-1:]:
            if apply.member in lone.core.reception.applying:
                lone.feed(ev.Applied(apply.member, apply.root, True))
        lone.wake(lone.now)
    done = lone.all(ev.RoundDone)
    assert done, "the round never ended"
    assert done[0].waited_s <= 30.5


def test_a_model_that_the_learner_refuses_is_answered_and_not_taken_again(lone: Lone) -> None:
    lone.hold.add(ev.Apply)
    offer = lone.offer(1, 1)
    lone.frame(1, offer)
    (apply,) = lone.all(ev.Apply)
    lone.feed(ev.Applied(apply.member, apply.root, False, "not finite"))
    assert lone.sent(Have, 1) == [Have(WALL_MS, b"B" * 16, 1, False, "not finite")]
    assert lone.rejections == {"model": 1}
    lone.frame(1, offer)
    assert lone.rejections == {"model": 1, "replay": 1}
    assert not lone.all(ev.Receipt)
    assert len(lone.all(ev.Apply)) == 1


def test_a_repeated_offer_is_answered_with_have_only_after_the_receipt() -> None:
    lone = Lone(hold=(ev.Train, ev.Persist))
    lone.link(1, 2, 3)
    lone.frame(1, lone.offer(1, 1))
    receipt = next(e.id for e in lone.all(ev.Persist) if isinstance(e.record, ev.Receipt))
    lone.link(1)
    effects = lone.frame(1, lone.offer(1, 1))
    assert [e.after for e in effects if isinstance(e, ev.Send)] == [receipt]


# ── ballots ──

CANDIDATES = policy(5, candidates=(3, 4, 5), wait="all")


def ballot(
    lone: Lone, i: int, scores: tuple[Score, ...], purpose: str = STATEMENT, **changes: Any
) -> SignedBallot:
    made = Ballot(lone.roster.consortium, lone.pins.training, lone.ids[i], 1, scores)
    raw = encode_ballot(msgspec.structs.replace(made, **changes))
    return SignedBallot(raw, lone.secrets[lone.ids[i]].sign(purpose, raw))


GOOD = (Score(3, 0.5, 10),)
BAD: dict[str, dict[str, Any]] = {
    "foreign": {"consortium": b"x" * 32},
    "signature": {"purpose": "header"},
    "bounds": {"scores": (Score(3, math.nan, 10),)},
}


@pytest.mark.parametrize(("reason", "changes"), BAD.items(), ids=BAD)
def test_a_bad_ballot_is_counted_and_the_good_ones_beside_it_are_kept(
    reason: str, changes: dict[str, Any]
) -> None:
    lone = Lone(policy=CANDIDATES)
    lone.link(1, 2, 3)
    before, after = ballot(lone, 2, GOOD), ballot(lone, 3, GOOD)
    lone.frame(1, Ballots((before, ballot(lone, 4, **{"scores": GOOD, **changes}), after)))
    assert lone.rejections == {reason: 1}
    assert set(lone.core.ballots.signed) == {lone.ids[2], lone.ids[3]}
    assert lone.sent(Ballots, 2) == [Ballots((before, after))]
    assert lone.sent(Ballots, 1) == []


@pytest.mark.parametrize(
    "scores", [(Score(2, 0.5, 1),), (Score(3, math.inf, 1),), (Score(3, -math.inf, 1),)]
)
def test_scores_must_be_finite_and_of_candidates(scores: tuple[Score, ...]) -> None:
    lone = Lone(policy=CANDIDATES)
    lone.link(1, 2, 3)
    lone.frame(1, Ballots((ballot(lone, 4, scores),)))
    assert lone.rejections == {"bounds": 1}
    assert not lone.core.ballots.signed


def test_a_ballot_travels_once_and_is_not_replaced() -> None:
    lone = Lone(policy=CANDIDATES)
    lone.link(1, 2, 3)
    first = ballot(lone, 4, GOOD)
    for signed in (first, first, ballot(lone, 4, (Score(3, 9.0, 10),))):
        lone.frame(1, Ballots((signed,)))
    assert lone.sent(Ballots, 2) == [Ballots((first,))]
    assert lone.core.ballots.signed[lone.ids[4]] == first
    assert lone.rejections == {}


@given(st.lists(st.floats(0.4, 0.6), min_size=2, max_size=2), st.floats(-1e9, 1e9))
@settings(max_examples=30, deadline=None)
def test_one_liar_moves_the_choice_only_where_the_honest_are_divided(
    noise: list[float], lie: float
) -> None:
    lone = Lone(policy=CANDIDATES, edges=[(0, 1), (1, 2), (2, 3)], count=4)
    lone.link(1)
    honest = [0.1, 0.9, 0.2]
    for i, extra in zip((1, 2), noise, strict=True):
        scores = tuple(Score(3 + k, honest[k] + extra, 9) for k in range(3))
        lone.frame(1, Ballots((ballot(lone, i, scores),)))
    own = tuple(Score(3 + k, honest[k], 9) for k in range(3))
    lone.core.ballots.cast(own, 1)
    liar = (Score(3, lie, 9), Score(4, -lie, 9), Score(5, lie, 9))
    lone.frame(1, Ballots((ballot(lone, 3, liar),)))
    assert lone.core.ballots.complete()
    assert lone.core.ballots.choice() == (4, 4)


def test_without_a_majority_the_last_model_stays() -> None:
    lone = Lone(policy=CANDIDATES)
    lone.link(1)
    for i in (1, 2):
        lone.frame(1, Ballots((ballot(lone, i, GOOD),)))
    assert lone.core.ballots.choice() == (0, 2)
    lone.frame(1, Ballots((ballot(lone, 3, GOOD),)))
    assert lone.core.ballots.choice() == (3, 3)
