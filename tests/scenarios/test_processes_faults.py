"""Every fault on real processes: that it happened, and that the run bore it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from sims import failed

from node.errors import ConfigError
from scenarios import processes
from scenarios.faults import Heal, When
from scenarios.nursery import Child, Nursery
from scenarios.processes import run_processes
from scenarios.record import NodeRun, Run
from scenarios.settings import Scenario, parse_scenario

BASE = """
name = "faults"
seed = 5
topology = {{ kind = "{kind}", nodes = {nodes} }}
task = {{ name = "quadratic", dimension = 8 }}
compute = {{ step_ms = {step_ms} }}
network = {{ latency_ms = {latency} }}
{more}
[learning]
rounds = {rounds}
local_steps = 2
final_mixing = 8
linger_s = 2.0
deadline_max_s = 0.5
"""


def scenario(
    *events: str,
    kind: str = "complete",
    nodes: int = 4,
    rounds: int = 30,
    step_ms: float = 30,
    latency: float = 5,
    more: str = "",
) -> Scenario:
    """30 rounds of 60 ms or more, unless told otherwise: 1.8 seconds at least."""
    head = BASE.format(
        kind=kind, nodes=nodes, rounds=rounds, step_ms=step_ms, latency=latency, more=more
    )
    tables = "".join(f"\n[[event]]\n{event}\n" for event in events)
    return parse_scenario(head + tables, source="faults.toml")


class Runs(Protocol):
    def __call__(self, scenario: Scenario, **options: Any) -> Run: ...


class Heard(list[dict[str, Any]]):
    """Everything the nodes told, in order."""

    def of(self, node: str, kind: str) -> list[dict[str, Any]]:
        return [event for event in self if event["node"] == node and event["event"] == kind]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery") / "log") as made:
        yield made


@pytest.fixture
def run_it(nursery: Nursery) -> Runs:
    return lambda scenario, **options: run_processes(
        scenario, nursery=nursery, baselines=False, **options
    )


def node_of(run: Run, name: str) -> NodeRun:
    return next(node for node in run.nodes if node.name == name)


def test_one_way_only_one_side_is_unheard_and_links_stay_up(run_it: Runs) -> None:
    heard = Heard()
    run = run_it(
        scenario(
            'at = "round 3"\npartition = [["n[01]"], ["n[23]"]]\none_way = true',
            'at = "round 10"\nheal = true',
            rounds=30,
        ),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    (cut,) = run.faults
    assert cut.one_way
    assert cut.end is not None
    apart = [row for row in run.rows if cut.start + 0.5 < row.at < cut.end]
    assert apart
    # an edge counts for both ends or for none: what one hears alone, neither mixes
    crossing = {"n0": {"n2", "n3"}, "n1": {"n2", "n3"}, "n2": {"n0", "n1"}, "n3": {"n0", "n1"}}
    assert not any(set(row.mixed) & crossing[row.node] for row in apart)
    # 3.5 s are less than the silence after which a link is given up: the first to go leaves last
    mixed = {name: [e["clock"] for e in heard.of(name, "round")] for name in crossing}
    lost = [e["clock"] for name in crossing for e in heard.of(name, "unlinked")]
    assert not [clock for clock in lost if clock < min(max(clocks) for clocks in mixed.values())]
    assert any("n0" in row.mixed for row in run.rows if row.node == "n2" and row.at > cut.end)


def test_a_paused_process_stands_still_and_goes_on(run_it: Runs) -> None:
    heard = Heard()
    run = run_it(
        scenario('at = "round 5"\npause = "n1"', 'at = "round 12"\nresume = "n1"', rounds=45),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    (pause,) = run.faults
    assert pause.end is not None
    # 50 ms: from the decision until the signal is delivered and what was printed is read
    still = [r for r in run.rows if r.node == "n1" and pause.start + 0.05 < r.at < pause.end]
    assert not still
    assert len(heard.of("n1", "ready")) == 1  # the same process all the time
    assert node_of(run, "n1").ended == "finished"


def test_an_old_backup_and_a_lost_disk_are_what_a_node_starts_on(run_it: Runs) -> None:
    heard = Heard()
    run = run_it(
        scenario(
            'at = "round 9"\nclock_skew = { nodes = "n2", offset_s = -3600 }',
            'at = "round 10"\ncrash = ["n1", "n2"]',
            'at = "round 13"\nrestart = "n1"\ndisk = "backup"',
            'at = "round 16"\nrestart = "n2"\ndisk = "none"',
            rounds=60,
        ),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    stale, amnesic = heard.of("n1", "ready")[1], heard.of("n2", "ready")[1]
    # half of some ten checkpoints ago; and a disk that knows nothing, not even of being old
    assert 3 <= stale["round"] <= 8
    assert stale["resumed"] == 1
    assert (amnesic["round"], amnesic["resumed"]) == (0, 0)
    # its clock is an hour behind: its neighbours prove to it that it has lived before
    assert heard.of("n2", "reincarnated")
    assert [node_of(run, name).resumed for name in ("n1", "n2")] == [1, 1]


def test_a_full_disk_stops_a_node_with_the_storage_error_and_room_brings_it_back(
    run_it: Runs, tmp_path: Path
) -> None:
    heard = Heard()
    run = run_it(
        scenario(
            'at = "round 5"\ndisk_full = ["n1", "n3"]',
            'at = "round 15"\nrestart = "n1"',
            rounds=50,
            more="expect = { finished_min = 3 }",
        ),
        on_progress=heard.append,
        directory=tmp_path / "run",
    )
    assert run.ok, failed(run)
    assert node_of(run, "n3").ended == "failed: disk full (exit code 4)"
    assert node_of(run, "n1").ended == "finished"
    for name in ("n1", "n3"):
        (why,) = [event["why"] for event in heard.of(name, "failed")]
        # SQLite's own words for what the kernel said, or the kernel's
        assert "full" in why or "No space left" in why
    words = (tmp_path / "run" / "n3" / "log.jsonl").read_text()
    assert "grapevine: error: " in words
    assert "Traceback" not in words
    full = {span.nodes: span.end for span in run.faults if span.kind == "disk_full"}
    assert full[("n1",)] is not None
    assert full[("n3",)] is None


def test_a_clock_that_is_off_at_the_start_is_read_once(run_it: Runs) -> None:
    heard = Heard()
    run = run_it(
        scenario('at = "0s"\nclock_skew = { nodes = "n1", offset_s = 86400 }', rounds=5),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    began = {name: heard.of(name, "publishing")[0]["incarnation"] for name in ("n0", "n1")}
    assert abs(began["n0"] - time.time() * 1000) < 600_000
    assert began["n1"] - began["n0"] == pytest.approx(86_400_000, abs=600_000)


def test_clogged_links_hold_and_broken_ones_come_back(run_it: Runs) -> None:
    heard = Heard()
    run = run_it(
        scenario(
            'at = "round 3"\nclog = { a = "n0", b = "n1" }',
            'at = "round 5"\nreset = { a = "n2", b = "n3" }',
            'at = "round 10"\nunclog = { a = "n0", b = "n1" }',
            kind="ring",
            rounds=30,
        ),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    clog = next(span for span in run.faults if span.kind == "clog")
    assert clog.end is not None
    apart = [r for r in run.rows if r.node == "n0" and clog.start + 0.5 < r.at < clog.end]
    assert apart
    assert all("n1" not in row.mixed for row in apart)
    assert any("n1" in row.mixed for row in run.rows if row.node == "n0" and row.at > clog.end)
    mended = next(
        e["clock"] for e in heard.of("n0", "round") if "n1" in e["mixed"] and e["round"] > 9
    )
    lost = [e for e in heard.of("n0", "unlinked") if e["peer"] == "n1" and e["clock"] < mended]
    assert not lost
    broken = {e["peer"]: e["why"] for e in heard.of("n2", "unlinked")[:1]}
    assert broken == {"n3": "reset"} or heard.of("n3", "unlinked")[0]["why"] == "reset"
    assert any("n3" in row.mixed for row in run.rows if row.node == "n2" and row.round > 20)


def test_frames_that_a_link_garbles_are_counted_and_borne(run_it: Runs) -> None:
    run = run_it(
        scenario(
            'at = "round 2"\nlink = { duplicate = 0.2, reorder = 0.1, corrupt = 0.1 }',
            'at = "round 12"\nlink = { duplicate = 0.0, reorder = 0.0, corrupt = 0.0 }',
            rounds=25,
        )
    )
    assert run.ok, failed(run)
    assert sum(sum(node.rejections.values()) for node in run.nodes) > 0


def test_who_is_not_there_from_the_start_is_never_started(run_it: Runs) -> None:
    heard = Heard()
    run = run_it(
        scenario(
            'at = "0s"\ncrash = "n3"',
            'at = "round 8"\nrestart = "n3"\ndisk = "none"',
            rounds=40,
            more="start = { members = 4, at_least = 3, after_s = 0.5 }",
        ),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    (ready,) = heard.of("n3", "ready")
    assert ready["clock"] > heard.of("n0", "round")[7]["clock"] - 1.0
    assert run.faults[0].start == 0.0
    assert node_of(run, "n3").ended == "finished"


@pytest.mark.parametrize("what", ["flood", "equivocation", "sign-flip", "wrong-digest"])
def test_an_attacker_among_processes_leaves_its_marks_and_stops_nobody(
    run_it: Runs, what: str
) -> None:
    marks = {"flood": "rate", "equivocation": "foreign", "wrong-digest": "digest"}
    heard = Heard()
    run = run_it(
        scenario(f'at = "round 2"\nattack = "{what}"\nnodes = "n1"', rounds=12),
        on_progress=heard.append,
    )
    assert run.ok, failed(run)
    assert run.attackers == ("n1",)
    honest = [node for node in run.nodes if node.name != "n1"]
    assert [node.ended for node in honest] == ["finished"] * 3
    if what in marks:
        assert marks[what] in {reason for node in honest for reason in node.rejections}
    if what == "equivocation":
        assert all(
            event["peer"] == "n1" for n in "023" for event in heard.of(f"n{n}", "equivocation")
        )


def test_an_attack_of_a_file_comes_and_goes(run_it: Runs, tmp_path: Path) -> None:
    lie = tmp_path / "lie.py"
    lie.write_text("def ten(own, neighbours, rng):\n    return own * 0 + 10\n")
    run = run_it(
        scenario(
            f'at = "round 3"\nattack = "{lie}:ten"\nnodes = "n1"',
            'at = "round 9"\nattack = "none"\nnodes = "n1"',
            rounds=20,
        )
    )
    assert run.ok, failed(run)
    (span,) = run.faults
    assert span.end is not None
    away = {row.round: row.distance for row in run.distances}
    assert max(away[r] for r in range(5, 10)) > 3 * away[3]


def test_a_file_that_cannot_be_loaded_ends_its_node_and_is_not_skipped(
    run_it: Runs, tmp_path: Path
) -> None:
    lie = tmp_path / "lie.py"
    lie.write_text("def ten(own, neighbours, rng):\n    return own\n\nraise RuntimeError('late')\n")
    run = run_it(
        scenario(f'at = "round 3"\nattack = "{lie}:ten"\nnodes = "n1"', rounds=10, step_ms=10)
    )
    assert "cannot be loaded" in node_of(run, "n1").ended


# ── the end, whatever happens ───────────────────────────────────────────────────────────────────


def children_of(nursery: Nursery) -> list[Child]:
    return nursery._children


@pytest.mark.parametrize("how", ["interrupted", "out of time"])
def test_a_paused_node_is_reaped_with_the_others(run_it: Runs, nursery: Nursery, how: str) -> None:
    before = len(children_of(nursery))

    def told(event: dict[str, Any]) -> None:
        if how == "interrupted" and event.get("kind") == "pause":
            raise KeyboardInterrupt

    one = scenario('at = "round 2"\npause = "n1"', 'at = "80s"\nresume = "n1"', rounds=2000)
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            run_it(one, on_progress=told)
    else:
        run = run_it(one, timeout_s=3.0)
        assert {node.ended for node in run.nodes} == {"failed: not done after 3 s"}
        assert run.notes[-1] == "'resume at 80s' never happened: the run was over before"
        assert "every event happened" in {check.name for check in run.checks if not check.ok}
    ended = children_of(nursery)[before:]
    assert len(ended) == 4
    assert all(child.code is not None for child in ended)
    assert not any(Path(f"/proc/{child.pid}").exists() for child in ended)


def test_what_cannot_be_injected_is_refused_not_skipped(
    run_it: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(processes, "can_be_full", lambda: False)
        with pytest.raises(
            ConfigError, match=r"faults.toml: event disk_full at round 2: .*dev/full"
        ):
            run_it(scenario('at = "round 2"\ndisk_full = "n1"'))

    class Meteor(Heal, frozen=True):
        pass

    assert processes._beyond(Meteor(at=When(round=1))) == ""  # a kind of what it can do …
    monkeypatch.setattr(processes, "_CAN", processes._CAN[2:])
    assert processes._beyond(Heal(at=When(round=1))) == "'heal'"  # … and what nobody taught it
