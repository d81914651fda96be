"""What one neighbour may cost by asking, sending or publishing too much."""

from __future__ import annotations

from cores import policy
from lone import WALL_MS, Lone

from node.protocol.frames import chunk_prefix
from node.protocol.incoming import GIVE_UP_S, SLICE_S
from node.protocol.peers import RATE_BURST
from node.protocol.publisher import SERVED_MAX
from node.types import events as ev
from node.types.messages import CHUNK_BYTES, INLINE_BYTES, Ask, MiB, Ping, Want


def publishing(payload_bytes: int) -> Lone:
    """A node that has published its first version and waits for those of the others."""
    lone = Lone(policy=policy(20, 2), payload_bytes=payload_bytes, hold=(ev.Train, ev.Apply))
    lone.link(1, 2, 3)
    lone.feed(ev.Trained(1, 0.5, 1))
    return lone


def test_one_payload_is_sent_to_one_neighbour_a_bounded_number_of_times() -> None:
    lone = publishing(3 * CHUNK_BYTES)
    payload = lone.core.publisher.payload
    assert payload is not None
    for _ in range(100):
        lone.frame(1, Want(payload.root, 0, 3))
    assert len(lone.all(ev.SendChunk)) == 3 * SERVED_MAX
    assert lone.rejections == {"bounds": 100 - SERVED_MAX}
    lone.frame(2, Want(payload.root, 0, 3))
    assert len(lone.all(ev.SendChunk)) == 3 * SERVED_MAX + 3, "the others get theirs"


def test_a_new_version_may_be_asked_for_again() -> None:
    lone = publishing(3 * CHUNK_BYTES)
    for round_ in (1, 2):
        payload = lone.core.publisher.payload
        assert payload is not None
        for _ in range(SERVED_MAX + 1):
            lone.frame(1, Want(payload.root, 0, 3))
        assert len(lone.all(ev.SendChunk)) == 3 * SERVED_MAX * round_
        for at in (10.0, 20.0, 30.0):  # nobody else's version comes
            for neighbour in (1, 2, 3):
                lone.frame(neighbour, Ping())
            lone.wake(at + 31 * (round_ - 1))
        lone.feed(ev.Trained(round_ + 1, 0.5, 1))


def test_who_asks_for_the_same_offer_again_pays_for_its_bytes() -> None:
    lone = publishing(INLINE_BYTES)
    before = len(lone.effects)
    for _ in range(int(RATE_BURST)):
        lone.frame(1, Ask(lone.ids[0]))
    sent = sum(len(e.frame) for e in lone.effects[before:] if isinstance(e, ev.Send))
    assert sent < RATE_BURST * INLINE_BYTES / 2 + MiB
    assert lone.rejections["rate"] > RATE_BURST / 4


def test_chunks_that_nobody_asked_for_end_the_link_and_no_other() -> None:
    lone = publishing(3 * CHUNK_BYTES)
    frame = chunk_prefix(bytes(32), 0) + bytes(100)
    for _ in range(int(RATE_BURST) + 1):
        lone.frame(1, frame)
    (hangup,) = lone.all(ev.Hangup)
    assert hangup.peer == lone.ids[1] and "nobody asked for" in hangup.why
    assert [peer.linked for peer in lone.core.links.peers.values()].count(True) == 2


def test_who_publishes_and_publishes_does_not_decide_how_long_rounds_wait() -> None:
    """Late versions of one round, from one boot after the other, are one arrival."""
    lone = Lone(policy=policy(20, 2, deadline_max_s=2.0))
    lone.link(1, 2, 3)
    lone.feed(ev.Trained(1, 0.5, 1))
    lone.wake(2.0)
    assert lone.core.round == 1
    for version in range(1, 60):
        lone.now += 0.01
        boot = {"incarnation": WALL_MS + version, "boot_id": version.to_bytes(16, "big")}
        lone.frame(1, lone.offer(1, version, round=1, **boot))
    assert lone.core.links.peers[lone.ids[1]].floor.header.version == 59  # type: ignore[union-attr]
    assert len(lone.core.rounds.arrivals.seen()) == 1


def test_of_one_round_one_version_is_applied() -> None:
    """Who publishes a round again and again keeps neither learner nor disk busy."""
    lone = Lone(policy=policy(20, 2, deadline_max_s=2.0))
    lone.link(1, 2, 3)
    for version in range(1, 60):
        lone.now += 0.01
        lone.frame(1, lone.offer(1, version, round=1))
    assert len(lone.all(ev.Receipt)) == 1
    assert lone.rejections == {"replay": 58}
    lone.frame(1, lone.offer(1, 60, round=2))
    assert len(lone.all(ev.Receipt)) == 1, "it waits: round 1 is in hand"
    lone.frame(1, lone.offer(1, 61, round=1, incarnation=WALL_MS + 1, boot_id=b"2" * 16))
    assert len(lone.all(ev.Receipt)) == 2, "a later boot may publish its last round again"


def test_a_large_transfer_that_stalled_is_not_given_up_for_the_time_of_others() -> None:
    """Sixteen large payloads in turns: those of fifteen others take half a minute."""
    size = 20 * CHUNK_BYTES
    count = 18
    edges = [(0, i) for i in range(1, count)]
    lone = Lone(edges=edges, count=count, payload_bytes=size)
    lone.link(*range(1, count))
    for member in range(1, count):
        lone.frame(member, lone.offer(member, member))
    transfers = lone.core.reception.transfers
    first = next(m for m, t in transfers.by_member.items() if t.active)
    lone.chunk(lone.ids.index(first), lone.ids.index(first), 0)  # this link's pace is known now
    at, again = 0.0, False
    while not again:  # each is silent in its turn, but every link says that it is there
        at += 0.25
        lone.now = at
        for member in range(1, count):
            lone.frame(member, Ping())
        lone.wake(at)
        assert first in transfers.by_member, f"given up after {at} s"
        again = at > GIVE_UP_S and transfers.by_member[first].active
        assert at < 2 * count * SLICE_S
    lone.wake(at + 0.5)
    assert first in transfers.by_member, "it has had some two seconds of silence"
