"""How close the worst node comes to one model trained on all rows: a table over ten seeds.

    python benchmarks/convergence.py [--nodes 8,16] [--optimizers qgm,sgd] [--seeds 10]

digits, ring, Dirichlet 0.5, 60 rounds × 8 local steps, 20 rounds of final mixing, in simulation.
The pooled model gets the same steps, batch and optimiser as one node. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

SCENARIO = """
name = "convergence"
topology = {{ kind = "ring", nodes = {nodes} }}
[task]
name = "digits"
split = {{ kind = "dirichlet", alpha = 0.5 }}
[learning]
rounds = 60
local_steps = 8
optimizer = "{optimizer}"
final_mixing = 20
evaluate_every = 1000
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="8,16")
    parser.add_argument("--optimizers", default="qgm,sgd")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print("| ring of | optimiser | seed | alone | pooled | mean | worst | behind | D/‖x̄‖ |")
    print("|---|---|---|---|---|---|---|---|---|")
    for nodes in options.nodes.split(","):
        for optimizer in options.optimizers.split(","):
            gaps = [row(int(nodes), optimizer, seed) for seed in range(options.seeds)]
            print(f"| {nodes} | {optimizer} | **all** | | | | | **≤ {max(gaps):.3f}** | |")


def row(nodes: int, optimizer: str, seed: int) -> float:
    """One line of the table; how far the worst node is behind the pooled model."""
    from scenarios.record import level
    from scenarios.settings import parse_scenario
    from scenarios.simulation import simulate

    text = SCENARIO.format(nodes=nodes, optimizer=optimizer)
    run = simulate(parse_scenario(text, source="convergence"), seed=seed, baselines=True)
    assert run.ok, [check for check in run.checks if not check.ok]
    assert run.baselines is not None
    assert run.baselines.pooled is not None
    alone = level(one.accuracy for one in run.baselines.local_only)
    reached = level(node.accuracy for node in run.nodes)
    pooled = run.baselines.pooled.accuracy
    assert alone is not None
    assert reached is not None
    assert pooled is not None
    cells = (alone.mean, pooled, reached.mean, reached.min, pooled - reached.min)
    shown = " | ".join(f"{value:.3f}" for value in cells)
    print(f"| {nodes} | {optimizer} | {seed} | {shown} | {run.consensus_relative or 0:.4f} |")
    return pooled - reached.min


if __name__ == "__main__":
    main()
