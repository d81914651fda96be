"""What a run is compared with carries its figures and how far they can be trusted."""

from __future__ import annotations

from node.learning.data import parts
from scenarios.baselines import baselines
from scenarios.settings import parse_scenario

HOSPITALS = """
name = "two"
[topology]
kind = "complete"
nodes = 2
[task]
name = "breast-cancer"
[learning]
rounds = 1
"""


def test_alone_and_pooled_have_their_intervals() -> None:
    scenario = parse_scenario(HOSPITALS, source="test")
    found = baselines(scenario, parts(scenario.settings.task, ["a", "b"], seed=1))
    assert [alone.node for alone in found.local_only] == ["a", "b"]
    assert found.pooled is not None
    for alone in (*found.local_only, found.pooled):
        for key in ("accuracy", "auroc", "own_accuracy"):
            low, high = alone.intervals[key]
            assert low <= getattr(alone, key) <= high
