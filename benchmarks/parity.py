"""Every scenario of the library in full on both engines: verdicts and figures side by side.

    python benchmarks/parity.py [NAME …] [--seeds 5] [--jobs 1]

Real runs take their real time: some six minutes for the library, one file after another. --seeds:
how many seeds simulation runs to show by how much figures spread anyway. --jobs: files at a time;
more than one where the machine has cores to spare. Scenarios of more nodes than a machine can run
as processes are left out, and named. A benchmark, not a test; exit code 1 where verdicts differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from scenarios.nursery import Nursery
from scenarios.parity import differences
from scenarios.processes import run_processes
from scenarios.record import Level, Run, level
from scenarios.settings import library_names, load_scenario
from scenarios.simulation import simulate

NODES_MAX: Final = 64  # of some 40 MB of memory each that they do not share


class Pair(NamedTuple):
    name: str
    real: Run
    virtual: Run
    seeds: list[Run]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    names = options.names or library_names()
    few = [name for name in names if len(load_scenario(name).graph.nodes) <= NODES_MAX]
    differ = 0
    print(f"{'':26}{'':12}{'verdict':>8}{'accuracy':>10}{'least':>8}{'D/norm':>10}{'wall s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        nurseries = [Nursery(Path(folder) / f"{n}.log") for n in range(options.jobs)]
        try:
            with ThreadPoolExecutor(options.jobs) as pool:
                queues = [few[n :: options.jobs] for n in range(options.jobs)]
                runs = pool.map(_real, queues, nurseries)
            real = {run.scenario: run for found in runs for run in found}
        finally:
            for nursery in nurseries:
                nursery.close()
    for name in few:
        differ += _show(_pair(name, real[load_scenario(name).name], options.seeds))
    for name in sorted(set(names) - set(few)):
        print(f"{name}: not run, it has more than {NODES_MAX} nodes")
    return 1 if differ else 0


def _real(names: Sequence[str], nursery: Nursery) -> list[Run]:
    return [run_processes(load_scenario(n), nursery=nursery, baselines=False) for n in names]


def _pair(name: str, real: Run, seeds: int) -> Pair:
    loaded = load_scenario(name)
    others = [simulate(loaded, seed=loaded.seed + n + 1) for n in range(seeds)]
    return Pair(name, real, simulate(loaded), others)


def _show(pair: Pair) -> int:
    """Print one scenario; how many differences there are."""
    for run in (pair.virtual, pair.real):
        name = pair.name if run is pair.virtual else ""
        print(f"{name:26}{run.engine:12}{'ok' if run.ok else 'FAIL':>8}{_figures([run])}"
              f"{run.virtual_s or run.wall_s:8.1f}")  # fmt: skip
    if pair.seeds:
        held = sum(run.ok for run in pair.seeds)
        print(f"{'':26}{'seeds':12}{f'{held} of {len(pair.seeds)}':>8}{_figures(pair.seeds)}")
    found = differences(pair.virtual, pair.real)
    for sentence in found:
        print(f"    {sentence}")
    sys.stdout.flush()
    return len(found)


def _figures(runs: Sequence[Run]) -> str:
    """Mean accuracy and least, D/‖x̄‖; of several runs the greatest difference between two."""
    columns = []
    for digits, width, values in (
        (4, 10, [found.mean for run in runs if (found := _accuracy(run))]),
        (4, 8, [found.min for run in runs if (found := _accuracy(run))]),
        (2, 10, [run.consensus_relative for run in runs if run.consensus_relative is not None]),
    ):
        if not values:
            columns.append(f"{'–':>{width}}")
        elif len(values) == 1:
            columns.append(f"{values[0]:{width}.{digits}{'f' if digits == 4 else 'e'}}")
        else:
            spread = f"Δ{max(values) - min(values):.3f}" if digits == 4 else _geometric(values)
            columns.append(f"{spread:>{width}}")
    return "".join(columns)


def _geometric(values: Sequence[float]) -> str:
    """Of distances, which spread over decades: the greatest over the least."""
    return f"×{max(values) / max(min(values), sys.float_info.min):.1f}"


def _accuracy(run: Run) -> Level | None:
    return level(node.accuracy for node in run.finished if node.name not in run.attackers)


if __name__ == "__main__":
    sys.exit(main())
