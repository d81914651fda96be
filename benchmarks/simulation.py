"""How fast the simulation is: a run's time with real signatures, and where that time goes.

    python benchmarks/simulation.py [--sizes 16,100,1000,10000] [--repeat 1] [--profile] [--json]

digits (MLP 64-32-10), 4-regular graph, 20 rounds, 6 local steps, 90 rows a node; every node is
evaluated after every round, from 10,000 nodes on after every fifth. Each size runs in a process of
its own, so that its peak of memory is its own. wall_s is without imports, data and the making of
nodes (setup_s). ``busy`` is the share of that time in which the process had a core: on a machine
that does other things as well, wall_s × busy is nearer the truth. A benchmark, not a test: nothing
fails on a slow machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

SCENARIO = """
name = "benchmark"
topology = {{ kind = "regular", degree = 4, nodes = {nodes} }}
[task]
name = "digits"
split = {{ kind = "resample", per_node = 90 }}
[learning]
rounds = {rounds}
local_steps = 6
final_mixing = 0
evaluate_every = {every}
"""

# The folder that a function stands in is the part that its own time counts for.
PARTS = ("node/protocol", "node/learning", "scenarios", "torch", "crypto", "nacl", "msgspec")


FIFTH_FROM = 10_000  # from so many nodes on only every fifth round is evaluated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="16", help="numbers of nodes, separated by commas")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--evaluate-every", type=int, help="rounds; unless given 1, or 5 from 10,000"
    )
    parser.add_argument("--repeat", type=int, default=1, help="runs of each size; the best counts")
    parser.add_argument("--profile", action="store_true", help="where one more run's time goes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    if options.in_this_process:
        print(json.dumps(measure(sizes[0], options)))
        return
    found = []
    for size in sizes:
        found.append(apart(size, options))
        if not options.json:
            show(found[-1])
    costs = [figures["ms_per_node_round"] for figures in found]
    ratio = round(max(costs) / min(costs), 2)
    if options.json:
        print(json.dumps({"sizes": found, "cost_ratio": ratio}, indent=2))
    elif len(found) > 1:
        print(f"cost per node and round, dearest size over cheapest: {ratio}")


def apart(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one size, from a fresh process."""
    command = [sys.executable, __file__, "--in-this-process", "--sizes", str(size)]
    command += ["--rounds", str(options.rounds), "--repeat", str(options.repeat)]
    if options.evaluate_every:
        command += ["--evaluate-every", str(options.evaluate_every)]
    if options.profile:
        command.append("--profile")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    from scenarios.settings import parse_scenario
    from scenarios.simulation import simulate

    every = options.evaluate_every or (5 if size >= FIFTH_FROM else 1)
    text = SCENARIO.format(nodes=size, rounds=options.rounds, every=every)
    scenario = parse_scenario(text, source="benchmark")
    runs, busy = [], []
    for _ in range(options.repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        runs.append(simulate(scenario))
        busy.append((time.process_time() - cpu) / (time.perf_counter() - wall))
    best = min(range(len(runs)), key=lambda place: runs[place].wall_s)
    run = runs[best]
    figures = {
        "nodes": size,
        "rounds": options.rounds,
        "evaluated_every": every,
        "wall_s": [round(each.wall_s, 3) for each in runs],
        "setup_s": round(run.setup_s, 3),
        "busy": round(busy[best], 2),
        "ms_per_node_round": round(1000 * run.wall_s / size / options.rounds, 3),
        # of the whole process, setup and imports included; KiB on Linux
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
        "sent_mb": round(sum(node.sent_bytes for node in run.nodes) / 1e6, 2),
        "accuracy_min": round(min(node.accuracy or 0.0 for node in run.nodes), 4),
        "ok": run.ok,
        "same_trace": len({each.trace_hash for each in runs}) == 1,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
    }
    if options.profile:
        figures["profile"] = profile(lambda: simulate(scenario))
    return figures


def show(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if name != "profile":
            print(f"{name:>20}  {value}")
    for part, share in figures.get("profile", {}).items():
        print(f"{share:>19.1%}  {part}")
    print(flush=True)


def profile(work) -> dict[str, float]:
    """Share of time by part, under cProfile (which makes Python code look dearer than it is)."""
    profiler = cProfile.Profile()
    profiler.enable()
    work()
    profiler.disable()
    spent: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():
        where = file.replace(os.sep, "/")
        text = where if where not in ("~", "") else name
        part = next((p for p in PARTS if p in text), "other")
        spent[part] = spent.get(part, 0.0) + own
    total = sum(spent.values())
    return {part: own / total for part, own in sorted(spent.items(), key=lambda item: -item[1])}


if __name__ == "__main__":
    main()
