"""How fast the simulation is: wall_s of a run with real signatures, and where the time goes.

    python benchmarks/simulation.py [--nodes 16] [--rounds 20] [--repeat 3] [--profile] [--json]

digits (MLP 64-32-10), 4-regular graph, 6 local steps, 90 rows a node. wall_s is without imports,
data and the making of nodes (setup_s). A benchmark, not a test: nothing fails on a slow machine.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--evaluate-every", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where one more run's time goes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    from scenarios.settings import parse_scenario
    from scenarios.simulation import simulate

    text = SCENARIO.format(nodes=options.nodes, rounds=options.rounds, every=options.evaluate_every)
    scenario = parse_scenario(text, source="benchmark")
    runs = [simulate(scenario) for _ in range(options.repeat)]
    best = min(runs, key=lambda run: run.wall_s)
    figures = {
        "nodes": options.nodes,
        "rounds": options.rounds,
        "wall_s": [round(run.wall_s, 3) for run in runs],
        "setup_s": [round(run.setup_s, 3) for run in runs],
        "ms_per_node_round": round(1000 * best.wall_s / options.nodes / options.rounds, 3),
        "sent_mb": round(sum(node.sent_bytes for node in best.nodes) / 1e6, 2),
        "accuracy_min": min(node.accuracy or 0.0 for node in best.nodes),
        "same_trace": len({run.trace_hash for run in runs}) == 1,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
    }
    if options.profile:
        figures["profile"] = profile(lambda: simulate(scenario))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        if name != "profile":
            print(f"{name:>20}  {value}")
    for part, share in figures.get("profile", {}).items():
        print(f"{share:>19.1%}  {part}")


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
