from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.faults import Crash, Heal, Link, Partition, Slow, When
from scenarios.vocabulary import LinkFaultSettings, LinkShape
from scenarios.weather import CALM, Pipe, Plan, Uplink, Weather, change_of, write_change

NOW = When(seconds=0.0)
SLOW_LINK = LinkShape(latency_ms=40, jitter_ms=10, loss=0.0)


def weather(path: Path, me: str = "a", start: float = 100.0) -> Weather:
    return Weather(
        Plan(
            me=me,
            start=start,
            seed=1,
            step_ms=20,
            shapes={"b": SLOW_LINK},
            uplink_mbps=None,
            changes=str(path),
        )
    )


def test_nothing_told_nothing_changes(tmp_path: Path) -> None:
    sky = weather(tmp_path / "absent")
    assert not sky.advance(1e9)
    assert not sky.cut("b")
    assert sky.shape("b") == SLOW_LINK
    assert sky.shape("stranger") == CALM
    assert sky.training_s(3) == pytest.approx(0.06)


def test_changes_come_when_they_are_due_and_once(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    sky = weather(path)
    cut = change_of(Partition(at=NOW, sides=(("a", "c"), ("b",))), 3.0)
    heal = change_of(Heal(at=NOW), 7.0)
    assert cut is not None
    assert heal is not None
    write_change(path, cut)
    write_change(path, heal)
    assert not sky.advance(102.9)
    assert not sky.cut("b")
    assert sky.advance(103.0)
    assert sky.cut("b")
    assert not sky.cut("c")
    assert not sky.cut("d")  # who stands on no side keeps all links
    assert not sky.advance(103.1)
    assert sky.advance(107.0)
    assert not sky.cut("b")


def test_half_a_line_is_not_taken_for_a_change(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    sky = weather(path)
    change = change_of(Slow(at=NOW, nodes=("a",), factor=5), 0.0)
    assert change is not None
    write_change(path, change)
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    assert not sky.advance(200.0)
    path.write_bytes(whole)
    assert sky.advance(200.0)
    assert sky.training_s(1) == pytest.approx(0.1)


def test_slow_and_link_change_only_whom_they_name(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    one, other = weather(path), weather(path, me="z")
    by = LinkFaultSettings(latency_ms=300, bandwidth_mbps=1)
    for fault in (
        Slow(at=NOW, nodes=("a",), factor=10),
        Link(at=NOW, pairs=(("b", "a"),), change=by),
    ):
        change = change_of(fault, 0.0)
        assert change is not None
        write_change(path, change)
    one.advance(200.0)
    other.advance(200.0)
    assert (one.factor, other.factor) == (10, 1)
    assert one.shape("b") == LinkShape(latency_ms=300, jitter_ms=10, loss=0, bandwidth_mbps=1)
    assert other.shape("b") == SLOW_LINK


def test_a_crash_is_done_to_the_process_and_told_to_nobody() -> None:
    assert change_of(Crash(at=NOW, nodes=("a",)), 1.0) is None


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


def test_links_of_a_node_share_its_uplink() -> None:
    uplink = Uplink(8.0)  # 1 MB/s
    one, other = Pipe(uplink), Pipe(uplink)
    chance = {"jitter": 0.0, "loss": 0.0}
    assert one.arrival(0.0, 1_000_000, CALM, chance) == pytest.approx(1.0)
    assert other.arrival(0.0, 1_000_000, CALM, chance) == pytest.approx(2.0)
