"""The library's scenarios meet what they expect, each for the seed that its file names."""

from __future__ import annotations

import pytest
from msgspec import structs
from sims import failed

from scenarios.settings import Scenario, check_scenario, library_names, load_scenario
from scenarios.simulation import simulate

FAULTS = (
    "disk-full",
    "flapping-link",
    "late-founder",
    "long-cut",
    "long-minority-partition",
    "one-way-partition",
    "rolling-restart",
    "slow-tenth",
    "stale-backup",
    "swizzle",
)


def test_the_library_has_a_scenario_for_each_trouble() -> None:
    assert {*FAULTS, "chaos", "wan-partition", "thousand-node-epidemic"} <= set(library_names())


@pytest.mark.parametrize("name", FAULTS)
def test_a_scenario_meets_its_expectations(name: str) -> None:
    run = simulate(load_scenario(name))
    assert run.ok, f"grapevine run {name}: {failed(run)}"
    assert not run.notes or "no effect" not in " ".join(run.notes)


def changed(scenario: Scenario, **tables: dict[str, object]) -> Scenario:
    """The same scenario with some keys of its tables changed."""
    settings = scenario.settings
    made = {k: structs.replace(getattr(settings, k), **v) for k, v in tables.items()}
    return check_scenario(structs.replace(settings, **made), source=scenario.source)


def test_who_does_not_wait_never_learns_what_only_the_slow_ones_know() -> None:
    """The contrast to slow-tenth: the same nodes, rows and seed, and nobody waits."""
    run = simulate(changed(load_scenario("slow-tenth"), learning={"wait": "none"}))
    nines = [node.class_accuracy["9"] for node in run.finished]
    assert len(nines) == 20
    assert max(nines) < 0.1
    others = [sum(n.class_accuracy[str(k)] for k in range(9)) / 9 for n in run.finished]
    assert min(others) > 0.9, "all else is learned"
    assert {check.name for check in failed(run)} == {"class_accuracy_min of 9", "accuracy_min"}


def test_an_epidemic_among_a_hundred() -> None:
    """thousand-node-epidemic with a tenth of its nodes; benchmarks/library.py runs all of them."""
    thousand = load_scenario("thousand-node-epidemic")
    assert len(thousand.graph.nodes) == 1000
    run = simulate(
        changed(thousand, topology={"nodes": 100}, expect={"finished_min": 100}), baselines=True
    )
    assert run.ok, failed(run)
    assert run.baselines is not None
    alone = [one.accuracy for one in run.baselines.local_only if one.accuracy is not None]
    together = [node.accuracy for node in run.finished if node.accuracy is not None]
    assert min(together) > max(alone), "the worst of all is better than the best alone"
    assert sum(node.resumed for node in run.nodes) == 10
