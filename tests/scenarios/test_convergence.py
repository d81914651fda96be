"""The worst node of a ring comes within three points of one model on all rows.

`benchmarks/convergence.py` prints ten seeds and more; here are the first two of each ring.
"""

from __future__ import annotations

import pytest

from scenarios.settings import parse_scenario
from scenarios.simulation import simulate

SCENARIO = """
name = "convergence"
topology = {{ kind = "ring", nodes = {nodes} }}
[task]
name = "digits"
split = {{ kind = "dirichlet", alpha = 0.5 }}
[learning]
rounds = 60
local_steps = 8
final_mixing = 20
evaluate_every = 1000
[expect]
pooled_gap_max = 0.03
local_gain_min = 0.1
"""


@pytest.mark.parametrize("nodes", [8, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_worst_node_is_near_pooled_and_far_above_alone(nodes: int, seed: int) -> None:
    scenario = parse_scenario(SCENARIO.format(nodes=nodes), source="convergence")
    run = simulate(scenario, seed=seed, baselines=True)
    assert run.ok, [check for check in run.checks if not check.ok]
    assert {"pooled_gap_max", "local_gain_min"} <= {check.name for check in run.checks}
