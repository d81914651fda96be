from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.pipes import Downlink, Pipe, Uplink, delays
from scenarios.vocabulary import LinkShape
from scenarios.weather import CALM


@given(
    sends=st.lists(
        st.tuples(
            st.floats(0, 0.2), st.integers(1, 2_000_000), st.floats(0, 0.999), st.floats(0, 0.999)
        ),
        max_size=30,
    ),
    latency=st.floats(0, 500),
    loss=st.floats(0, 0.5),
    mbps=st.none() | st.floats(1, 1000),
)
def test_a_link_keeps_its_order_and_never_hurries(
    sends: list[tuple[float, int, float, float]], latency: float, loss: float, mbps: float | None
) -> None:
    shape = LinkShape(latency_ms=latency, jitter_ms=30, loss=loss, bandwidth_mbps=mbps)
    pipe, now, last, carried = Pipe(Uplink(mbps)), 0.0, 0.0, 0
    for wait, length, jitter, chance in sends:
        now += wait
        at = pipe.arrival(now, length, shape, {"jitter": jitter, "loss": chance})
        carried += length
        assert at >= last
        assert at >= now + latency / 1000 - 1e-9
        if mbps is not None:
            assert at >= carried * 8e-6 / mbps - 1e-6
        last = at


def test_loss_costs_a_retransmission_in_its_share_of_cases() -> None:
    shape = LinkShape(latency_ms=100, jitter_ms=0, loss=0.5)
    late = Pipe(Uplink(None)).arrival(0.0, 1, shape, {"jitter": 0.0, "loss": 0.49})
    soon = Pipe(Uplink(None)).arrival(0.0, 1, shape, {"jitter": 0.0, "loss": 0.51})
    assert late == pytest.approx(0.1 + 0.4)  # 2 RTT are more than 200 ms
    assert soon == pytest.approx(0.1)


def test_over_a_broker_a_lost_chunk_is_gone_and_nothing_else_is_late_for_it() -> None:
    shape, rng = LinkShape(latency_ms=100, jitter_ms=0, loss=0.3), random.Random(1)
    uplink = Uplink(8.0)  # 1 MB/s
    pipe = Pipe(uplink)
    arrived = [pipe.put(0.0, bytes(1000), shape, rng, bulk=True) for _ in range(1000)]
    lost = [n for n, found in enumerate(arrived) if not found]
    assert 230 < len(lost) < 370
    for n, found in enumerate(arrived, 1):
        assert [at for at, _ in found] in ([], [pytest.approx(0.001 * n + 0.1)])
    late = [pipe.put(2.0, b"have", shape, rng)[0][0] for _ in range(20)]
    assert max(late) == pytest.approx(2.1 + 0.4, abs=0.01)  # anything else is a stream's


def test_links_of_a_node_share_its_uplink() -> None:
    uplink = Uplink(8.0)  # 1 MB/s
    one, other = Pipe(uplink), Pipe(uplink)
    chance = {"jitter": 0.0, "loss": 0.0}
    assert one.arrival(0.0, 1_000_000, CALM, chance) == pytest.approx(1.0)
    assert other.arrival(0.0, 1_000_000, CALM, chance) == pytest.approx(2.0)


def test_what_comes_from_several_at_once_shares_the_downlink() -> None:
    downlink = Downlink(8.0)  # 1 MB/s
    # its bytes came as the sender's uplink let them out: nothing is added
    assert downlink.pass_through(1.0, 500_000) == 1.0
    # two more whose last bytes are here at the same time had to come one after the other
    assert downlink.pass_through(1.0, 500_000) == pytest.approx(1.5)
    assert downlink.pass_through(1.2, 100_000) == pytest.approx(1.6)
    assert downlink.pass_through(9.0, 500_000) == 9.0
    assert Downlink(None).pass_through(3.0, 10**9) == 3.0


def shape(**unruly: float) -> LinkShape:
    return LinkShape(latency_ms=10, jitter_ms=0, loss=0, **unruly)


def test_a_corrupt_frame_differs_in_one_bit() -> None:
    ((at, frame),) = Pipe(Uplink(None)).put(0.0, bytes(100), shape(corrupt=0.999), random.Random(1))
    assert at == pytest.approx(0.01)
    assert len(frame) == 100
    assert sum(byte.bit_count() for byte in frame) == 1


def test_a_duplicate_comes_behind_its_twin() -> None:
    found = Pipe(Uplink(None)).put(0.0, b"x", shape(duplicate=0.999), random.Random(1))
    assert found == [(pytest.approx(0.01), b"x"), (pytest.approx(0.01), b"x")]


def test_a_reordered_frame_is_passed_by_the_next() -> None:
    pipe, rng = Pipe(Uplink(None)), random.Random(1)
    ((late, _),) = pipe.put(0.0, b"first", shape(reorder=0.999), rng)
    ((soon, _),) = pipe.put(0.001, b"second", shape(), rng)
    assert late == pytest.approx(0.02)
    assert soon == pytest.approx(0.011)


def test_only_a_link_that_does_nothing_is_left_out_of_the_way() -> None:
    assert not delays(CALM)
    for key in ("latency_ms", "jitter_ms", "loss", "bandwidth_mbps", "duplicate", "corrupt"):
        assert delays(LinkShape(**{"latency_ms": 0, "jitter_ms": 0, "loss": 0, key: 0.5}))
