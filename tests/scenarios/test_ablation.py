"""Every safeguard, taken out of the nodes of a simulation, is missed by the checker beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from node.errors import ConfigError
from scenarios.ablation.safeguards import SAFEGUARDS, Safeguard, safeguard
from scenarios.checkers.findings import INVARIANTS
from scenarios.explore import Outcome, run_seed
from scenarios.settings import Scenario, load_scenario

SEEDS = 1000


@cache
def library(name: str) -> Scenario:
    return load_scenario(name)


@cache
def whole(scenario: str, seed: int) -> Outcome:
    """The same seed with nothing taken out."""
    return run_seed(library(scenario), seed)


def first_caught(name: str) -> int | None:
    """The first seed under which the run without ``name`` is caught by its own checker."""
    guard = safeguard(name)
    scenario, called = library(guard.scenario), INVARIANTS[guard.caught_by][0]
    for seed in range(SEEDS):
        if guard.shows(scenario.with_seed(seed).with_chaos()):
            outcome = run_seed(scenario, seed, ablate=name)
            assert not outcome.error, f"seed {seed}: {outcome.error}"
            if any(check.name == called for check in outcome.failed):
                return seed
    return None


def test_there_are_many_and_each_has_its_checker() -> None:
    assert len(SAFEGUARDS) >= 18
    assert {guard.caught_by for guard in SAFEGUARDS.values()} <= set(INVARIANTS)


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_what_is_taken_out_is_caught_and_what_is_whole_is_not(name: str) -> None:
    guard: Safeguard = SAFEGUARDS[name]
    seed = first_caught(name)
    assert seed is not None, f"{name}: no checker noticed within {SEEDS} seeds of {guard.scenario}"
    print(f"{name}: seed {seed} of {guard.scenario}, by '{INVARIANTS[guard.caught_by][0]}'")
    outcome = whole(guard.scenario, seed)
    assert outcome.ok, f"grapevine run {guard.scenario} --seed {seed}: {outcome.why}"


def test_the_table_in_the_docs_has_every_safeguard_and_its_checker() -> None:
    text = (Path(__file__).parents[2] / "docs" / "design.md").read_text(encoding="utf-8")
    for name, guard in SAFEGUARDS.items():
        assert f"| {name} | {guard.protects} | {INVARIANTS[guard.caught_by][0]} |" in text


def test_without_its_checker_a_missing_safeguard_goes_unnoticed_by_it() -> None:
    from scenarios.prepare import prepare
    from scenarios.simulation import Hooks, Simulation

    scenario = library("chaos").with_seed(0).with_chaos()
    hooks = Hooks(ablate="fsync before send", blind=("versions",), evaluate=False)
    run = Simulation(prepare(scenario), hooks)
    run.run()
    finding = run.checkers.findings["versions"]
    assert finding.seen > 0 and finding.broken == 0


def test_an_attacker_keeps_its_safeguards() -> None:
    """It is the others that must be able to do without its good will."""
    from scenarios.prepare import prepare
    from scenarios.simulation import Hooks, Simulation

    scenario = library("chaos").with_seed(1).with_chaos()
    assert scenario.attackers
    run = Simulation(prepare(scenario), Hooks(ablate="deadline", evaluate=False))
    run.run()
    for node in run.nodes:
        patched = "wait_s" in vars(node.core.rounds.arrivals)
        assert patched is (node.name not in scenario.attackers)


def test_a_safeguard_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'signature'"):
        safeguard("signatur")
