"""Payloads on their way in: credit, broken links, newer versions, stalls."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lone import Lone, model

from crypto.hashing import leaf_digests, root
from node.protocol import incoming
from node.protocol.frames import chunk_prefix, decode
from node.protocol.incoming import (
    GIVE_UP_S,
    LINK_CHUNKS,
    NODE_CHUNKS,
    OVERTAKEN,
    STALL_MIN_S,
    STALL_S,
    Transfers,
)
from node.protocol.reading import Head
from node.types import events as ev
from node.types.messages import CHUNK_BYTES, Ask, Chunk, Gone, Heads, MiB, Want

STAR = [(0, i) for i in range(1, 141)]
ZEROS = bytes(CHUNK_BYTES)
SMALL = 16 * CHUNK_BYTES  # the largest that need not wait for another
LARGE = 18 * CHUNK_BYTES + 1000


@cache
def leaves_of(length: int) -> bytes:
    return leaf_digests(bytes(length))


class Link:
    """Transfers of one node; what is outstanding is counted from the Wants alone."""

    def __init__(self, length: int, count: int = 12) -> None:
        self.lone = Lone(edges=STAR[: count - 1], count=count, payload_bytes=length)
        self.context = self.lone.core.context
        self.transfers = Transfers(self.context)
        self.outstanding: dict[int, Counter[int]] = {i: Counter() for i in range(count)}
        self.stored: Counter[tuple[int, int]] = Counter()
        self.root = root(leaves_of(length), length)
        self.length = length
        self.take()

    def take(self) -> None:
        effects, self.context.effects = self.context.effects, []
        ids = self.lone.ids
        for effect in effects:
            if isinstance(effect, ev.Send) and isinstance(want := decode(effect.frame), Want):
                chunks = range(want.first, want.first + want.count)
                self.outstanding[ids.index(effect.peer)].update(chunks)
            if isinstance(effect, ev.StoreChunk):
                self.stored[ids.index(effect.member), effect.offset // CHUNK_BYTES] += 1
        assert max(sum(c.values()) for c in self.outstanding.values()) <= LINK_CHUNKS
        assert sum(sum(c.values()) for c in self.outstanding.values()) <= NODE_CHUNKS

    def offer(self, member: int, version: int = 1, via: int | None = None) -> None:
        data = self.lone.header(
            member, version, b"", root=self.root, model=self.root, length=self.length
        )
        head = Head(self.lone.sign(member, data), data)
        peer = self.lone.ids[member if via is None else via]
        self.transfers.begin(head, peer=peer, offer=b"", leaves=leaves_of(self.length))
        self.take()

    def deliver(self, link: int, index: int) -> bool:
        self.outstanding[link][index] -= 1
        size = min(CHUNK_BYTES, self.length - index * CHUNK_BYTES)
        chunk = Chunk(self.root, index, memoryview(ZEROS)[:size])
        done = self.transfers.receive(self.lone.ids[link], chunk)
        self.take()
        return done is not None

    def waiting(self) -> list[tuple[int, int]]:
        return [(i, k) for i, c in self.outstanding.items() for k, n in c.items() if n > 0]

    def cut(self, link: int) -> None:
        self.outstanding[link].clear()
        self.transfers.interrupted(self.lone.ids[link])
        self.take()


@given(st.randoms(use_true_random=False), st.sampled_from([SMALL, LARGE]))
@settings(max_examples=6, deadline=None)
def test_credit_is_never_exceeded_and_nothing_is_left_over(rng, length) -> None:  # type: ignore[no-untyped-def]
    link = Link(length)
    members = list(range(1, 12))
    done: set[int] = set()
    for member in members:
        link.offer(member)
    for step in range(2000):
        todo = link.waiting()
        if not todo:
            break
        where = rng.choice(sorted({i for i, _ in todo}))
        index = next(k for i, k in todo if i == where)  # links keep their order
        if step % 37 == 36:
            link.cut(where)
            link.offer(where)
        elif step % 53 == 52:
            link.offer(where)  # offered twice on one link: in flight stays in flight
        elif link.deliver(where, index):
            done.add(where)
    assert done == set(members)
    assert not link.transfers.by_member
    assert set(link.stored.values()) == {1}, "no chunk is fetched twice"
    assert len(link.stored) == 11 * -(-length // CHUNK_BYTES)


def test_one_relay_serves_many_members_within_the_credit_of_its_link() -> None:
    link = Link(6 * CHUNK_BYTES)
    for member in range(2, 9):
        link.offer(member, via=1)
    assert LINK_CHUNKS - 6 < sum(link.outstanding[1].values()) <= LINK_CHUNKS  # whole Wants of 6
    for _ in range(7 * 6):
        assert link.waiting(), "credit became free and nobody asked"
        link.deliver(*link.waiting()[0])
    assert not link.transfers.by_member


def test_who_found_no_credit_goes_on_as_soon_as_there_is_some() -> None:
    link = Link(SMALL)
    for member in range(1, 12):
        link.offer(member)
    short = [i for i in range(1, 12) if link.outstanding[i].total() < LINK_CHUNKS]
    before = sum(link.outstanding[i].total() for i in short)
    assert short
    for index in range(8):
        busy = next(i for i in range(1, 12) if i not in short and link.outstanding[i][index])
        link.deliver(busy, index)
    assert sum(link.outstanding[i].total() for i in short) > before


def test_who_waits_for_credit_is_not_said_to_stall() -> None:
    link = Link(SMALL)
    for member in range(1, 12):
        link.offer(member, via=1)
    held = {i: link.transfers.by_member[link.lone.ids[i]] for i in range(1, 12)}
    idle = [i for i, transfer in held.items() if not transfer.waiting]
    assert idle
    link.context.now += STALL_S
    for counter in link.outstanding.values():
        counter.clear()
    link.transfers.wake()
    link.take()
    assert {held[i].stalls for i in idle} == {0}
    assert {held[i].stalls for i in held if i not in idle} == {1}


def test_one_large_payload_at_a_time() -> None:
    link = Link(LARGE)
    for member in (1, 2, 3):
        link.offer(member)
    active = [i for i in (1, 2, 3) if link.outstanding[i]]
    assert len(active) == 1
    while link.outstanding[active[0]].total():
        link.deliver(active[0], min(k for i, k in link.waiting()))
    assert len([i for i in (1, 2, 3) if link.outstanding[i].total()]) == 1


def test_a_slow_large_payload_lets_the_others_go_first() -> None:
    """One chunk every 1.9 s must not keep another neighbour's payload from coming."""
    link = Link(LARGE)
    link.offer(1)
    link.offer(2)
    slow = next(i for i in (1, 2) if link.outstanding[i])
    quick = 3 - slow
    for _ in range(2):
        link.context.now += 1.9
        link.deliver(slow, min(k for i, k in link.waiting() if i == slow))
    assert link.outstanding[quick].total(), "the slice of the slow one is over"
    while not link.deliver(quick, min(k for i, k in link.waiting() if i == quick)):
        pass
    # its turn again: what was in flight still counts, and nothing is fetched twice
    while not link.deliver(slow, min(k for i, k in link.waiting() if i == slow)):
        pass
    assert set(link.stored.values()) == {1}


def test_a_large_payload_whose_link_breaks_lets_the_next_one_begin() -> None:
    link = Link(LARGE)
    link.offer(1)
    link.offer(2)
    first = next(i for i in (1, 2) if link.outstanding[i])
    link.cut(first)
    assert link.outstanding[3 - first].total()
    assert not link.outstanding[first].total(), "nobody asks over a broken link"


def bulk(length: int = LARGE, **more: object) -> Lone:
    lone = Lone(payload_bytes=length, **more)  # type: ignore[arg-type]
    lone.link(1, 2, 3)
    return lone


def wants(lone: Lone, effects: list[ev.Effect]) -> list[int]:
    found = [decode(e.frame) for e in effects if isinstance(e, ev.Send)]
    return [k for w in found if isinstance(w, Want) for k in range(w.first, w.first + w.count)]


def test_from_offer_to_apply_and_have() -> None:
    lone = bulk(hold=(ev.Train, ev.Apply))
    todo = wants(lone, lone.frame(1, lone.offer(1, 1)))
    assert todo == list(range(16))
    while todo:
        todo += wants(lone, lone.chunk(1, 1, todo.pop(0)))
    offsets = [s.offset for s in lone.all(ev.StoreChunk)]
    assert offsets == [k * CHUNK_BYTES for k in range(19)]
    assert {s.length for s in lone.all(ev.StoreChunk)} == {LARGE}
    (apply,) = lone.all(ev.Apply)
    assert not lone.all(ev.Receipt)
    lone.feed(ev.Applied(apply.member, apply.root, True))
    receipt = next(e for e in lone.all(ev.Persist) if isinstance(e.record, ev.Receipt))
    assert lone.effects[-1] != receipt
    have = next(e for e in lone.all(ev.Send) if e.after == receipt.id)
    assert lone.effects.index(receipt) < lone.effects.index(have)


def test_a_broken_link_costs_the_chunks_in_flight_alone() -> None:
    lone = bulk()
    lone.frame(1, lone.offer(1, 1))
    for index in (0, 1, 5):
        lone.chunk(1, 1, index)
    lone.feed(ev.LinkDown(lone.ids[1], "reset"))
    late = len(lone.effects)
    lone.chunk(1, 1, 2)
    assert lone.effects[late:] == []
    lone.link(1)
    todo = wants(lone, lone.frame(1, lone.offer(1, 1)))
    assert {0, 1, 5}.isdisjoint(todo)
    assert sorted(todo)[:3] == [2, 3, 4]
    while todo:
        todo += wants(lone, lone.chunk(1, 1, todo.pop(0)))
    assert len(lone.all(ev.StoreChunk)) == 19
    assert lone.rejections == {}
    assert lone.all(ev.Received)


def test_a_newer_version_cancels_an_unfinished_older_one() -> None:
    lone = bulk()
    lone.frame(1, lone.offer(1, 1))
    lone.chunk(1, 1, 0)
    old = lone.all(ev.StoreChunk)[0].root
    effects = lone.frame(1, lone.offer(1, 2))
    assert ev.DropPayload(lone.ids[1], old) in effects
    assert wants(lone, effects) == list(range(16))
    lone.chunk(1, 1, 1)
    assert lone.rejections == {"bounds": 1}


def test_a_stalled_transfer_asks_again_and_is_given_up() -> None:
    lone = bulk()
    lone.frame(1, lone.offer(1, 1))
    lone.chunk(1, 1, 0)
    asked_again = []
    for turn in range(1, round(GIVE_UP_S / STALL_MIN_S) + 1):
        for i in (1, 2, 3):  # the link itself is alive
            lone.frame(i, Heads(()))
        assert lone.rejections == {}
        asked_again += [(turn * STALL_MIN_S, k) for k in wants(lone, lone.wake(turn * STALL_MIN_S))]
    # the last one asked for, each time after twice as long, but for the longest wait
    times = [at for at, _ in asked_again]
    assert times == [0.5, 1.5, 3.5, 7.5, 12.5, 17.5, 22.5, 27.5]
    assert {k for _, k in asked_again} == {15}
    assert lone.rejections == {"bounds": 1}
    assert not lone.core.reception.transfers.by_member
    assert lone.all(ev.DropPayload)


def test_gone_ends_a_transfer_and_the_next_begins() -> None:
    lone = bulk()
    offer = lone.offer(1, 1)
    lone.frame(1, offer)
    lone.frame(2, lone.offer(2, 1))
    gone = lone.header(1, 1).root
    lone.frame(3, Gone(gone))  # not its transfer
    assert not lone.all(ev.DropPayload)
    effects = lone.frame(1, Gone(gone))
    assert lone.all(ev.DropPayload, effects) == [ev.DropPayload(lone.ids[1], gone)]
    assert wants(lone, effects) == list(range(16))


@pytest.mark.parametrize("damage", ["flip", "short", "long", "empty"])
def test_wrong_chunks_are_counted_and_the_right_one_still_counts(damage: str) -> None:
    lone = bulk()
    lone.frame(1, lone.offer(1, 1))
    data = bytearray(CHUNK_BYTES)
    header = lone.header(1, 1)
    bad = {"flip": bytes(data), "short": data[:-1], "long": data + b"x", "empty": b""}[damage]
    lone.frame(1, chunk_prefix(header.root, 0) + bytes(bad))
    assert sum(lone.rejections.values()) == 1
    assert not lone.all(ev.StoreChunk)
    lone.chunk(1, 1, 0)
    assert len(lone.all(ev.StoreChunk)) == 1
    lone.chunk(1, 1, 0)  # twice
    lone.chunk(2, 1, 1)  # from somebody else
    lone.chunk(1, 1, 18)  # not asked for yet
    assert len(lone.all(ev.StoreChunk)) == 1
    assert sum(lone.rejections.values()) == 4


def test_what_is_in_hand_is_not_asked_for_again() -> None:
    lone = bulk(8 * MiB)
    for _ in range(2):
        lone.frame(1, lone.offer(1, 1))
    assert sorted(wants(lone, lone.effects)) == list(range(16))
    assert not lone.sent(Ask)


def test_a_lost_chunk_is_asked_for_again_when_later_ones_have_come() -> None:
    lone = bulk()
    todo = wants(lone, lone.frame(1, lone.offer(1, 1)))
    lost = todo.pop(4)
    again = None
    for count, index in enumerate(todo[:8]):
        asked = wants(lone, lone.chunk(1, 1, index))
        if lost in asked:
            again = count
            break
    # three chunks that were asked for after it are here: 5, 6 and 7
    assert again == 4 + OVERTAKEN - 1
    assert lone.rejections == {}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("loss", [0.02, 0.2, 0.6])
def test_a_broker_that_loses_chunks_delays_a_payload_and_no_more(seed: int, loss: float) -> None:
    """Wants are answered in order, 20 ms a chunk; each chunk is lost with this chance."""
    lone = bulk(hold=(ev.Train, ev.Apply))
    rng = random.Random(seed)
    queue = wants(lone, lone.frame(1, lone.offer(1, 1)))
    now, sent = 0.0, 0
    while not lone.all(ev.Apply):
        if queue:
            now, sent = now + 0.02, sent + 1
            lone.wake(now)
            index = queue.pop(0)
            effects = [] if rng.random() < loss else lone.chunk(1, 1, index)
        else:
            now += 0.05
            for i in (1, 2, 3):
                lone.frame(i, Heads(()))
            effects = lone.wake(now)
        queue += wants(lone, effects)
        assert now < GIVE_UP_S
    assert lone.rejections == {}
    assert len(lone.all(ev.StoreChunk)) == 19
    if loss == 0.02:
        assert now < 19 * 0.02 + 6 * STALL_MIN_S
        assert sent < 30


def test_slow_large_payloads_in_turns_get_their_last_chunk_again() -> None:
    """A chunk every 1.5 s: six seconds are no silence yet, and a turn is over after two."""
    lone = bulk(hold=(ev.Train, ev.Apply))
    links: dict[int, list[int]] = {}
    for i in (1, 2):
        links[i] = wants(lone, lone.frame(i, lone.offer(i, 1)))
    lost, now = set(), 0.0
    while len(lone.all(ev.Apply)) < 2:
        now += 0.5
        for i in (1, 2, 3):
            lone.frame(i, Heads(()))
        sent = lone.wake(now)
        for i in (1, 2):
            if links[i] and now % 1.5 == 0:
                index = links[i].pop(0)
                if index == 18 and i not in lost:
                    lost.add(i)
                else:
                    sent = (*sent, *lone.chunk(i, 1, index))
        for effect in sent:
            if isinstance(effect, ev.Send) and isinstance(want := decode(effect.frame), Want):
                chunks = range(want.first, want.first + want.count)
                links[lone.ids.index(effect.peer)] += chunks
        assert now < 80
    assert lost == {1, 2}
    assert lone.rejections == {}


def test_a_chunk_that_was_late_and_not_lost_is_nobodys_fault() -> None:
    lone = bulk()
    lone.frame(1, lone.offer(1, 1))
    for index in (1, 2, 3):
        lone.chunk(1, 1, index)  # 0 is asked for again
    lone.chunk(1, 1, 0)
    lone.chunk(1, 1, 0)  # and comes twice
    assert lone.rejections == {}
    assert len(lone.all(ev.StoreChunk)) == 4
    lone.chunk(1, 1, 0)
    assert lone.rejections == {"bounds": 1}, "asked for twice, it may come twice"


def test_a_link_that_stood_still_brings_one_chunk_too_many_each_time_we_asked() -> None:
    lone = bulk(SMALL)
    todo = wants(lone, lone.frame(1, lone.offer(1, 1)))
    todo.pop(0)
    lone.chunk(1, 1, 0)
    again = []
    for now in (1.0, 2.0, 3.0, 4.0):
        again += wants(lone, lone.wake(now))
    assert again == [15, 15, 15]
    assert all(not wants(lone, lone.chunk(1, 1, k)) for k in todo + again)
    assert lone.rejections == {}
    assert lone.all(ev.Received)


def test_what_may_come_twice_is_bounded_and_ends_with_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incoming, "SPARES_MAX", 4)
    lone = bulk(40 * CHUNK_BYTES)
    queue, lost = wants(lone, lone.frame(1, lone.offer(1, 1))), set()
    while lone.core.reception.transfers.by_member and len(lost) < 8:
        index = queue.pop(0)
        if index % 3 == 0 and index not in lost:
            lost.add(index)
        else:
            queue += wants(lone, lone.chunk(1, 1, index))
    assert len(lone.core.reception.transfers._spares) == 4
    lone.feed(ev.LinkDown(lone.ids[1], "reset"))
    assert not lone.core.reception.transfers._spares


def test_one_model_under_two_versions_is_not_dropped_with_the_second() -> None:
    """A version that waits to be applied keeps its bytes, whatever becomes of a later offer."""
    lone = bulk(CHUNK_BYTES, hold=(ev.Train, ev.Apply))
    lone.frame(1, lone.offer(1, 1))
    lone.chunk(1, 1, 0)
    (first,) = lone.all(ev.Apply)
    # while the first is applied the second waits
    lone.frame(1, lone.offer(1, 2, round=1))
    lone.chunk(1, 2, 0)
    assert len(lone.all(ev.Apply)) == 1
    again = lone.offer(1, 3, model(2, CHUNK_BYTES), round=1)
    seen = len(lone.effects)
    assert wants(lone, lone.frame(1, again)) == [], "its bytes are here"
    lone.frame(1, Gone(root(again.leaves, CHUNK_BYTES)))
    assert not lone.all(ev.DropPayload, lone.effects[seen:])
    lone.frame(1, lone.offer(1, 4))
    lone.frame(1, lone.offer(1, 5))
    lone.feed(ev.Applied(first.member, first.root, True))
    applied = lone.all(ev.Apply)[1:]
    dropped = [drop.root for drop in lone.all(ev.DropPayload)]
    assert [apply.header.version for apply in applied] == [3]
    assert applied[0].root not in dropped


def test_who_publishes_again_and_again_does_not_take_the_others_turn() -> None:
    link = Link(LARGE)
    link.context.now = 10.0
    link.offer(1)
    link.offer(2)
    link.context.now = 13.0
    link.transfers.wake()  # the turn is the second's
    assert link.transfers.by_member[link.lone.ids[2]].active
    data = bytes([1]) + bytes(LARGE - 1)
    for version in range(2, 8):
        link.context.now += 1.0
        leaves = leaf_digests(bytes([version]) + data[1:])
        digest = root(leaves, LARGE)
        head = link.lone.header(2, version, b"", root=digest, model=digest, length=LARGE)
        link.transfers.begin(
            Head(link.lone.sign(2, head), head), peer=link.lone.ids[2], offer=b"", leaves=leaves
        )
        assert link.transfers.by_member[link.lone.ids[1]].active, "it has waited for its turn"
        if version == 3:
            break


def test_links_that_send_nothing_do_not_hold_all_the_credit() -> None:
    """Eight liars could: sixteen chunks each, and one of them just before time is up."""
    link = Link(SMALL)
    for liar in range(1, 11):
        link.offer(liar)
    link.offer(11)
    assert link.outstanding[11].total() >= incoming.RESERVED_CHUNKS
    assert sum(c.total() for c in link.outstanding.values()) > NODE_CHUNKS - 2 * LINK_CHUNKS


def test_more_neighbours_than_the_credit_has_chunks_all_get_theirs() -> None:
    link = Link(2 * CHUNK_BYTES, count=141)
    for member in range(1, 141):
        link.offer(member)
    assert link.waiting()
    while todo := link.waiting():
        link.deliver(*todo[0])
    assert not link.transfers.by_member
