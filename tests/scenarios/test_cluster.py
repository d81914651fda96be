"""Runs over Ray are those of local processes; without Ray one line says what to install."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.cli.main import main

SCENARIO = """
name = "tiny"
topology = { kind = "ring", nodes = 4 }
task = { name = "quadratic", dimension = 4 }
learning = { rounds = 4, local_steps = 1, final_mixing = 2 }
"""
SWEEP = """
scenario = "tiny.toml"
seeds = "0..1"
[vary]
learning.learning_rate = [0.1, 0.05]
"""
# In a process of its own: Ray leaves threads and sockets behind that no test should inherit.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from scenarios import cluster
from scenarios.explore import explore
from scenarios.settings import load_scenario
from scenarios.sweep import load_sweep, run_sweep
from scenarios.workers import spread

folder = Path(sys.argv[1])
ray = cluster._import()
try:
    cluster._connect(ray)
except Exception as error:
    sys.exit(f"no Ray here: {error}")
scenario = load_scenario(folder / "tiny.toml")

def work(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes([task])

def traces(jobs):
    return [outcome.trace_hash for outcome in explore(scenario, range(6), jobs=jobs)]

def digests(jobs):
    out = folder / f"results-{jobs}"
    done = run_sweep(load_sweep(folder / "sweep.toml"), out, jobs=jobs)
    assert (done.runs, done.failed, done.broken) == (4, 0, ()), done
    held = json.loads((out / "manifest.json").read_text())
    assert held["jobs"] == jobs
    return held["digests"]

said = {
    "killed": sorted((t, a and list(a)) for t, a in spread(work, 5, jobs="ray")),
    "traces": [traces("ray"), traces(2)],
    "digests": [digests("ray"), digests(2)],
    "still": ray.is_initialized(),
}
print(json.dumps(said))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra 'ray'"
)
def test_what_runs_over_ray_is_what_runs_here(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    if "no Ray here" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])  # a machine too busy for Ray's own limits
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["killed"] == [[0, [0]], [1, None], [2, [2]], [3, [3]], [4, [4]]]
    over, here = said["traces"]
    assert over == here
    assert len(set(over)) == 6
    over, here = said["digests"]
    assert over == here
    assert said["still"], "a cluster that was there before is not shut down"


def test_without_ray_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import finds where there is none
    path = tmp_path / "tiny.toml"
    path.write_text(SCENARIO)
    assert main(["run", str(path), "--seeds", "2", "--jobs", "ray"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith("--jobs ray: needs Ray; install grapevine with [ray]")
    assert "\n" not in error
