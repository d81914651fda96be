"""A stream over messages that a broker loses, doubles, reorders and replays; no socket."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.transport.mqtt_pipe import (
    ACK_LATER_S,
    RTO_FIRST_S,
    RTO_MAX_S,
    WINDOW_BYTES,
    Pipe,
    open_sealed,
    seal,
)

KEY = bytes(range(32))


def exchange(seed: int, there: bytes, back: bytes, *, loss: float, chaos: float) -> Pipe:
    """Two ends in virtual time under a broker drawn from ``seed``, until both have it all."""
    rng = random.Random(seed)
    ends = Pipe(segment_bytes=700), Pipe(segment_bytes=500)
    ends[0].send(there)
    ends[1].send(back)
    got = [bytearray(), bytearray()]
    flying: list[tuple[float, int, bytes]] = []
    seen: list[tuple[int, bytes]] = []
    now = 0.0
    while bytes(got[1]) != there or bytes(got[0]) != back or any(e.backlog for e in ends):
        assert now < 3600, "it got stuck"
        for me, end in enumerate(ends):
            end.wake(now)
            while (body := end.next(now)) is not None:
                seen.append((1 - me, body))
                if rng.random() >= loss:
                    late = rng.uniform(0, 1) if rng.random() < chaos else 0.01
                    flying.append((now + late, 1 - me, body))
                if rng.random() < chaos:  # a duplicate, or one of long ago
                    flying.append((now + rng.uniform(0, 2), *rng.choice(seen)))
        flying.sort(key=lambda one: one[0])
        times = [one[0] for one in flying[:1]]
        times += [at for end in ends if (at := end.wake_at()) is not None]
        now = max(now, min(times)) + 1e-6
        while flying and flying[0][0] <= now:
            _, to, body = flying.pop(0)
            fresh = ends[to].receive(body, now)
            got[to] += fresh or b""
        for mine, wanted in ((got[1], there), (got[0], back)):
            assert wanted.startswith(bytes(mine)), "a gap or a duplicate reached the stream"
    return ends[0]


@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(0, 20_000), st.integers(0, 5_000)),
    loss=st.sampled_from([0.0, 0.02, 0.3]),
    chaos=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_whatever_a_broker_does_the_stream_is_whole_and_in_order(seed, sizes, loss, chaos):
    rng = random.Random(seed)
    exchange(seed, rng.randbytes(sizes[0]), rng.randbytes(sizes[1]), loss=loss, chaos=chaos)


def test_a_broker_that_behaves_is_sent_every_byte_once():
    assert exchange(1, bytes(50_000), bytes(9_000), loss=0, chaos=0).resent_bytes == 0


def test_what_was_lost_goes_again_as_soon_as_the_gap_shows():
    near, far = Pipe(segment_bytes=10), Pipe()
    near.send(b"0123456789abcdefghij")
    near.next(0.0)  # lost
    assert far.receive(near.next(0.0), 0.01) is None
    answer = far.next(0.01)
    assert answer is not None, "a gap is told at once"
    near.receive(answer, 0.5)
    assert bytes(far.receive(near.next(0.5), 0.51)) == b"0123456789"


def test_of_a_piece_that_overlaps_only_the_rest_is_taken():
    near, far = Pipe(), Pipe()
    near.send(b"abc")
    assert bytes(far.receive(near.next(0.0), 0.0)) == b"abc"
    near.send(b"def")
    near.rewind(0.5)
    assert bytes(far.receive(near.next(0.5), 0.5)) == b"def"


def test_no_more_than_a_window_is_on_its_way():
    pipe = Pipe()
    pipe.send(bytes(3 * WINDOW_BYTES))
    sent = 0
    while (body := pipe.next(0.0)) is not None:
        sent += len(body) - 17
    assert sent == WINDOW_BYTES and pipe.backlog == 3 * WINDOW_BYTES


def test_without_an_answer_it_tries_ever_more_rarely():
    pipe, now, times = Pipe(), 0.0, []
    pipe.send(b"x")
    for _ in range(5):
        assert pipe.next(now) is not None
        times.append(now)
        now = pipe.wake_at()
        pipe.wake(now)
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert waits == [RTO_FIRST_S, 2.0, RTO_MAX_S, RTO_MAX_S]


def test_an_answer_waits_a_moment_for_company_and_a_ping_does_not():
    near, far = Pipe(), Pipe()
    near.send(b"x")
    far.receive(near.next(0.0), 0.0)
    assert far.next(0.0) is None and far.wake_at() == ACK_LATER_S
    assert far.next(ACK_LATER_S) is not None
    near.ping()
    far.receive(near.next(1.0), 1.0)
    assert far.next(1.0) is not None


@pytest.mark.parametrize("body", [b"", b"short", bytes(16), b"\xff" * 17, b"\xff" * 40])
def test_garbage_moves_nothing(body):
    pipe = Pipe()
    pipe.send(b"abc")
    assert pipe.receive(body, 0.0) is None
    assert pipe.received == 0 and pipe.backlog == 3


def test_only_who_has_the_key_makes_a_message_that_counts():
    message = seal(KEY, b"body")
    assert bytes(open_sealed(KEY, message)) == b"body"
    assert open_sealed(bytes(32), message) is None
    for place in range(len(message)):
        changed = bytearray(message)
        changed[place] ^= 1
        assert open_sealed(KEY, bytes(changed)) is None
    assert open_sealed(KEY, message[:10]) is None
