"""Signed headers: in which order they are checked, what contradicts, what is new."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cores import keys
from lone import BOOT, WALL_MS, Lone

from crypto.purposes import STATEMENT
from node.errors import Replayed
from node.protocol.frames import decode, encode_header
from node.protocol.heads import RECENT_MAX, VERIFIED_MAX
from node.types import events as ev
from node.types.messages import DELTA, PRESENCE, Have, Heads, Offer, SignedHeader


@pytest.fixture
def lone() -> Lone:
    made = Lone()
    made.link(1, 2, 3)
    return made


FOREIGN: dict[str, dict[str, Any]] = {
    "another consortium": {"consortium": b"x" * 32},
    "another training": {"training": b"x" * 32},
    "another epoch": {"epoch": 1},
    "another key version": {"key_version": 1},
    "a stranger": {"sender": b"x" * 32},
}
BOUNDS: dict[str, dict[str, Any]] = {
    "round past the end": {"round": 23},
    "mixed past the end": {"mixed_round": 23},
    "base of a keyframe": {"base": 0},
    "base after the version": {"base": 1, "kind": DELTA},
    "base before the version": {"base": 0, "kind": DELTA},
    "presence": {"kind": PRESENCE},
    "round 0": {"round": 0},
    "unknown codec": {"codec": "zip\x1b[31m"},
    "wrong length": {"length": 12},
    "model is not the payload": {"model": b"x" * 32},
    "more edges than it has": {"counted": tuple(bytes([i]) * 8 for i in range(9))},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN)
def test_a_valid_signature_for_something_else_is_foreign(
    lone: Lone, changes: dict[str, Any]
) -> None:
    lone.frame(1, lone.offer(1, 1, **changes))
    assert lone.rejections == {"foreign": 1}
    assert not lone.all(ev.Apply)
    lone.frame(1, lone.offer(1, 1))
    assert len(lone.all(ev.Apply)) == 1


@pytest.mark.parametrize("changes", BOUNDS.values(), ids=BOUNDS)
def test_out_of_bounds(lone: Lone, changes: dict[str, Any]) -> None:
    lone.frame(1, lone.offer(1, 1, **changes))
    assert lone.rejections == {"bounds": 1}
    assert not lone.all(ev.Apply)
    assert all(n.detail.isprintable() for n in lone.all(ev.Rejected))
    other = {"model": changes["model"]} if "model" in changes else {}
    if not other:
        lone.frame(1, lone.offer(1, 1))
        assert len(lone.all(ev.Apply)) == 1


def test_a_wrong_root_or_digest_list_is_counted(lone: Lone) -> None:
    good = lone.offer(1, 1)
    lone.frame(1, msgspec.structs.replace(good, leaves=bytes(32)))
    lone.frame(1, msgspec.structs.replace(good, leaves=good.leaves * 2))
    lone.frame(1, msgspec.structs.replace(good, leaves=b""))
    lone.frame(2, lone.offer(2, 1, root=b"x" * 32, model=b"x" * 32))
    assert lone.rejections == {"digest": 2, "bounds": 2}
    assert not lone.all(ev.StoreChunk)


def test_a_forged_signature_or_purpose_is_refused(lone: Lone) -> None:
    good = lone.offer(1, 1)
    raw = good.signed.header
    forged = [
        SignedHeader(raw, bytes(64)),
        SignedHeader(raw, keys(99).sign("header", raw)),
        SignedHeader(raw, lone.secrets[lone.ids[2]].sign("header", raw)),
        lone.sign(1, lone.header(1, 1), purpose=STATEMENT),
        SignedHeader(raw[:-1] + b"\x91", good.signed.signature),
    ]
    for signed in forged:
        lone.frame(1, msgspec.structs.replace(good, signed=signed))
    assert lone.rejections == {"signature": 4, "malformed": 1}
    lone.frame(1, good)
    assert len(lone.all(ev.Apply)) == 1


def test_every_flipped_byte_of_a_signed_header_is_refused(lone: Lone) -> None:
    good = lone.offer(1, 1)
    raw = good.signed.header
    lone.core.links.peers[lone.ids[1]].tokens = 1e9
    for place in range(len(raw)):
        bad = bytearray(raw)
        bad[place] ^= 1
        signed = SignedHeader(bytes(bad), good.signed.signature)
        lone.core.links.peers[lone.ids[1]].tokens = 100.0
        lone.frame(1, msgspec.structs.replace(good, signed=signed))
    assert sum(lone.rejections.values()) == len(raw)
    assert not lone.all(ev.Apply)


def later() -> Lone:
    """In its sixth round: versions of rounds before it are applied as they come."""
    lone = Lone(state=ev.CoreState(round=5, version=5, incarnation=1, mixed_round=5))
    lone.link(1, 2, 3)
    return lone


def test_replay_of_an_old_version() -> None:
    lone = later()
    offers = [lone.offer(1, v, round=v) for v in (1, 2, 3)]
    for offer in offers:
        lone.frame(1, offer)
    applied = len(lone.all(ev.Received))
    lone.frame(1, offers[0])
    lone.frame(1, offers[1])
    assert lone.rejections == {"replay": 2}
    assert len(lone.all(ev.Received)) == applied
    assert lone.core.links.peers[lone.ids[1]].replica.head.header.version == 3


def test_an_older_version_does_not_push_out_a_newer_that_waits() -> None:
    lone = Lone(hold=(ev.Train, ev.Apply))
    lone.link(1, 2, 3)
    offers = [lone.offer(1, v, round=v) for v in (1, 2, 3)]
    lone.frame(1, offers[0])
    lone.frame(1, offers[2])
    lone.frame(1, offers[1])
    assert lone.rejections == {"replay": 1}
    ready = lone.core.reception.ready[lone.ids[1]]
    assert ready.head.header.version == 3


def test_replay_after_a_restart() -> None:
    lone = later()
    for version in (1, 2):
        lone.frame(1, lone.offer(1, version, round=version))
    receipts = {r.member: r.signed for r in lone.all(ev.Receipt)}
    for state in (lone.core.snapshot(), ev.CoreState(floors=receipts)):
        again = Lone(state=state)
        again.link(1, 2, 3)
        again.frame(1, again.offer(1, 1, round=1))
        assert again.rejections == {"replay": 1}
        assert not again.all(ev.Received)
        again.frame(1, again.offer(1, 2, round=2))  # the replica itself was not kept: fetched anew
        assert [n.version for n in again.all(ev.Received)] == [2]


def test_an_older_boot_is_refused_once_a_newer_is_known(lone: Lone) -> None:
    lone.frame(1, lone.offer(1, 5, incarnation=WALL_MS + 5, boot_id=b"C" * 16))
    lone.frame(1, lone.offer(1, 9, incarnation=WALL_MS + 4, boot_id=b"A" * 16))
    assert lone.rejections == {"replay": 1}
    assert [n.version for n in lone.all(ev.Received)] == [5]


def test_an_older_boot_is_refused_though_nothing_of_it_was_applied(lone: Lone) -> None:
    lone.frame(2, Heads((lone.presence(1, 1, incarnation=WALL_MS + 5, boot_id=b"C" * 16),)))
    lone.frame(1, lone.offer(1, 9))
    assert lone.rejections == {"replay": 1}
    assert not lone.all(ev.Apply)


def test_bounds_hold_for_heads_as_well(lone: Lone) -> None:
    for changes in ({"base": 9, "version": 9}, {"round": 23}, {"mixed_round": 23}):
        header = msgspec.structs.replace(lone.header(4, 1), **changes)
        lone.frame(2, Heads((lone.sign(4, header),)))
    assert lone.rejections == {"bounds": 3}
    assert lone.ids[4] not in lone.core.heads.newest


def test_two_boots_in_one_incarnation_are_refused_but_prove_nothing(lone: Lone) -> None:
    lone.frame(1, lone.offer(1, 1))
    lone.frame(1, lone.offer(1, 1, b"12345678", boot_id=b"C" * 16))
    assert lone.rejections == {"replay": 1}
    assert not lone.all(ev.Equivocation)


def test_a_lower_version_of_a_newer_boot_is_taken(lone: Lone) -> None:
    lone.frame(1, lone.offer(1, 7))
    lone.frame(1, lone.offer(1, 1, incarnation=WALL_MS + 1, boot_id=b"C" * 16))
    assert lone.rejections == {}
    assert [n.version for n in lone.all(ev.Received)] == [7, 1]


def two_faces(lone: Lone, liar: int, version: int = 3) -> tuple[SignedHeader, SignedHeader]:
    one = lone.sign(liar, lone.header(liar, version))
    return one, lone.sign(liar, lone.header(liar, version, b"12345678"))


@pytest.mark.parametrize("liar", [1, 4])
def test_equivocation_is_proved_kept_and_passed_on(lone: Lone, liar: int) -> None:
    one, other = two_faces(lone, liar)
    lone.frame(2, Heads((one,)))
    assert not lone.all(ev.Equivocation)
    lone.frame(3, Heads((other,)))
    assert lone.all(ev.Equivocation) == [ev.Equivocation(lone.ids[liar], one, other)]
    record = ev.Quarantine(lone.ids[liar], one, other)
    assert lone.all(ev.Quarantine) == [record]
    assert lone.core.snapshot().quarantined == {lone.ids[liar]: record}
    for i in (1, 2, 3):
        assert Heads((one, other)) in lone.sent(Heads, i), "the proof is for everybody"
    # said once, and neither those who pass it on nor those who know less are accused
    for i in (1, 2, 3):
        lone.frame(i, Heads((one, other)))
        lone.frame(i, Heads((lone.sign(liar, lone.header(liar, 4)),)))
    assert lone.rejections == {}
    assert len(lone.all(ev.Equivocation)) == 1
    # a late link hears it as well, and so does the next process
    again = Lone(state=lone.core.snapshot())
    again.link(2)
    assert Heads((one, other)) in again.sent(Heads, 2)


def test_a_delta_and_a_keyframe_of_one_version_are_no_contradiction(lone: Lone) -> None:
    header = lone.header(4, 3)
    other = msgspec.structs.replace(header, kind=DELTA, base=2, root=b"r" * 32, length=4)
    lone.frame(2, Heads((lone.sign(4, header), lone.sign(4, other))))
    assert not lone.all(ev.Equivocation)


def test_nothing_is_taken_from_quarantine_not_even_what_was_verified(lone: Lone) -> None:
    good = lone.offer(1, 3)
    lone.frame(2, Heads((good.signed,)))
    lone.frame(3, Heads((two_faces(lone, 1)[1],)))
    lone.frame(1, good)
    lone.frame(1, lone.offer(1, 4))
    assert lone.rejections == {"foreign": 2}
    assert not lone.all(ev.Apply)


def test_an_old_boots_contradiction_still_is_one(lone: Lone) -> None:
    one, other = two_faces(lone, 4)
    newer = lone.presence(4, 9, 9, incarnation=WALL_MS + 9, boot_id=b"C" * 16)
    lone.frame(2, Heads((newer,)))
    lone.frame(2, Heads((one, other)))
    assert len(lone.all(ev.Equivocation)) == 1


def test_memory_of_headers_is_bounded(lone: Lone) -> None:
    peer = lone.core.links.peers[lone.ids[2]]
    for version in range(VERIFIED_MAX + 50):
        peer.tokens = 100.0
        lone.frame(2, Heads((lone.presence(4, 1, version),)))
    heads = lone.core.heads
    assert len(heads._verified) == VERIFIED_MAX
    assert len(heads._recent[lone.ids[4]]) == RECENT_MAX
    assert len(heads.newest) <= 4


# ── headers of our own ──


def own(lone: Lone, incarnation: int, version: int = 7, boot: bytes = BOOT) -> SignedHeader:
    return lone.sign(0, lone.header(0, version, incarnation=incarnation, boot_id=boot))


def test_a_later_boot_of_our_own_is_moved_past(lone: Lone) -> None:
    lone.frame(1, lone.hello(1, yours=own(lone, WALL_MS + 50)))
    (moved,) = lone.all(ev.Reincarnated)
    assert moved.incarnation == WALL_MS + 51
    last = lone.all(ev.Incarnation)[-1]
    assert last.incarnation == WALL_MS + 51
    lone.feed(ev.Trained(1, None, 1))
    (said,) = lone.all(ev.Publishing)
    assert (said.incarnation, said.version) == (WALL_MS + 51, 8)
    assert said.boot_id == last.boot_id


def offered_after(lone: Lone) -> list[ev.Record]:
    """The record that each offer of the own model waits for."""
    kept = {effect.id: effect.record for effect in lone.all(ev.Persist)}
    offers = [e for e in lone.all(ev.Send) if isinstance(decode(e.frame), Offer)]
    return [kept[effect.after or 0] for effect in offers]


def test_the_disk_takes_the_versions_number_while_the_model_trains(lone: Lone) -> None:
    (record,) = lone.all(ev.Reserved)
    assert lone.all(ev.Train) and not lone.all(ev.Trained)
    effects = lone.feed(ev.Trained(1, None, 1))
    assert not lone.all(ev.Reserved, effects), "one write a round"
    assert offered_after(lone) == [record] * 3
    assert record.version == lone.all(ev.Publishing)[0].version


def test_a_number_reserved_before_a_later_boot_was_proved_is_reserved_again(lone: Lone) -> None:
    ahead = lone.all(ev.Reserved)[-1].version
    lone.frame(1, Heads((own(lone, WALL_MS + 50, version=ahead - 1),)))
    moved = lone.all(ev.Incarnation)[-1]
    lone.feed(ev.Trained(1, None, 1))
    taken = offered_after(lone)
    assert taken == [ev.Reserved(moved.incarnation, moved.boot_id, ahead)] * 3
    assert lone.all(ev.Publishing)[0].incarnation == moved.incarnation


def test_the_same_incarnation_under_another_boot_is_moved_past(lone: Lone) -> None:
    lone.frame(1, Heads((own(lone, WALL_MS),)))
    assert lone.all(ev.Reincarnated)[0].incarnation == WALL_MS + 1


def test_our_own_present_and_past_headers_prove_nothing(lone: Lone) -> None:
    mine = lone.core.publisher
    lone.frame(1, Heads((mine.own_head, own(lone, WALL_MS - 1))))
    assert not lone.all(ev.Reincarnated)
    assert lone.rejections == {}


def test_a_forged_header_of_our_own_moves_nothing(lone: Lone) -> None:
    header = lone.header(0, 7, incarnation=WALL_MS + 50)
    raw = encode_header(header)
    forged = SignedHeader(raw, lone.secrets[lone.ids[1]].sign("header", raw))
    lone.frame(1, Heads((forged,)))
    lone.frame(1, lone.hello(1, yours=forged))
    lone.frame(1, Heads((own(lone, WALL_MS + 25 * 3600 * 1000),)))
    assert not lone.all(ev.Reincarnated)
    assert lone.rejections == {"signature": 2, "bounds": 1}


def test_a_wrong_proof_in_hello_is_counted_and_the_link_counts() -> None:
    lone = Lone()
    for i, yours in ((1, lone.presence(2, 5, incarnation=WALL_MS + 9)), (3, own(lone, 2**50))):
        lone.feed(ev.LinkUp(lone.ids[i]))
        lone.frame(i, lone.hello(i, yours=yours))
        assert lone.sent(Heads, i), "welcomed all the same"
    assert lone.rejections == {"foreign": 1, "bounds": 1}
    assert [n.member for n in lone.all(ev.Linked)] == [lone.ids[1], lone.ids[3]]
    assert not lone.all(ev.Reincarnated)


def test_after_moving_past_haves_of_the_old_boot_say_nothing(lone: Lone) -> None:
    lone.feed(ev.Trained(1, None, 1))
    before = lone.core.publisher.incarnation, lone.core.publisher.boot_id
    lone.have(1, 1)
    lone.frame(2, Heads((own(lone, WALL_MS + 50),)))
    lone.frame(1, Have(*before, 1, True, ""))
    assert lone.core.links.peers[lone.ids[1]].have_version == 0
    assert lone.rejections == {}


def test_a_header_verified_before_its_sender_booted_again_is_refused_after(lone: Lone) -> None:
    old = lone.sign(1, lone.header(1, 3))
    book = lone.core.heads
    book.check(old)
    book.check(old)
    book.check(lone.presence(1, 0, incarnation=WALL_MS + 1))
    with pytest.raises(Replayed, match="a newer is known"):
        book.check(old)
