"""What [expect] judges, with its edges: at the limit, not measured, nobody finished."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sims import quadratic

from node.errors import ConfigError
from scenarios.expectations import Evidence, Reconvergence, judge, reconvergence, remarks
from scenarios.measures import Spread
from scenarios.record import Alone, Baselines, Check, Missed, NodeRun, Run, level, result
from scenarios.settings import parse_scenario
from scenarios.simulation import simulate

NODES = (
    NodeRun(
        name="a",
        samples=10,
        ended="finished",
        rounds=5,
        accuracy=0.9,
        own_accuracy=0.8,
        class_accuracy={"3": 0.7, "4": 1.0},
    ),
    NodeRun(
        name="b",
        samples=10,
        ended="finished",
        rounds=5,
        accuracy=0.8,
        own_accuracy=0.9,
        class_accuracy={"3": 0.6, "4": 0.9},
    ),
    NodeRun(name="c", samples=10, ended="killed", rounds=2),
)
BASELINES = Baselines(
    local_only=(Alone(node="a", accuracy=0.5), Alone(node="b", accuracy=0.7)),
    pooled=Alone(node="pooled", accuracy=0.9),
)


def verdict(text: str, task: str = "digits", **changes: Any) -> dict[str, Check]:
    head = f'name = "t"\ntopology = {{ kind = "ring", nodes = 5 }}\ntask = {{ name = "{task}" }}\n'
    scenario = parse_scenario(f"{head}[expect]\n{text}", source="t.toml")
    evidence = Evidence(
        **{
            "nodes": NODES,
            "could_finish": ("a", "b"),
            "distance": 0.2,
            "relative": 0.1,
            "baselines": BASELINES,
            **changes,
        }
    )
    return {check.name: check for check in judge(scenario, evidence)}


@pytest.mark.parametrize(
    ("name", "limit", "value", "other"),
    [
        ("accuracy_min", 0.8, 0.8, 0.81),
        ("accuracy_mean_min", 0.85, 0.85, 0.86),
        ("own_accuracy_min", 0.8, 0.8, 0.81),
        ("consensus_distance_max", 0.2, 0.2, 0.19),
        ("consensus_relative_max", 0.1, 0.1, 0.09),
        ("pooled_gap_max", 0.11, 0.1, 0.09),
        ("local_gain_min", 0.24, 0.25, 0.26),
        ("finished_min", 2, 2, 3),
        ("missed_rounds_max", 0, 0, None),
    ],
)
def test_each_limit_holds_at_its_value_and_not_beyond(
    name: str, limit: float, value: float, other: float | None
) -> None:
    held = verdict(f"{name} = {limit}")[name]
    assert held.ok
    assert held.value == pytest.approx(value)
    if other is not None:
        assert not verdict(f"{name} = {other}")[name].ok


@pytest.mark.parametrize("name", ["accuracy_min", "auroc_min", "loss_max", "pooled_gap_max"])
def test_what_was_not_measured_does_not_hold(name: str) -> None:
    bare = tuple(NodeRun(name=n.name, samples=1, ended=n.ended, rounds=n.rounds) for n in NODES)
    task = "breast-cancer" if name == "auroc_min" else "digits"
    check = verdict(f"{name} = 0.5", task=task, nodes=bare, baselines=None)[name]
    assert not check.ok
    assert check.value is None


def test_one_node_without_a_figure_is_not_left_out() -> None:
    partly = (NODES[0], NodeRun(name="b", samples=1, ended="finished", rounds=5), NODES[2])
    assert not verdict("accuracy_min = 0.1", nodes=partly)["accuracy_min"].ok


def test_every_node_that_could_finish_must() -> None:
    assert verdict("")["every node that could finish did"].ok
    more = verdict("", could_finish=("a", "b", "c"))
    assert not more["every node that could finish did"].ok


def test_the_worst_node_of_each_class_counts() -> None:
    checks = verdict("class_accuracy_min = { 3 = 0.65, 4 = 0.9 }")
    assert not checks["class_accuracy_min of 3"].ok
    assert checks["class_accuracy_min of 3"].value == 0.6
    assert checks["class_accuracy_min of 4"].ok
    # nobody measured the fives: that is no reason to pass
    assert not verdict("class_accuracy_min = { 5 = 0.0 }")["class_accuracy_min of 5"].ok


def test_missed_rounds_are_counted_over_all_nodes() -> None:
    missed = NodeRun(
        name="a", samples=1, ended="finished", rounds=5, missed=(Missed("b", 3, 1, 3, "cut"),)
    )
    assert not verdict("missed_rounds_max = 2", nodes=(missed,))["missed_rounds_max"].ok


def test_reconvergence_is_against_the_run_without_faults() -> None:
    free = dict.fromkeys(range(1, 20), 1.0)
    faulty = {r: 1.0 if r < 5 else 4.0 if r < 12 else 1.4 for r in range(1, 20)}
    found = reconvergence(faulty, free, mended=9, broken=4)
    assert found == Reconvergence(rounds=3, peak=4.0)
    assert remarks(found) == (
        "consensus distance peaked at 4.00× that of the same run without faults",
    )
    never = reconvergence({**faulty, **dict.fromkeys(range(12, 20), 1.6)}, free, mended=9, broken=4)
    assert never.rounds is None
    calm = reconvergence(free, free, mended=9, broken=4)
    assert "the fault had no effect" in remarks(calm)


def test_reconvergence_is_judged() -> None:
    scenario = quadratic(
        '[[event]]\nat = "round 2"\ncrash = "n1"\n[[event]]\nat = "round 4"\nrestart = "n1"\n'
        "[expect]\nreconverged_within_rounds = 3\n"
    )
    for rounds, ok in ((3, True), (4, False), (None, False)):
        evidence = Evidence(
            nodes=NODES,
            could_finish=(),
            reconvergence=Reconvergence(rounds=rounds, peak=2.0),
        )
        assert judge(scenario, evidence)[-1].ok is ok
    assert not judge(scenario, Evidence(nodes=NODES, could_finish=()))[-1].ok


def test_expectations_that_need_baselines_are_refused_without_them() -> None:
    with pytest.raises(ConfigError, match="pooled_gap_max' needs the baselines"):
        simulate(
            parse_scenario(
                'name = "t"\ntopology = { kind = "ring", nodes = 5 }\ntask = { name = "digits" }\n'
                "[expect]\npooled_gap_max = 0.1\n",
                source="t.toml",
            )
        )


def test_baselines_are_trained_on_request() -> None:
    run = simulate(quadratic(), baselines=True)
    assert run.baselines is not None
    assert run.baselines.pooled is not None
    assert [alone.node for alone in run.baselines.local_only] == ["n0", "n1", "n2", "n3", "n4"]
    assert run.baselines_s is not None
    losses = level(alone.loss for alone in run.baselines.local_only)
    together = level(node.loss for node in run.nodes)
    assert losses is not None
    assert together is not None
    assert together.mean < losses.mean, "alone, each finds its own minimum"


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    size=st.integers(1, 20),
    scale=st.floats(1e-6, 1e3),
)
def test_running_sums_give_the_distance_of_the_formula(
    seed: int, n: int, size: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    models = rng.normal(size=size) * 1e2 + rng.normal(size=(n, size)) * scale
    weights = rng.integers(1, 500, n).astype(np.float64)
    spread = Spread(models[0].copy())
    for cut in (slice(0, n // 2), slice(n // 2, n)):
        if len(weights[cut]):
            spread.add(models[cut], weights[cut])
    share = weights / weights.sum()
    mean = share @ models
    wanted = math.sqrt(float(share @ ((models - mean) ** 2).sum(1)))
    distance, relative = spread.distance()
    assert distance == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert relative == pytest.approx(wanted / float(np.linalg.norm(mean)), rel=1e-5, abs=1e-9)


def test_the_json_holds_no_number_that_json_has_not() -> None:
    node = NodeRun(name="a", samples=1, ended="finished", rounds=1, loss=float("nan"))
    run = Run(
        scenario="x",
        engine="simulation",
        seed=0,
        rounds=1,
        training_rounds=1,
        graph_nodes=("a",),
        edges=(),
        nodes=(node,),
        checks=(Check("c", False, float("inf"), 1.0),),
    )
    made = result(run)
    assert made["nodes"]["a"]["loss"] is None
    assert made["checks"][0]["value"] is None
    assert made["ok"] is False
    assert torch.isfinite(torch.tensor(made["wall_s"]))
