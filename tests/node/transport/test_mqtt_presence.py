"""Presence: only a member's own, only while it is fresh, never an older one."""

from __future__ import annotations

import msgspec
import pytest
from links_bench import IDS, KEYS, Bench, play

from crypto.purposes import HEADER, PRESENCE
from node.errors import RemoteProtocolError
from node.transport.mqtt_presence import EXPIRES_S, LONGEST_MS, SKEW_MS, Presence, Presences

NOW = 1_800_000_000_000
TCP = ("tcp://gv.example:7400",)


def of(me: int, *, consortium: bytes = bytes(32), epoch: int = 1) -> Presences:
    return Presences(
        IDS[me],
        consortium=consortium,
        epoch=epoch,
        keys={IDS[n]: KEYS[n].public for n in range(3)},
        sign=KEYS[me].sign,
        addresses=TCP,
    )


def signed(n: int, purpose: str = PRESENCE, **changes) -> bytes:
    fields = {
        "consortium": bytes(32),
        "epoch": 1,
        "member": IDS[1],
        "sequence": NOW,
        "until": NOW + 60_000,
        "addresses": TCP,
    }
    body = msgspec.msgpack.encode(Presence(**{**fields, **changes}))
    return msgspec.msgpack.encode([body, KEYS[n].sign(purpose, body)])


def test_a_member_is_here_until_its_word_expires():
    here, message = of(0), of(1).own(NOW)
    assert here.take(IDS[1], message, NOW + 5).addresses == TCP
    assert here.here(IDS[1], NOW + 5) and here.addresses(IDS[1], NOW + 5) == TCP
    gone_at = NOW + int(EXPIRES_S * 1000) + SKEW_MS + 1
    assert not here.here(IDS[1], gone_at) and here.addresses(IDS[1], gone_at) == ()
    assert not here.here(IDS[2], NOW)


def test_each_own_presence_is_newer_than_the_last_whatever_the_clock_does():
    mine, here = of(1), of(0)
    for now in (NOW, NOW, NOW - 3000):
        here.take(IDS[1], mine.own(now), NOW)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "malformed"),
        (b"\xc1" * 50, "malformed"),
        (signed(1)[:-1], "malformed"),
        (signed(1, addresses=("http://x",)), "malformed"),
        (signed(2), "signature"),  # another member's key
        (signed(1, purpose=HEADER), "signature"),  # a signature made for something else
        (signed(2, member=IDS[2]), "foreign"),  # another member's presence in this one's place
        (signed(1, consortium=bytes([1]) * 32), "foreign"),
        (signed(1, epoch=2), "foreign"),
        (signed(1, until=NOW - SKEW_MS - 1), "expired"),
        (signed(1, until=NOW + LONGEST_MS + 1), "expired"),  # for ever
        (signed(1, sequence=NOW - 2), "replay"),
    ],
)
def test_what_is_not_its_own_fresh_word_is_refused(message, reason):
    here = of(0)
    here.take(IDS[1], signed(1, sequence=NOW - 1), NOW)
    with pytest.raises(RemoteProtocolError) as caught:
        here.take(IDS[1], message, NOW)
    assert caught.value.reason == reason
    assert here.here(IDS[1], NOW)


def test_a_cleared_topic_means_that_it_left():
    here = of(0)
    here.take(IDS[1], signed(1), NOW)
    here.gone(IDS[1])
    assert not here.here(IDS[1], NOW)
    with pytest.raises(RemoteProtocolError):
        here.take(IDS[1], signed(1, sequence=NOW - 1), NOW)  # the old one again


def test_a_broker_that_answers_with_somebody_elses_presence_is_counted_and_ignored():
    async def scene(bench: Bench):
        a, b, *_ = await bench.pair(broker={"version": "3.1.1"})
        await bench.until(lambda: a.presences.here(b.me, _now()))
        place = a._topic("at", a._seats[b.me].hex())
        before = a.presences._newest[b.me]
        a.session.post(place, a.presences.own(_now()), retain=True)
        await bench.until(lambda: a.stats.refused["presence-foreign"] == 1)
        a.session.post(place, b"garbage", retain=True)
        await bench.until(lambda: a.stats.refused["presence-malformed"] == 1)
        assert a.presences._newest[b.me] == before
        assert a.links[b.me] and bench.heard[0].of("down") == []

    play("amqtt", scene)


def _now() -> int:
    import time

    return time.time_ns() // 1_000_000
