"""The simulation engine: repeatable, faithful to the core's contract, and honest about faults."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from msgspec import structs
from sims import failed, quadratic

from node.types import events as ev
from scenarios.record import result
from scenarios.settings import load_scenario
from scenarios.simulation import Hooks, simulate

CUT = """
[[event]]
at = "round 3"
partition = [["n0", "n1"], ["n2", "n3", "n4"]]
[[event]]
at = "round 7"
heal = true
"""
CRASH = """
[[event]]
at = "round 3"
crash = "n1"
[[event]]
at = "round 6"
restart = "n1"
"""

TRACES = """
import sys
sys.path.insert(0, "tests/support")
from sims import quadratic
from scenarios.simulation import simulate
scenario = quadratic({events!r})
for seed in range(20):
    run = simulate(scenario, seed=seed)
    print(run.trace_hash, run.schedule_hash, run.consensus_distance)
"""


def test_same_seed_same_trace_in_any_process_under_any_hash_seed() -> None:
    code = TRACES.format(events=CUT + CRASH.replace("3", "5").replace("6", "7"))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
        )
        for hash_seed in ("0", "1", "2", "4242", "random")
    ]
    said = [process.communicate()[0] for process in started]
    assert all(process.returncode == 0 for process in started)
    lines = said[0].splitlines()
    assert len(set(lines)) == 20, "seeds differ from each other"
    assert set(said) == {said[0]}, "processes do not"


def test_weights_change_the_trace_but_not_the_schedule() -> None:
    one, other = quadratic(), quadratic("[expect]\nloss_max = 100.0\n")
    assert simulate(one).trace_hash == simulate(other).trace_hash
    lying = quadratic('[[event]]\nat = "0s"\nattack = "sign-flip"\nnodes = "n0"\n')
    lied = simulate(lying)
    assert lied.schedule_hash == simulate(one).schedule_hash
    assert lied.trace_hash != simulate(one).trace_hash


def test_a_calm_run_finishes_and_agrees() -> None:
    run = simulate(quadratic(rounds=20, mixing=30))
    assert run.ok, failed(run)
    assert [node.ended for node in run.nodes] == ["finished"] * 5
    assert run.consensus_relative is not None
    assert run.consensus_relative < 1e-2
    assert run.distances[-1].distance < run.distances[0].distance
    assert all(not node.rejections and not node.missed for node in run.nodes)
    made = result(run)
    assert made["accuracy"] is None, "no accuracy is defined for quadratic"
    assert made["nodes"]["n0"]["ended"] == "finished"


def test_a_node_that_is_alone_trains_and_is_not_blamed_for_it() -> None:
    run = simulate(quadratic(topology='kind = "ring", nodes = 1', rounds=20))
    assert not failed(run)
    assert run.nodes[0].ended == "finished"


def test_both_sides_of_a_partition_go_on_and_meet_again() -> None:
    run = simulate(quadratic(CUT, rounds=30))
    assert run.ok, failed(run)
    span = run.faults[0]
    assert span.end is not None
    during = [row for row in run.rows if span.start < row.at < span.end]
    assert {row.node for row in during} == {"n0", "n1", "n2", "n3", "n4"}
    # what had arrived before the cut may still be mixed once, a round late
    mine = [row for row in during if row.node == "n1"][2:]
    assert mine
    assert all("n2" not in row.mixed for row in mine)
    assert all("n2" in dict(row.missing) for row in mine)
    after = [row for row in run.rows if row.at > span.end and row.node == "n1"]
    assert any("n2" in row.mixed for row in after)
    assert any(check.name.startswith("after a heal") for check in run.checks)


def test_who_ran_ahead_alone_lets_the_others_come_up_and_mixes_with_them_again() -> None:
    """Alone it waited for nobody; the others are slower than its usual deadline from then on."""
    text = """
    [[event]]
    at = "1900ms"
    slow = { nodes = "n[0-2]", factor = 8 }
    [[event]]
    at = "2s"
    partition = [["n3"], ["n[0-2]"]]
    [[event]]
    at = "3500ms"
    heal = true
    """
    run = simulate(quadratic(text, topology='kind = "complete", nodes = 4', rounds=60))
    assert not failed(run)
    rows = [row for row in run.rows if row.node == "n3" and row.at > 3.5]
    together = [row.round for row in rows if row.mixed]
    assert any("at most 4 are used" in why for row in rows for _, why in row.missing)  # far ahead
    assert together[0] - rows[0].round < 25  # each such wait lets the others come nearer
    assert rows[-10].mixed and together[0] < 50


def test_a_crashed_node_resumes_from_its_disk_and_ends_near_the_others() -> None:
    run = simulate(quadratic(CRASH, rounds=20, mixing=20))
    assert run.ok, failed(run)
    back = next(node for node in run.nodes if node.name == "n1")
    assert (back.ended, back.resumed) == ("finished", 1)
    mine = [row.round for row in run.rows if row.node == "n1"]
    assert mine == sorted(mine), "no round is mixed twice"
    assert run.consensus_relative is not None
    assert run.consensus_relative < 0.05
    others = next(node for node in run.nodes if node.name == "n0")
    assert any(missed.peer == "n1" and missed.first == 4 for missed in others.missed)


def test_a_consortium_that_crashes_as_a_whole_resumes_to_the_same_models() -> None:
    names = '["n0", "n1", "n2", "n3", "n4"]'
    text = f"""
[[event]]
at = "0.83s"
crash = {names}
[[event]]
at = "1s"
restart = {names}
"""
    run, calm = simulate(quadratic(text, rounds=12)), simulate(quadratic(rounds=12))
    assert run.ok, failed(run)
    assert {node.resumed for node in run.nodes} == {1}
    assert [node.digest for node in run.nodes] == [node.digest for node in calm.nodes]


def test_who_never_comes_back_is_named_and_the_others_finish() -> None:
    run = simulate(quadratic('[[event]]\nat = "round 2"\ncrash = ["n1"]\n'))
    assert run.ok, failed(run)
    assert [node.ended for node in run.nodes] == ["finished", "killed"] + ["finished"] * 3
    assert run.absent == ("n1",)
    assert run.faults[0].kind == "crash"
    assert run.faults[0].end is None
    late = simulate(
        quadratic('[[event]]\nat = "round 2"\ncrash = "n1"\n[expect]\nfinished_min = 5\n')
    )
    assert [check.name for check in failed(late)] == ["finished_min"]


def test_a_slow_node_is_waited_for_no_longer_than_the_deadline() -> None:
    text = '[[event]]\nat = "round 2"\nslow = { nodes = ["n2"], factor = 100 }\n'
    run = simulate(quadratic(text))
    assert run.ok, failed(run)
    waits = [row.waited_s for row in run.rows if row.node == "n1"]
    assert 0.5 < max(waits) <= 2.001
    assert all(node.ended == "finished" for node in run.nodes)


def test_link_faults_change_the_links() -> None:
    text = '[[event]]\nat = "round 2"\nlink = { latency_ms = 400 }\n'
    slow, fast = simulate(quadratic(text)), simulate(quadratic())
    assert slow.ok, failed(slow)
    assert slow.virtual_s is not None
    assert fast.virtual_s is not None
    assert slow.virtual_s > 2 * fast.virtual_s


def test_a_node_whose_model_explodes_stops_and_says_why() -> None:
    scenario = quadratic()
    learning = structs.replace(scenario.settings.learning, learning_rate=1e6, optimizer="sgd")
    settings = structs.replace(scenario.settings, learning=learning)
    run = simulate(structs.replace(scenario, settings=settings))
    assert {node.ended.split(":")[0] for node in run.nodes} == {"failed"}
    assert all("not finite" in node.ended for node in run.nodes)
    assert [check.name for check in failed(run)] == ["every node that could finish did"]
    assert run.absent == ("n0", "n1", "n2", "n3", "n4")
    assert run.consensus_distance is None


def test_an_event_that_never_happens_fails_the_run() -> None:
    # n4's rounds are counted, and n4 is down
    text = (
        '[[event]]\nat = "round 2"\ncrash = "n4"\n'
        '[[event]]\nat = "round 6"\nslow = { nodes = "n4", factor = 2 }\n'
    )
    run = simulate(quadratic(text))
    assert [check.name for check in failed(run)] == ["every event happened"]
    assert any("never happened" in note for note in run.notes)


def test_large_models_travel_in_chunks_over_a_bandwidth() -> None:
    scenario = quadratic(rounds=2, mixing=1)
    settings = structs.replace(
        scenario.settings,
        task=structs.replace(scenario.settings.task, dimension=300_000),  # 1.2 MB: three chunks
        network=structs.replace(scenario.settings.network, bandwidth_mbps=100.0, loss=0.0),
    )
    run = simulate(structs.replace(scenario, settings=settings))
    assert run.ok, failed(run)
    genuine = next(check for check in run.checks if check.name.startswith("only what its owner"))
    assert genuine.value == "30 looked at", "3 rounds, 5 nodes, 2 neighbours each"
    # two copies leave and two arrive at 12.5 MB/s: some 0.2 s, where the latency is 0.02
    assert min(row.waited_s for row in run.rows) > 0.15


def test_nothing_leaves_before_what_it_rests_on_is_durable() -> None:
    scenario = quadratic()
    slow_disk = load_with(scenario, persist_ms=30.0)
    order: dict[str, list[tuple[str, int]]] = defaultdict(list)
    held: list[int] = []

    def watch(name: str, effect: ev.Effect, _: float) -> None:
        if isinstance(effect, ev.Persist):
            order[name].append(("persist", effect.id))
        elif isinstance(effect, ev.Send) and effect.after is not None:
            held.append(effect.after)

    run = simulate(slow_disk, hooks=Hooks(on_effect=watch))
    assert run.ok, failed(run)
    assert held
    quick = simulate(scenario)
    assert run.virtual_s is not None
    assert quick.virtual_s is not None
    # every round waits for its version's record: 12 rounds, 30 ms each
    assert run.virtual_s > quick.virtual_s + 12 * 0.03


def load_with(scenario, **compute: float):
    settings = scenario.settings
    changed = structs.replace(settings, compute=structs.replace(settings.compute, **compute))
    return structs.replace(scenario, settings=changed)


TINY = {"topology": 'kind = "ring", nodes = 4', "rounds": 3, "mixing": 2}


def effects_of(name: str) -> int:
    counted = 0

    def watch(node: str, _: ev.Effect, __: float) -> None:
        nonlocal counted
        counted += node == name

    simulate(quadratic(**TINY), hooks=Hooks(on_effect=watch, evaluate=False))
    return counted


def test_a_node_killed_at_any_effect_comes_back_and_never_repeats_itself() -> None:
    scenario = quadratic(**TINY)
    total = effects_of("n2")
    assert total > 100
    for k in range(total):
        hooks = Hooks(kill_at={"n2": k}, restart_after_s=0.7, evaluate=False)
        run = simulate(scenario, hooks=hooks)
        assert run.ok, (k, failed(run))
        assert all(node.ended == "finished" for node in run.nodes), k


def test_a_node_killed_at_any_effect_for_good_holds_nobody_up() -> None:
    scenario = quadratic(**TINY)
    for k in range(1, effects_of("n2"), 3):
        hooks = Hooks(kill_at={"n2": k}, restart_after_s=None, evaluate=False)
        run = simulate(scenario, hooks=hooks)
        assert run.ok, (k, failed(run))
        ended = [node.ended for node in run.nodes if node.name != "n2"]
        assert ended == ["finished"] * 3, k


def test_the_collector_is_left_as_it_was_found() -> None:
    import gc

    assert gc.isenabled()
    simulate(quadratic(rounds=2, mixing=0))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.disable()
    try:
        simulate(quadratic(rounds=2, mixing=0))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_cores_that_ended_are_freed_after_a_run() -> None:
    import gc

    from node.protocol.core import Core

    def cores() -> int:
        return sum(type(found) is Core for found in gc.get_objects())

    gc.collect()
    before = cores()
    simulate(quadratic(CRASH, rounds=8))
    assert cores() == before


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "clip"])
def test_one_attacker_is_borne_by_a_robust_rule(rule: str) -> None:
    calm = attack(rule, "")
    for lie in ('attack = "sign-flip"\nscale = 10', 'attack = "huge"'):
        run = attack(rule, lie)
        assert not failed(run)
        assert worst(run) > worst(calm) - 0.03


def test_one_attacker_is_not_borne_by_the_mean() -> None:
    lied = attack("mean", 'attack = "sign-flip"\nscale = 10')
    assert worst(lied) < worst(attack("mean", "")) - 0.1


def attack(rule: str, lie: str):
    from scenarios.settings import parse_scenario

    text = f"""
name = "attack"
topology = {{ kind = "complete", nodes = 10 }}
[task]
name = "digits"
[learning]
rounds = 8
local_steps = 8
final_mixing = 0
evaluate_every = 100
rule = "{rule}"
f = {1 if rule in ("trimmed-mean", "clip") else 0}
"""
    event = f'[[event]]\nat = "0s"\nnodes = "n3"\n{lie}\n' if lie else ""
    return simulate(parse_scenario(text + event, source="attack.toml"))


def worst(run) -> float:
    return min(node.accuracy for node in run.nodes if node.name != "n3")


def test_a_complete_graph_with_one_step_is_centralised_gradient_descent() -> None:
    from scenarios.prepare import prepare
    from scenarios.settings import parse_scenario
    from scenarios.simulation import Simulation

    text = """
name = "central"
topology = { kind = "complete", nodes = 4 }
[task]
name = "digits"
split = { kind = "resample", per_node = 100 }
own_holdout = 0.0
validation = 0.0
[learning]
rounds = 10
local_steps = 1
optimizer = "sgd"
final_mixing = 0
"""
    scenario = parse_scenario(text, source="central.toml")
    simulation = Simulation(prepare(scenario))
    simulation.run()
    reference = [simulation.founded.learner(name) for name in simulation.founded.names]
    assert len({learner.samples for learner in reference}) == 1
    for round_ in range(1, 11):
        for learner in reference:
            learner.train(round_)
        mean = torch.stack([learner.x.detach() for learner in reference]).double().mean(0).float()
        for learner in reference:
            learner.x.detach().copy_(mean)
    for node in simulation.nodes:
        assert torch.allclose(node.learner.x, mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wan-partition", "crash-and-return", "hospitals"])
def test_the_library_meets_its_expectations(name: str) -> None:
    run = simulate(load_scenario(name))
    assert run.ok, failed(run)
