"""Each kind of fault, injected into a small simulation: that it bites, and that it ends."""

from __future__ import annotations

import pytest
from sims import QUADRATIC, failed, quadratic

from node.protocol.incoming import STALL_S
from node.types import events as ev
from scenarios.prepare import prepare
from scenarios.record import Run
from scenarios.settings import Scenario, parse_scenario
from scenarios.simulation import Hooks, Simulation, simulate


def event(at: str, what: str) -> str:
    return f'[[event]]\nat = "{at}"\n{what}\n'


def rounds(run: Run, node: str, start: float, end: float) -> list[tuple[str, ...]]:
    return [row.mixed for row in run.rows if row.node == node and start < row.at < end]


def rejections(run: Run) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in run.nodes:
        for why, count in node.rejections.items():
            found[why] = found.get(why, 0) + count
    return found


def test_a_one_way_partition_holds_one_direction_and_both_sides_go_on() -> None:
    cut = event("round 3", 'partition = [["n[01]"], ["n[234]"]]\none_way = true')
    run = simulate(quadratic(cut + event("round 9", "heal = true"), rounds=20))
    assert run.ok, failed(run)
    span = run.faults[0]
    assert span.end is not None
    # n2 hears nothing of n1 after what was on the wire, while the side beyond still hears of it
    assert all("n1" not in mixed for mixed in rounds(run, "n2", span.start + 1, span.end))
    assert any("n2" in mixed for mixed in rounds(run, "n1", span.end, 1e9))
    assert any("n1" in mixed for mixed in rounds(run, "n2", span.end, 1e9))


def test_a_paused_process_stands_still_and_goes_on_with_what_waited() -> None:
    text = event("round 3", 'pause = "n1"') + event("round 6", 'resume = "n1"')
    run = simulate(quadratic(text, rounds=15))
    assert run.ok, failed(run)
    span = run.faults[0]
    assert span.end is not None
    assert span.end - span.start > 1
    assert rounds(run, "n1", span.start, span.end) == []
    assert len(rounds(run, "n0", span.start, span.end)) >= 2
    assert next(node for node in run.nodes if node.name == "n1").ended == "finished"


def test_a_clogged_link_holds_frames_and_releases_them() -> None:
    link = '{ a = "n0", b = "n1" }'
    text = event("round 3", f"clog = {link}") + event("round 6", f"unclog = {link}")
    run = simulate(quadratic(text, rounds=15))
    assert run.ok, failed(run)
    span = run.faults[0]
    assert span.end is not None
    assert span.nodes == ("n0", "n1")
    assert all("n1" not in m for m in rounds(run, "n0", span.start + 0.5, span.end)[1:])
    assert any("n1" in mixed for mixed in rounds(run, "n0", span.end, 1e9))


def test_a_link_that_stays_clogged_is_broken_by_silence() -> None:
    run = simulate(quadratic(event("round 2", 'clog = { a = "n0", b = "n1" }'), rounds=15))
    assert run.ok, failed(run)
    n0 = next(node for node in run.nodes if node.name == "n0")
    assert any(missed.peer == "n1" for missed in n0.missed)


def test_a_link_that_is_reset_is_dialled_again_at_once() -> None:
    run = simulate(quadratic(event("round 3", 'reset = { a = "n0", b = "n1" }'), rounds=15))
    assert run.ok, failed(run)
    (span,) = run.faults
    assert (span.kind, span.nodes) == ("reset", ("n0", "n1"))
    assert span.start == span.end
    after = rounds(run, "n0", span.start, 1e9)
    assert "n1" in after[1], "one round at most goes without"
    seen: list[tuple[str, str]] = []

    def watch(name: str, effect: ev.Effect, at: float) -> None:
        note = getattr(effect, "note", None)
        if isinstance(note, ev.Unlinked) and at == span.start:
            seen.append((name, note.why))

    text = event("round 3", 'reset = { a = "n0", b = "n1" }')
    Simulation(prepare(quadratic(text, rounds=15)), Hooks(on_effect=watch)).run()
    assert sorted(seen) == [("n0", "reset"), ("n1", "reset")]


def test_a_node_with_its_own_pace_trains_for_as_long_as_its_table_says() -> None:
    began: dict[str, float] = {}
    took: dict[str, set[float]] = {}

    def watch(name: str, effect: ev.Effect, at: float) -> None:
        if isinstance(effect, ev.Train):
            began[name] = at
        elif isinstance(effect, ev.Encode) and name in began:
            took.setdefault(name, set()).add(round(at - began.pop(name), 6))

    scenario = quadratic('[[node]]\nname = "n[12]"\nstep_ms = 80\n')
    Simulation(prepare(scenario), Hooks(on_effect=watch)).run()
    # two steps a round, of 50 ms where no table says otherwise
    assert took == {n: {0.16} if n in ("n1", "n2") else {0.1} for n in scenario.graph.nodes}


def test_chunks_lost_over_a_broker_are_fetched_again() -> None:
    scenario = quadratic_over("mqtt")
    run = simulate(scenario)
    assert run.ok, failed(run)
    sent = sum(node.sent_bytes for node in run.nodes)
    received = sum(node.received_bytes for node in run.nodes)
    assert sent > received, "some were lost"
    assert all(not row.missing for row in run.rows), "and nobody had to go without"
    assert max(row.waited_s for row in run.rows) < STALL_S, "nor to wait until a stall is noticed"
    assert rejections(run) == {}


def quadratic_over(transport: str) -> Scenario:
    """Payloads of 1.6 MB, four chunks, of which one in twenty is lost."""
    text = f'transport = "{transport}"\nloss = 0.05\nbandwidth_mbps = 200'
    whole = QUADRATIC.format(topology='kind = "ring", nodes = 4', rounds=8, mixing=4)
    whole = whole.replace("dimension = 8", "dimension = 400000").replace("loss = 0.01", text)
    whole = whole.replace("deadline_max_s = 2.0", 'deadline_max_s = 20.0\nwait = "all"')
    return parse_scenario(whole, source="broker.toml")


def test_a_full_disk_stops_the_node_until_there_is_room() -> None:
    full = event("round 3", 'disk_full = "n1"')
    run = simulate(quadratic(full))
    assert run.ok, failed(run)
    assert run.nodes[1].ended == "failed: disk full (exit code 4)"
    assert [node.ended for node in run.nodes].count("finished") == 4
    run = simulate(quadratic(full + event("round 6", 'restart = "n1"'), rounds=15))
    assert run.ok, failed(run)
    assert (run.nodes[1].ended, run.nodes[1].resumed) == ("finished", 1)


@pytest.mark.parametrize("disk", ["own", "backup", "none"])
def test_a_node_comes_back_with_an_older_disk_or_none(disk: str) -> None:
    text = event("round 8", 'crash = "n1"') + event("round 12", f'restart = "n1"\ndisk = "{disk}"')
    run = simulate(quadratic(text, rounds=25, mixing=10))
    assert run.ok, failed(run)
    assert (run.nodes[1].ended, run.nodes[1].resumed) == ("finished", 1)
    back = run.faults[0].end
    assert back is not None
    assert any("n1" in mixed for mixed in rounds(run, "n0", back, 1e9)), "its neighbours mix it"


@pytest.mark.parametrize("rate", ["duplicate", "reorder", "corrupt"])
def test_frames_that_come_twice_late_or_damaged_hold_nobody_up(rate: str) -> None:
    text = event("round 2", f"link = {{ {rate} = 0.1 }}")
    run = simulate(quadratic(text, rounds=15))
    assert run.ok, failed(run)
    assert [node.ended for node in run.nodes] == ["finished"] * 5
    if rate == "corrupt":
        assert rejections(run), "damage is counted"


def test_a_skewed_clock_starts_its_node_at_another_time() -> None:
    # n4 goes at once, so that the others wait for the hour, each by its own clock
    start = "[start]\nmembers = 5\nafter_s = 3\nat_least = 4\n"
    text = start + event("0s", 'crash = "n4"')
    skewed = text + event("0s", 'clock_skew = { nodes = "n[0-3]", offset_s = 2 }')

    def begun(text: str) -> float:
        run = simulate(quadratic(text))
        assert run.ok, failed(run)
        return min(row.at for row in run.rows)

    assert begun(text) > 3
    assert 1 < begun(skewed) < 3
