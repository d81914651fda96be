"""The library's scenarios meet what they expect, each for the seed that its file names."""

from __future__ import annotations

import pytest
from sims import failed

from scenarios.settings import library_names, load_scenario
from scenarios.simulation import simulate

FAULTS = (
    "disk-full",
    "flapping-link",
    "late-founder",
    "long-minority-partition",
    "one-way-partition",
    "rolling-restart",
    "slow-tenth",
    "stale-backup",
    "swizzle",
)


def test_the_library_has_a_scenario_for_each_trouble() -> None:
    assert {*FAULTS, "chaos"} <= set(library_names())


@pytest.mark.parametrize("name", FAULTS)
def test_a_scenario_meets_its_expectations(name: str) -> None:
    run = simulate(load_scenario(name))
    assert run.ok, f"grapevine run {name}: {failed(run)}"
    assert not run.notes or "no effect" not in " ".join(run.notes)
