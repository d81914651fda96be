"""Whether a seed is a run: the same trace in fresh processes under different PYTHONHASHSEEDs.

    python benchmarks/determinism.py [--scenario chaos] [--seeds 200] [--processes 5] [--jobs 2]

Every process runs all seeds and says its trace hashes. Exits with 1 where two of them differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

PROGRAM = """
import sys
from scenarios.settings import load_scenario
from scenarios.simulation import simulate
scenario = load_scenario(sys.argv[1])
for seed in range(int(sys.argv[2])):
    run = simulate(scenario, seed=seed)
    print(run.trace_hash, run.schedule_hash)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="chaos")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    options = parser.parse_args()
    # "random": what every process has where nobody says anything
    hash_seeds = ["0", "1", *(str(7919 * k) for k in range(1, options.processes - 2)), "random"]
    hash_seeds = hash_seeds[: options.processes]
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        traces = list(pool.map(lambda hash_seed: run(options, hash_seed), hash_seeds))
    took = time.perf_counter() - begun
    differing = [seed for seed, said in enumerate(zip(*traces, strict=True)) if len(set(said)) > 1]
    distinct = len(set(traces[0]))
    print(
        f"{options.scenario}: {options.seeds} seeds × {len(traces)} processes "
        f"(PYTHONHASHSEED {', '.join(hash_seeds)}), {distinct} different traces, "
        f"{len(differing)} seeds differ between processes; {took:.0f} s"
    )
    if differing:
        print(f"seeds that differ: {', '.join(map(str, differing))}")
    return 1 if differing or distinct != options.seeds else 0


def run(options: argparse.Namespace, hash_seed: str) -> Sequence[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, options.scenario, str(options.seeds)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines = done.stdout.splitlines()
    if len(lines) != options.seeds:
        raise SystemExit(f"a process ran {len(lines)} of {options.seeds} seeds")
    return lines


if __name__ == "__main__":
    sys.exit(main())
