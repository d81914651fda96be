"""A scenario over a broker on real processes: the same file as in simulation, the same verdicts."""

from __future__ import annotations

import json
from pathlib import Path

from sims import found

from node.types.messages import CHUNK_BYTES
from scenarios.processes import run_processes
from scenarios.settings import parse_scenario
from scenarios.simulation import simulate

LOSSY = """
name = "broker-loses-chunks"
seed = 1
topology = { kind = "ring", nodes = 4 }
[task]
name = "quadratic"
dimension = 300000
[learning]
rounds = 5
local_steps = 2
learning_rate = 0.1
final_mixing = 4
wait = "all"
deadline_max_s = 60.0
linger_s = 2.0
[compute]
step_ms = 20
[network]
transport = "mqtt"
latency_ms = 5
loss = 0.15
[expect]
consensus_relative_max = 0.2
"""


def test_chunks_that_a_broker_loses_are_fetched_again_on_real_nodes_too(tmp_path: Path) -> None:
    scenario = parse_scenario(LOSSY, source="lossy.toml")
    assert 2 * CHUNK_BYTES < 4 * 300_000
    virtual = simulate(scenario)
    folder = tmp_path / "run"
    real = run_processes(scenario, directory=folder)
    assert real.ok, found(real)
    for name in ("n0", "n1", "n2", "n3"):
        lines = (folder / name / "log.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        assert {event["via"] for event in events if event["event"] == "linked"} == {"mqtt"}
        assert all(event["listen"] is None for event in events if event["event"] == "ready")
    for run in (virtual, real):
        assert [node.ended for node in run.nodes] == ["finished"] * 4
        assert all(not row.missing for row in run.rows), "nobody had to go without"
    shared = {check.name for check in virtual.checks} & {check.name for check in real.checks}
    assert shared
    assert {c.name: c.ok for c in virtual.checks if c.name in shared} == {
        c.name: c.ok for c in real.checks if c.name in shared
    }
