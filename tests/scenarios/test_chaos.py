"""Chaos from the seed: the same everywhere, always of several kinds, always over before the end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from sims import failed

from node.errors import ConfigError
from scenarios.attacks.attacker import attacks
from scenarios.events import check_sequence
from scenarios.explore import explore
from scenarios.faults import Attack, Fault
from scenarios.settings import Scenario, load_scenario, parse_scenario, shortest_s
from scenarios.simulation import simulate

TRACES = """
from scenarios.settings import load_scenario
from scenarios.simulation import simulate
for seed in range(3):
    run = simulate(load_scenario("chaos"), seed=seed)
    print(run.trace_hash, run.schedule_hash, [span.label for span in run.faults])
"""
HEAD = """
name = "t"
topology = { kind = "ring", nodes = 4 }
[task]
name = "quadratic"
[learning]
rounds = 20
local_steps = 2
[compute]
step_ms = 100
"""


def drawn(seed: int) -> tuple[Scenario, tuple[Fault, ...]]:
    scenario = load_scenario("chaos").with_seed(seed).with_chaos()
    return scenario, scenario.faults


def test_the_same_seed_draws_the_same_run_in_any_process() -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRACES],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
        )
        for hash_seed in ("0", "4242")
    ]
    one, other = (process.communicate()[0] for process in started)
    assert all(process.returncode == 0 for process in started)
    assert len(set(one.splitlines())) == 3
    assert one == other


def test_every_seed_draws_what_could_have_been_written() -> None:
    seen = set()
    for seed in range(600):
        scenario, faults = drawn(seed)
        check_sequence(faults, "chaos.toml")
        assert len(scenario.attackers) <= 1
        shortest = shortest_s(scenario, scenario.settings.learning.local_steps or 0)
        assert all(0 < (fault.at.seconds or 0) < shortest for fault in faults)
        kinds = {fault.kind for fault in faults if not fault.mends} - {"clock_skew"}
        assert len(kinds) >= 4
        seen |= kinds | {fault.kind for fault in faults}
    assert seen == {
        *("partition", "heal", "crash", "restart", "pause", "resume"),
        *("slow", "reset", "attack", "link", "clog", "unclog", "disk_full", "clock_skew"),
    }


def test_attacks_of_every_kind_are_drawn_and_half_of_them_last() -> None:
    scenarios = [drawn(seed)[0] for seed in range(600)]
    started = [f for s in scenarios for f in s.faults if isinstance(f, Attack) and not f.ends]
    ended = [f for s in scenarios for f in s.faults if isinstance(f, Attack) and f.ends]
    assert {fault.what for fault in started} == set(attacks())
    assert 0.4 < len(ended) / len(started) < 0.6


def test_chaos_draws_the_attacks_that_it_is_told() -> None:
    text = HEAD + '[chaos]\nattack = 5\nattacks = ["replay", "zero"]\n'
    scenario = parse_scenario(text, source="t.toml")
    kinds = set()
    for seed in range(40):
        faults = scenario.with_seed(seed).with_chaos().faults
        kinds |= {fault.what for fault in faults if isinstance(fault, Attack)}
    assert kinds == {"replay", "zero", "none"}


def test_whatever_was_drawn_has_ended_when_the_training_does() -> None:
    for seed in range(100):
        scenario, faults = drawn(seed)
        slow, links = {}, {}
        for fault in faults:
            if fault.kind == "slow":
                slow.update(dict.fromkeys(fault.nodes, fault.factor))
            if fault.kind == "link":
                (pair,) = fault.pairs
                links[pair] = links.get(pair, scenario.link_shape(*pair)).changed(fault.change)
        assert set(slow.values()) <= {1.0}
        assert all(shape == scenario.link_shape(*pair) for pair, shape in links.items())


@pytest.mark.parametrize("hundred", range(5))
def test_no_checker_fails_in_500_seeds_of_chaos(hundred: int) -> None:
    seeds = range(100 * hundred, 100 * hundred + 100)
    for outcome in explore(load_scenario("chaos"), seeds):
        assert outcome.ok, f"grapevine run chaos --seed {outcome.seed}: {outcome.why}"


def test_no_checker_fails_where_models_travel_in_chunks() -> None:
    scenario = load_scenario("chaos-large")
    for seed in range(3):
        run = simulate(scenario, seed=seed)
        assert run.ok, f"grapevine run chaos-large --seed {seed}: {failed(run)}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[chaos]\npartitions = 1\n", "did you mean 'partition'"),
        ("[chaos]\ncrash = -1\n", "chaos.crash"),
        ("[chaos]\nkinds_min = 9\n", "only 8 kinds have a rate above 0"),
        ("[chaos]\nkinds_min = 8\npause = 0\n", "only 7 kinds"),
        ('[chaos]\nattacks = ["replays"]\n', "no attack 'replays'; did you mean 'replay'"),
        ('[chaos]\nattacks = ["none"]\n', "'none' is no attack"),
        ("[chaos]\nlasts_s = 4\n", "do not fit into the 3.4 s"),
        ('[chaos]\n[[event]]\nat = "1s"\ncrash = "n0"\n', "write [[event]] or [chaos]"),
    ],
)
def test_chaos_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_scenario(HEAD + text, source="t.toml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_chaos_needs_a_known_length_of_a_round() -> None:
    head = HEAD.replace("local_steps = 2", "local_epochs = 1")
    with pytest.raises(ConfigError, match=r"needs 'learning.local_steps'"):
        parse_scenario(head + "[chaos]\n", source="t.toml")
