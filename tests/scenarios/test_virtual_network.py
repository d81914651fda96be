"""The virtual network: order, latency, bandwidth, loss, cuts; frames are bytes, ends a recorder."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import LocalProtocolError
from scenarios.network import MS, SECOND, Clock, Network
from scenarios.vocabulary import LinkShape


class Recorder:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen: list[tuple[float, int, int, object]] = []

    def _add(self, node: int, peer: int, what: object) -> None:
        self.seen.append((self.clock.now / MS, node, peer, what))

    def deliver(self, node: int, peer: int, frame: bytes, digest: bytes) -> None:
        self._add(node, peer, frame)

    def link_up(self, node: int, peer: int) -> None:
        self._add(node, peer, "up")

    def link_down(self, node: int, peer: int, why: str) -> None:
        self._add(node, peer, f"down: {why}")

    def dial_failed(self, node: int, peer: int, why: str) -> None:
        self._add(node, peer, f"failed: {why}")


def make(
    nodes: int = 2,
    *,
    bandwidth: float | None = None,
    broker: bool = False,
    seed: int = 0,
    **shape: float,
) -> tuple[Clock, Recorder, Network]:
    clock = Clock()
    ends = Recorder(clock)
    rng = random.Random(seed)
    network = Network(clock, ends, rng, nodes=nodes, bandwidth=bandwidth, broker=broker)
    for a in range(nodes):
        for b in range(a):
            values = {"latency_ms": 10.0, "jitter_ms": 0.0, "loss": 0.0, **shape}
            network.add_link(b, a, LinkShape(**values))
        network.boot(a)
    return clock, ends, network


def run(clock: Clock) -> None:
    while clock.step():
        pass


def linked(**options: float) -> tuple[Clock, Recorder, Network]:
    clock, ends, network = make(**options)  # type: ignore[arg-type]
    network.dial(0, 1)
    run(clock)
    ends.seen.clear()
    return clock, ends, network


def test_a_dial_takes_two_round_trips_and_the_other_end_half_a_trip_more() -> None:
    clock, ends, network = make()
    network.dial(0, 1)
    network.dial(1, 0)  # both at once: one link
    run(clock)
    assert ends.seen == [(40.0, 0, 1, "up"), (50.0, 1, 0, "up")]


def test_a_dial_to_a_dead_node_is_refused() -> None:
    clock, ends, network = make()
    network.kill(1, "reset")
    network.dial(0, 1)
    run(clock)
    assert ends.seen == [(40.0, 0, 1, "failed: connection refused")]


def test_a_cut_breaks_both_ends_loses_what_is_on_the_wire_and_lets_nobody_dial() -> None:
    clock, ends, network = linked()
    network.send(0, 1, b"lost", b"")
    network.cut(0, 1)
    network.dial(0, 1)
    run(clock)
    said = [what for _, _, _, what in ends.seen]
    assert said == ["down: partitioned", "down: partitioned", "failed: no answer"]
    network.heal(0, 1)
    network.dial(1, 0)
    run(clock)
    assert [what for _, _, _, what in ends.seen[3:]] == ["up", "up"]


def test_what_a_cut_link_lost_does_not_arrive_over_the_next_one() -> None:
    clock, ends, network = linked(latency_ms=1000.0)
    network.send(0, 1, b"lost", b"")
    network.cut(0, 1)
    network.heal(0, 1)
    network.reshape(0, 1, LinkShape(latency_ms=1, jitter_ms=0, loss=0))
    network.dial(0, 1)
    run(clock)
    said = [what for _, _, _, what in ends.seen]
    assert said == ["down: partitioned", "down: partitioned", "up", "up"]


def test_a_reset_breaks_a_link_once_and_both_ends_may_dial_at_once() -> None:
    clock, ends, network = linked()
    network.send(0, 1, b"lost", b"")
    begun = clock.now / MS
    network.reset(0, 1)
    network.dial(0, 1)
    run(clock)
    assert [(at - begun, what) for at, _, _, what in ends.seen] == [
        (0.0, "down: reset"),
        (0.0, "down: reset"),
        (40.0, "up"),
        (50.0, "up"),
    ]


def test_a_reset_heals_no_partition() -> None:
    clock, ends, network = linked()
    network.cut(0, 1)
    network.reset(0, 1)
    network.dial(0, 1)
    run(clock)
    said = [what for _, _, _, what in ends.seen]
    assert said == ["down: partitioned", "down: partitioned", "failed: no answer"]


def test_a_dial_begun_in_a_partition_succeeds_once_it_is_healed() -> None:
    clock, ends, network = make()
    network.cut(0, 1)
    network.dial(0, 1)
    network.heal(0, 1)
    run(clock)
    assert [what for _, _, _, what in ends.seen] == ["up", "up"]


@pytest.mark.parametrize("bandwidth", [None, 1.0])
def test_what_a_node_said_before_its_end_arrives_before_the_link_breaks(
    bandwidth: float | None,
) -> None:
    clock, ends, network = make(nodes=4, bandwidth=bandwidth)
    for node in (0, 2, 3):
        network.dial(node, 1)
    run(clock)
    ends.seen.clear()
    # at 1 Mbit/s the downlink of 1 is busy with these until 90 ms from now
    network.send(2, 1, bytes(5000), b"")
    network.send(3, 1, bytes(5000), b"")
    network.reshape(0, 1, LinkShape(latency_ms=60, jitter_ms=0, loss=0))
    network.send(0, 1, b"bye", b"")
    network.kill(0, "closed")
    run(clock)
    mine = [what for _, node, peer, what in ends.seen if (node, peer) == (1, 0)]
    assert mine == [b"bye", "down: closed"]


def test_uplink_and_downlink_are_shared() -> None:
    # 8 Mbit/s: a byte a microsecond; 10,000 bytes take 10 ms
    clock, ends, network = make(nodes=3, bandwidth=8.0)
    network.dial(0, 2)
    network.dial(1, 2)
    network.dial(0, 1)
    run(clock)
    ends.seen.clear()
    begun = clock.now / MS
    network.send(0, 2, b"a" * 10_000, b"")
    network.send(0, 1, b"b" * 10_000, b"")  # waits for 0's uplink
    network.send(1, 2, b"c" * 10_000, b"")  # waits for 2's downlink
    run(clock)
    times = {what[:1]: at - begun for at, _, _, what in ends.seen if isinstance(what, bytes)}
    assert times == {b"a": 20.0, b"b": 30.0, b"c": 30.0}


def test_a_links_own_bandwidth_limits_it_alone() -> None:
    clock, ends, network = linked(bandwidth_mbps=8.0)
    begun = clock.now / MS
    network.send(0, 1, b"a" * 1000, b"")
    network.send(0, 1, b"b" * 1000, b"")
    run(clock)
    assert [at - begun for at, _, _, _ in ends.seen] == [11.0, 12.0]


def test_a_frame_that_is_overtaken_and_doubled_turns_no_clock_back() -> None:
    clock, ends, network = linked(reorder=0.999999, duplicate=0.999999)
    network.send(0, 1, b"early", b"")
    run(clock)
    clock.at(clock.now + SECOND, lambda: network.send(0, 1, b"late", b""))
    run(clock)
    times = [at for at, *_ in ends.seen]
    assert len(times) == 4
    assert times == sorted(times)


def test_nothing_is_scheduled_for_the_past() -> None:
    clock = Clock()
    clock.at(SECOND, lambda: None)
    run(clock)
    with pytest.raises(LocalProtocolError, match="it is 1000000000 ns already"):
        clock.at(SECOND - 1, lambda: None)


def test_loss_is_a_delay_of_at_least_200_ms() -> None:
    clock, _, network = linked(loss=0.999999)
    begun = clock.now
    network.send(0, 1, b"a", b"")
    run(clock)
    assert clock.now - begun == 210 * MS
    network.reshape(0, 1, LinkShape(latency_ms=200, jitter_ms=0, loss=0.999999))
    begun = clock.now
    network.send(0, 1, b"b", b"")
    run(clock)
    assert clock.now - begun == SECOND  # two round trips of 400 ms, and the way itself


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 5000), max_size=30),
    jitter=st.floats(0, 50),
    loss=st.floats(0, 0.9),
    bandwidth=st.none() | st.floats(0.1, 100),
    seed=st.integers(0, 2**32),
)
def test_a_link_keeps_its_order_and_loses_nothing(
    sizes: list[int], jitter: float, loss: float, bandwidth: float | None, seed: int
) -> None:
    clock, ends, network = make(bandwidth=bandwidth, seed=seed, jitter_ms=jitter, loss=loss)
    network.dial(0, 1)
    run(clock)
    ends.seen.clear()
    frames = [number.to_bytes(4, "big") + bytes(size) for number, size in enumerate(sizes)]
    for frame in frames:
        network.send(0, 1, frame, b"")
    run(clock)
    assert [what for _, _, _, what in ends.seen] == frames
    assert network.received_bytes[1] == network.sent_bytes[0] == sum(map(len, frames))


flows = st.integers(1, 12)


def through(flows: int, size: int, *, hub_sends: bool, count: int = 1) -> float:
    """Seconds until ``count`` frames of ``size`` bytes have passed between 0 and each other node.

    1 Mbit/s each, no latency: all the time is the bandwidth's.
    """
    clock, _, network = make(nodes=flows + 1, bandwidth=1.0, latency_ms=0.0)
    for other in range(1, flows + 1):
        network.dial(0, other)
    run(clock)
    begun = clock.now
    for _ in range(count):
        for other in range(1, flows + 1):
            pair = (0, other) if hub_sends else (other, 0)
            network.send(*pair, bytes(size), b"")
    run(clock)
    return (clock.now - begun) / SECOND


@settings(max_examples=30, deadline=None)
@given(flows=flows, size=st.integers(100, 50_000), hub_sends=st.booleans())
def test_n_flows_through_one_uplink_or_downlink_take_n_times_as_long(
    flows: int, size: int, hub_sends: bool
) -> None:
    alone = through(1, size, hub_sends=hub_sends)
    assert alone == pytest.approx(size * 8e-6)
    # the last byte of one flow passes the other end's link while the next flow is on its way
    assert through(flows, size, hub_sends=hub_sends) == pytest.approx(flows * alone)


@settings(max_examples=30, deadline=None)
@given(flows=flows, hub_sends=st.booleans())
def test_flows_that_share_a_link_end_together(flows: int, hub_sends: bool) -> None:
    """Frame by frame in turn: none waits until another flow is through."""
    clock, ends, network = make(nodes=flows + 1, bandwidth=1.0, latency_ms=0.0)
    for other in range(1, flows + 1):
        network.dial(0, other)
    run(clock)
    begun = clock.now / MS
    for _ in range(20):
        for other in range(1, flows + 1):
            pair = (0, other) if hub_sends else (other, 0)
            network.send(*pair, bytes(1000), b"")
    run(clock)
    last = {(n, p): at - begun for at, n, p, what in ends.seen if isinstance(what, bytes)}
    slowest, quickest = max(last.values()), min(last.values())
    assert slowest == pytest.approx(20 * flows * 8.0)
    assert slowest - quickest <= 8.0 * flows + 1e-6  # one frame of each


@settings(max_examples=50, deadline=None)
@given(
    frames=st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=40),
    loss=st.floats(0, 0.9),
    bandwidth=st.none() | st.floats(0.1, 100),
    clogged=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_over_a_broker_bulk_alone_is_lost_and_every_byte_is_accounted_for(
    frames: list[tuple[int, bool]],
    loss: float,
    bandwidth: float | None,
    clogged: bool,
    seed: int,
) -> None:
    clock, ends, network = make(bandwidth=bandwidth, broker=True, seed=seed, loss=loss)
    network.dial(0, 1)
    run(clock)
    ends.seen.clear()
    if clogged:
        network.hold(0, 1)
    sent = [number.to_bytes(4, "big") + bytes(size) for number, (size, _) in enumerate(frames)]
    for frame, (_, bulk) in zip(sent, frames, strict=True):
        network.send(0, 1, frame, b"", bulk=bulk)
    if clogged:
        network.release(0, 1)
    run(clock)
    came = [what for _, _, _, what in ends.seen if isinstance(what, bytes)]
    assert came == sorted(came), "what comes keeps its order"
    control = [frame for frame, (_, bulk) in zip(sent, frames, strict=True) if not bulk]
    assert [frame for frame in came if frame in control] == control, "nothing else is lost"
    assert network.sent_bytes[0] == sum(map(len, sent))
    assert network.received_bytes[1] == sum(map(len, came))
    assert network.sent_bytes[0] == network.received_bytes[1] + network.lost_bytes[0]


def test_over_a_broker_as_much_bulk_is_lost_as_the_scenario_says() -> None:
    clock, ends, network = linked(broker=True, loss=0.02)
    for _ in range(10_000):
        network.send(0, 1, bytes(2920), b"", bulk=True)
    run(clock)
    # 200 expected, standard deviation 14; a chunk is lost as one, however many packets it fills
    assert 140 < 10_000 - len(ends.seen) < 260
    assert max(at for at, _, _, _ in ends.seen) == min(at for at, _, _, _ in ends.seen)


def test_over_tcp_bulk_is_delayed_like_everything_else() -> None:
    clock, ends, network = linked(loss=0.999999)
    begun = clock.now
    network.send(0, 1, b"chunk", b"", bulk=True)
    run(clock)
    assert [what for _, _, _, what in ends.seen] == [b"chunk"]
    assert clock.now - begun == 210 * MS
    assert network.lost_bytes == [0, 0]
