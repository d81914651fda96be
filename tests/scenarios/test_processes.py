from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from node.errors import ConfigError, StorageError
from node.storage.directory import StateDirectory
from scenarios import processes_fleet
from scenarios.nursery import Nursery
from scenarios.processes import MARK, clear, run_processes
from scenarios.processes_models import consensus, vector_places
from scenarios.record import NodeRun, Run, result
from scenarios.settings import Scenario, parse_scenario

BASE = """
name = "Small one"
seed = 3
topology = {{ kind = "{kind}", nodes = {nodes} }}
task = {{ name = "quadratic", dimension = 8 }}
learning = {{ rounds = {rounds}, local_steps = 2, final_mixing = 8, linger_s = {linger} }}
compute = {{ step_ms = {step_ms} }}
network = {{ latency_ms = {latency} }}
"""


def scenario(
    text: str = "",
    *,
    kind: str = "complete",
    nodes: int = 3,
    rounds: int = 10,
    step_ms: float = 5,
    latency: float = 0,
    linger: float = 1.0,
) -> Scenario:
    head = BASE.format(
        kind=kind, nodes=nodes, rounds=rounds, step_ms=step_ms, latency=latency, linger=linger
    )
    return parse_scenario(head + text, source="small.toml")


class Runs(Protocol):
    def __call__(self, scenario: Scenario, **options: Any) -> Run: ...


@pytest.fixture(scope="module")
def run_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """run_processes, with one nursery for all tests."""
    log = tmp_path_factory.mktemp("nursery") / "log"
    with Nursery(log) as nursery:
        yield lambda scenario, **options: run_processes(scenario, nursery=nursery, **options)


def node_of(run: Run, name: str) -> NodeRun:
    return next(node for node in run.nodes if node.name == name)


def test_three_processes_learn_and_leave_everything_behind(run_it: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told: list[dict[str, Any]] = []
    run = run_it(scenario(), directory=folder, on_progress=told.append)
    assert run.ok, run.checks
    assert [node.ended for node in run.nodes] == ["finished"] * 3
    assert all(node.rounds == 18 and node.digest for node in run.nodes)
    pids = {event["pid"] for event in told if event["event"] == "ready"}
    assert len(pids) == 3
    assert run.consensus_distance is not None
    assert run.consensus_distance < 1e-3
    assert len([row for row in run.rows if row.node == "n0"]) == 18
    assert [row.round for row in run.distances] == list(range(1, 19))
    assert run.distances[-1].distance == pytest.approx(run.consensus_distance, rel=1e-3)
    # D² is the samples' mean of the nodes' own squares
    last = [row for row in run.rows if row.round == 18]
    samples = [node_of(run, row.node).samples for row in last]
    squares = [samples[i] * (row.distance or 0) ** 2 for i, row in enumerate(last)]
    assert sum(squares) / sum(samples) == pytest.approx(run.distances[-1].distance ** 2)
    # both ends of a link count the same bytes, and a node's links make up all that it sent
    assert [(link.a, link.b) for link in run.links] == list(run.edges)
    sent = dict.fromkeys(("n0", "n1", "n2"), 0)
    for link in run.links:
        sent[link.a] += link.a_to_b_bytes or 0
        sent[link.b] += link.b_to_a_bytes or 0
    assert all(sent[node.name] >= node.sent_bytes > 10_000 for node in run.nodes)
    assert run.baselines is not None
    assert result(run)["nodes"]["n1"]["ended"] == "finished"
    for name in ("n0", "n1", "n2"):
        assert (folder / name / "state" / "model.safetensors").is_file()
        written = vector_places(folder / name / "vectors.f32")
        assert [round_ for round_, _, _ in written] == list(range(1, 19))
    # an earlier run's folder may be used again
    clear(folder)
    assert [path.name for path in folder.iterdir()] == [MARK]


def test_a_killed_node_comes_back_and_the_others_never_stop(run_it: Runs, tmp_path: Path) -> None:
    text = """
    event = [
      { at = "round 4", crash = "n1" },
      { at = "round 9", restart = "n1" },
      { at = "round 14", crash = ["n1", "n2"] },
      { at = "round 18", restart = ["n1", "n2"] },
    ]
    expect = { finished_min = 4, consensus_distance_max = 0.05 }
    """
    # 5 s of training at least are left after the last restart: on a busy machine, too, the node is
    # back long before its end
    run = run_it(scenario(text, kind="ring", nodes=4, rounds=190, step_ms=15), baselines=False)
    assert run.ok, [check for check in run.checks if not check.ok]
    assert (node_of(run, "n1").resumed, node_of(run, "n2").resumed) == (2, 1)
    assert all(node.rounds == 198 for node in run.nodes)
    assert {missed.peer for missed in node_of(run, "n0").missed} <= {"n1", "n3"}
    assert "n1" in {missed.peer for missed in node_of(run, "n0").missed}
    crashes = [span for span in run.faults if span.kind == "crash"]
    assert [span.nodes for span in crashes] == [("n1",), ("n1",), ("n2",)]
    assert all(span.end is not None and span.end > span.start for span in crashes)
    assert run.baselines is None
    assert all(node.model is None for node in run.nodes)  # the folder was a temporary one


def test_twenty_kills_at_random_instants(run_it: Runs) -> None:
    """Whatever a node was doing: it resumes, catches up, and nobody repeats or waits too long."""
    rng = random.Random(20)
    events, at = [], 0.3
    for _ in range(20):
        victim = rng.randrange(5)
        back = at + rng.uniform(0.05, 0.25)
        events.append(f'{{ at = "{at * 1000:.0f}ms", crash = "n{victim}" }}')
        events.append(f'{{ at = "{back * 1000:.0f}ms", restart = "n{victim}" }}')
        at = back + rng.uniform(0.01, 0.15)
    text = f"event = [{', '.join(events)}]\nexpect = {{ finished_min = 5 }}"
    run = run_it(
        # 15 s of training at least: the last node to come back, after some 5, can still catch up,
        # also on a machine that is busy with other things
        scenario(text, kind="ring", nodes=5, rounds=500, step_ms=15, linger=10.0),
        baselines=False,
    )
    assert run.ok, [check for check in run.checks if not check.ok]
    assert sum(node.resumed for node in run.nodes) == 20
    assert run.consensus_distance is not None
    # all within the distance that the eight mixing rounds leave of a ring's differences
    assert run.consensus_distance < 0.05


def test_a_node_killed_for_good_is_named_and_the_others_finish(run_it: Runs) -> None:
    run = run_it(scenario('event = [{ at = "round 3", crash = "n2" }]', rounds=12), baselines=False)
    assert run.ok, run.checks
    dead = node_of(run, "n2")
    assert dead.ended == "killed"
    assert 3 <= dead.rounds < 12
    for name in ("n0", "n1"):
        (missed,) = node_of(run, name).missed
        assert missed.peer == "n2"
        assert missed.first <= dead.rounds + 2
        assert missed.last == 20
        assert missed.why


def test_a_ring_of_eight_cut_in_two_goes_on_and_meets_again(run_it: Runs) -> None:
    text = """
    event = [
      { at = "round 5", partition = [["n0", "n1", "n2", "n3"], ["n4", "n5", "n6", "n7"]] },
      { at = "round 40", heal = true },
    ]
    """
    run = run_it(
        scenario(text, kind="ring", nodes=8, rounds=90, step_ms=15, latency=5), baselines=False
    )
    assert run.ok, [check for check in run.checks if not check.ok]
    assert "after a heal the sides mix with each other" in {check.name for check in run.checks}
    (cut,) = run.faults
    assert cut.end is not None
    # nodes look for changes every 20 ms; 35 rounds of 30 ms or more lie between cut and heal
    apart = [r for r in run.rows if r.node == "n0" and cut.start + 0.5 < r.at < cut.end]
    assert apart
    assert all(row.mixed == ("n1",) and "n7" in dict(row.missing) for row in apart)
    # 50 rounds of 30 ms or more are left after the heal: a dial that is refused comes again sooner
    assert any("n7" in row.mixed for row in run.rows if row.node == "n0" and row.round > 75)


def test_a_slow_node_is_slow(run_it: Runs) -> None:
    run = run_it(
        scenario(
            'event = [{ at = "0s", slow = { nodes = "n1", factor = 4 } }]', rounds=4, step_ms=20
        ),
        baselines=False,
    )
    assert run.ok, run.checks
    # sleeping is a lower bound, on any machine: 4 rounds × 2 steps × 20 ms × 4
    assert run.wall_s >= 0.64


def test_a_node_with_its_own_pace_pads_to_it(run_it: Runs) -> None:
    text = '[[node]]\nname = "n1"\nstep_ms = 80\n'
    run = run_it(scenario(text, rounds=4), baselines=False)
    assert run.ok, run.checks
    assert run.wall_s >= 0.64  # as above, where the others take 5 ms a step


def test_a_node_that_cannot_start_ends_the_run_with_its_reason(
    run_it: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch = processes_fleet.Fleet.launch

        def occupied(self: processes_fleet.Fleet, name: str) -> None:
            path = self.founded.seats[name].node_toml
            if name == "n1":
                old = f":{self.founded.seats[name].port}"
                path.write_text(path.read_text().replace(old, f":{port}"))
            launch(self, name)

        monkeypatch.setattr(processes_fleet.Fleet, "launch", occupied)
        run = run_it(scenario(), directory=tmp_path / "run", baselines=False)
    assert not run.ok
    assert "in use" in node_of(run, "n1").ended
    assert "before the first round" in node_of(run, "n0").ended
    assert not run.finished


def test_a_run_that_takes_too_long_is_ended_and_says_so(run_it: Runs) -> None:
    run = run_it(scenario(rounds=1000, step_ms=50), baselines=False, timeout_s=2.0)
    assert not run.ok
    assert all(node.ended == "failed: not done after 2 s" for node in run.nodes)


def test_a_folder_of_somebody_else_is_refused(run_it: Runs, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(ConfigError, match="is not empty, and not of an earlier run"):
        run_it(scenario(), directory=tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(ConfigError, match="is a file"):
        clear(tmp_path / "thesis.tex")


def test_a_folder_in_which_a_node_runs_is_refused(tmp_path: Path) -> None:
    clear(tmp_path)
    with StateDirectory(tmp_path / "n0" / "state") as running:
        kept = running.path / "member.key"
        kept.write_text("a key")
        with pytest.raises(StorageError, match="in use by process"):
            clear(tmp_path)
        assert kept.exists()
    clear(tmp_path)
    assert not kept.exists()


def test_slowness_without_a_pace_is_refused_not_skipped(run_it: Runs) -> None:
    text = 'event = [{ at = "round 2", slow = { nodes = "n1", factor = 4 } }]'
    with pytest.raises(ConfigError, match=r"small.toml: event slow .*step_ms, and that is 0"):
        run_it(scenario(text, step_ms=0))


def test_nobody_left_has_no_consensus() -> None:
    assert consensus({}, None) is None  # type: ignore[arg-type]
