"""Accuracy on digits along rings, by seeds, beside the baselines: prints one table.

Dirichlet 0.5, 60 rounds × 8 local steps, 20 mixing rounds at the end, a common initial model, in
simulation; local-only and pooled get the same steps, batch and optimiser as one node. The split,
the initial model and every schedule follow from the seed. Nothing here is chosen by its result.

    python benchmarks/digits.py [--seeds 10] [--nodes 8 16] [--optimizers qgm sgd]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

from scenarios.settings import parse_scenario
from scenarios.simulation import simulate

SCENARIO = """
name = "digits-ring-{nodes}"
topology = {{ kind = "ring", nodes = {nodes} }}
[task]
name = "digits"
split = {{ kind = "dirichlet", alpha = 0.5 }}
[learning]
rounds = 60
local_steps = 8
batch_size = 16
learning_rate = 0.1
optimizer = "{optimizer}"
momentum = 0.9
final_mixing = 20
evaluate_every = 80
[compute]
step_ms = 20
[network]
latency_ms = 5
"""


def one(nodes: int, optimizer: str, seed: int) -> dict[str, float]:
    text = SCENARIO.format(nodes=nodes, optimizer=optimizer)
    scenario = parse_scenario(text, source="digits").with_seed(seed)
    run = simulate(scenario, seed=seed, baselines=True)
    assert run.baselines is not None
    assert run.baselines.pooled is not None
    alone = [metrics.accuracy for metrics in run.baselines.local_only]
    together = [node.accuracy for node in run.nodes]
    pooled = run.baselines.pooled.accuracy
    return {
        "seed": seed,
        "pooled": pooled,
        "mean": mean(together),
        "worst": min(together),
        "gap": pooled - min(together),
        "local_mean": mean(alone),
        "local_worst": min(alone),
        "distance": run.consensus_distance,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--optimizers", nargs="+", default=["qgm", "sgd"])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    keys = ("pooled", "mean", "worst", "local_mean", "local_worst", "distance")
    rows = []
    print("nodes optimizer  pooled  mean  worst  local mean  local worst  D  |  largest gap")
    for nodes in chosen.nodes:
        for optimizer in chosen.optimizers:
            found = [one(nodes, optimizer, seed) for seed in range(chosen.seeds)]
            rows.append({"nodes": nodes, "optimizer": optimizer, "seeds": found})
            cells = "  ".join(f"{mean(f[key] for f in found):.4f}" for key in keys)
            gap = max(f["gap"] for f in found)
            print(f"{nodes:5d} {optimizer:9s}  {cells}  |  {100 * gap:.1f} points", flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
