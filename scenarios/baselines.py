"""What a run is compared with: each node alone, and one model on all rows, as a Run has them."""

from __future__ import annotations

from collections.abc import Mapping

from node.learning import baselines as learning_baselines
from node.learning.baselines import Baseline
from node.learning.task import Part
from scenarios.record import Alone, Baselines
from scenarios.settings import Scenario, derive, node_seed


def baselines(scenario: Scenario, parts: Mapping[str, Part]) -> Baselines:
    """Train both with the same steps, batch and optimiser as one node of the run."""
    task, learning = scenario.settings.task, scenario.training()
    seeds = {name: node_seed(scenario, name) for name in parts}
    alone = learning_baselines.local_only(task, learning, parts, seeds=seeds)
    pooled = learning_baselines.pooled(
        task, learning, parts, seed=derive(scenario.seed, "batches", "", "pooled")
    )
    return Baselines(
        local_only=tuple(_alone(name, found) for name, found in alone.items()),
        pooled=_alone("pooled", pooled),
    )


def _alone(name: str, found: Baseline) -> Alone:
    metrics = found.metrics
    return Alone(
        node=name,
        accuracy=metrics.accuracy,
        auroc=metrics.auroc,
        own_accuracy=metrics.own_accuracy,
        own_auroc=metrics.own_auroc,
        loss=metrics.loss,
        intervals=found.intervals,
    )
