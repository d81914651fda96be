from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.faults import (
    Attack,
    ClockSkew,
    Clog,
    Crash,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Pause,
    Reset,
    Restart,
    Slow,
    Unclog,
    When,
)
from scenarios.vocabulary import LinkFaultSettings, LinkShape
from scenarios.weather import CALM, Attacking, Plan, Weather, change_of, write_change

NOW = When(seconds=0.0)
SLOW_LINK = LinkShape(latency_ms=40, jitter_ms=10, loss=0.0)


def weather(path: Path, me: str = "a") -> Weather:
    return Weather(
        Plan(
            me=me,
            seed=1,
            step_ms=20,
            shapes={"b": SLOW_LINK},
            bandwidth_mbps=None,
            changes=str(path),
        )
    )


def tell(path: Path, *faults: Fault, at: float = 100.0) -> None:
    for fault in faults:
        change = change_of(fault, at)
        assert change is not None
        write_change(path, change)


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
    told: list[bool] = []
    sky.listen(lambda: told.append(sky.cut("b")))
    tell(path, Partition(at=NOW, sides=(("a", "c"), ("b",))), at=103.0)
    tell(path, Heal(at=NOW), at=107.0)
    assert not sky.advance(102.9)
    assert not sky.cut("b")
    assert sky.advance(103.0)
    assert sky.cut("b")
    assert sky.shut("b")
    assert not sky.held("b")
    assert not sky.cut("c")
    assert not sky.cut("d")  # who stands on no side keeps all links
    assert not sky.advance(103.1)
    assert sky.advance(107.0)
    assert not sky.cut("b")
    assert not sky.shut("b")
    assert told == [True, False]


def test_one_way_only_what_an_earlier_side_sends_is_held(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    skies = {me: weather(path, me) for me in "abc"}
    tell(path, Partition(at=NOW, sides=(("a",), ("b",)), one_way=True))
    for sky in skies.values():
        sky.advance(200.0)
    assert not skies["a"].cut("b")
    assert skies["b"].held("a")
    assert not skies["a"].held("b")
    assert skies["a"].shut("b")  # a handshake needs both ways
    assert skies["b"].shut("a")
    assert not skies["c"].shut("a")


def test_a_clogged_link_holds_both_ways_until_it_is_freed(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    one, other = weather(path), weather(path, me="b")
    tell(path, Clog(at=NOW, pairs=(("b", "a"),)))
    assert one.advance(200.0)
    assert other.advance(200.0)
    assert one.held("b")
    assert other.held("a")
    assert not one.held("c")
    tell(path, Unclog(at=NOW, pairs=(("a", "b"),)))
    one.advance(200.0)
    assert not one.shut("b")


def test_disk_and_malice_and_resets_are_told_to_whom_they_concern(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    one, other = weather(path), weather(path, me="z")
    attack = Attack(at=NOW, nodes=("z", "a"), what="noise", scale=2.0)
    change = change_of(attack, 100.0, seed=7)
    assert change is not None
    write_change(path, change)
    tell(path, DiskFull(at=NOW, nodes=("a",)), Reset(at=NOW, pairs=(("a", "b"),)))
    one.advance(200.0)
    other.advance(200.0)
    assert one.disk_full
    assert not other.disk_full
    assert one.attack == Attacking("noise", 2.0, 8)
    assert other.attack == Attacking("noise", 2.0, 7)  # a stream of chance for each
    assert one.resets == {"b": 1}
    assert not other.resets
    tell(path, Restart(at=NOW, nodes=("a",)), Attack(at=NOW, nodes=("a",), what="none"))
    one.advance(200.0)
    assert not one.disk_full  # somebody made room
    assert one.attack is None
    assert one.attacks == 2


def test_half_a_line_is_not_taken_for_a_change(tmp_path: Path) -> None:
    path = tmp_path / "changes"
    sky = weather(path)
    tell(path, Slow(at=NOW, nodes=("a",), factor=5))
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
    tell(path, Slow(at=NOW, nodes=("a",), factor=10))
    tell(path, Link(at=NOW, pairs=(("b", "a"),), change=by))
    one.advance(200.0)
    other.advance(200.0)
    assert (one.factor, other.factor) == (10, 1)
    assert one.shape("b") == LinkShape(latency_ms=300, jitter_ms=10, loss=0, bandwidth_mbps=1)
    assert other.shape("b") == SLOW_LINK


def test_what_is_done_to_a_process_is_told_to_nobody() -> None:
    for fault in (
        Crash(at=NOW, nodes=("a",)),
        Pause(at=NOW, nodes=("a",)),
        ClockSkew(at=NOW, nodes=("a",), offset_s=1.0),
    ):
        assert change_of(fault, 1.0) is None
