"""Whole gossip without a network: what theory says, that it learns, and what an attacker does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from node.learning.baselines import local_only, pooled
from node.learning.batch import evaluate_batch
from node.learning.data import parts
from node.types.settings import LearningSettings, SplitSettings, TaskSettings
from topology.settings import TopologySettings


def test_one_local_step_on_a_complete_graph_is_centralised_gradient_averaging(learners, gossip):
    policy = LearningSettings(local_steps=1, optimizer="sgd", learning_rate=0.1, batch_size=16)
    split = SplitSettings(kind="resample", per_node=40)
    nodes = learners("digits", 5, policy, split, own_holdout=0.0, validation=0.0)
    central = learners("digits", 1, policy)[0]
    consortium = gossip(nodes, "complete")
    for round_ in range(1, 13):
        central.vector.grad.zero_()
        for node in nodes:
            (batch,) = node.plan(round_)
            x, y = node.task.train.x[batch], node.task.train.y[batch]
            (functional.cross_entropy(central.vector.model(x), y) / len(nodes)).backward()
        central.vector.flat.sub_(central.vector.grad, alpha=0.1)
        for node in nodes:
            assert node.train(round_).steps == 1
        consortium.exchange(round_)
        for node in nodes:
            torch.testing.assert_close(node.x, central.x, atol=1e-5, rtol=0)


TOPOLOGIES = st.one_of(
    st.integers(2, 7).map(lambda n: TopologySettings(kind="path", nodes=n)),
    st.integers(3, 8).map(lambda n: TopologySettings(kind="ring", nodes=n)),
    st.integers(3, 8).map(lambda n: TopologySettings(kind="star", nodes=n)),
    st.integers(2, 8).map(lambda n: TopologySettings(kind="complete", nodes=n)),
    st.sampled_from([2, 4, 8]).map(lambda n: TopologySettings(kind="hypercube", nodes=n)),
    st.integers(6, 8).map(lambda n: TopologySettings(kind="dumbbell", nodes=n)),
)


@given(topology=TOPOLOGIES, sizes=st.lists(st.integers(1, 9), min_size=8, max_size=8))
@settings(max_examples=15, deadline=None)
def test_mixing_alone_ends_at_the_sample_weighted_average_and_keeps_its_sum(
    learners, gossip, topology, sizes
):
    count = topology.nodes
    split = SplitSettings(kind="size", sizes=tuple(map(float, sizes[:count])))
    nodes = learners("quadratic", count, split=split, dimension=6)
    generator = torch.Generator().manual_seed(count)
    for node in nodes:
        node.x.copy_(torch.randn(6, generator=generator))
    samples = np.array([node.samples for node in nodes], dtype=np.float64)
    consortium = gossip(nodes, topology)

    def weighted_sum():
        return samples @ np.stack([node.x.numpy().astype(np.float64) for node in nodes])

    start = weighted_sum()
    second = np.sort(np.abs(np.linalg.eigvals(consortium.weights)))[-2]
    rounds = min(100, math.ceil(math.log(1e-7) / math.log(second))) if second > 1e-9 else 1
    for round_ in range(1, rounds + 1):
        consortium.exchange(round_, training=False)
        np.testing.assert_allclose(weighted_sum(), start, atol=1e-6 * samples.sum() * round_)
    # reversible with respect to the samples: the error shrinks by λ₂ a round in that norm
    left = 6 * second**rounds * (samples.sum() / samples.min()) ** 0.5
    for node in nodes:
        np.testing.assert_allclose(node.x, start / samples.sum(), atol=left + 1e-5)


def test_gamma_below_one_takes_part_of_the_way_while_training(learners, gossip):
    nodes = learners("quadratic", 2, LearningSettings(gamma=0.25), dimension=3)
    nodes[0].x.fill_(1.0)
    nodes[1].x.fill_(3.0)
    consortium = gossip(nodes, "path")
    consortium.exchange(1, training=True)
    torch.testing.assert_close(nodes[0].x, torch.full((3,), 1.25))
    consortium.exchange(2, training=False)
    torch.testing.assert_close(nodes[0].x, torch.full((3,), 2.0))


def test_quadratic_comes_to_its_closed_form_optimum(learners, gossip):
    split = SplitSettings(kind="hospitals")
    policy = LearningSettings(local_steps=1, optimizer="sgd", learning_rate=0.01)
    nodes = learners("quadratic", 5, policy, split, dimension=16)
    before = evaluate_batch(nodes)
    gossip(nodes, "ring").run(600, final=60)
    optimum = nodes[0].task.test.x[0, :16]
    for node, metrics in zip(nodes, before, strict=True):
        after = node.evaluate()
        assert after.accuracy is None
        assert after.loss < 0.001 * metrics.loss
        assert float((node.x - optimum).norm()) < 0.1


def test_digits_on_a_ring_of_eight_beats_every_node_on_its_own(learners, gossip):
    split = SplitSettings(kind="dirichlet", alpha=0.5)
    policy = LearningSettings(rounds=40, local_steps=8)
    nodes = learners("digits", 8, policy, split)
    gossip(nodes, "ring").run(40, final=20)
    chosen = TaskSettings(name="digits", split=split)
    made = parts(chosen, [f"n{i}" for i in range(8)], seed=0)
    alone = local_only(chosen, policy, made, seeds={f"n{i}": i for i in range(8)})
    everything = pooled(chosen, policy, made, seed=0).metrics.accuracy
    worst = min(found.accuracy for found in evaluate_batch(nodes))
    assert worst > max(each.metrics.accuracy for each in alone.values()) + 0.05
    assert worst > everything - 0.05
    assert worst > 0.85


def attack(kind):
    """Node 0 sends its model with the sign flipped, or 10³⁰ everywhere."""

    def tamper(index, data):
        if index:
            return data
        values = np.frombuffer(data, dtype="<f4")
        return (-values if kind == "flip" else np.full_like(values, 1e30)).tobytes()

    return tamper


@pytest.mark.parametrize("kind", ["flip", "huge"])
@pytest.mark.parametrize("rule", ["trimmed-mean", "median", "clip"])
def test_rules_with_f_1_bear_one_attacker_among_ten(learners, gossip, rule, kind):
    policy = LearningSettings(local_steps=8, rule=rule, f=1, norm_bound=0)
    worst = {}
    for tamper in (None, attack(kind)):
        nodes = learners("digits", 10, policy)
        gossip(nodes, "complete").run(12, final=3, tamper=tamper)
        worst[tamper] = min(found.accuracy for found in evaluate_batch(nodes[1:]))
    attacked, clean = worst.popitem()[1], worst[None]
    assert clean > 0.9
    assert attacked > clean - 0.03


def test_the_mean_does_not_bear_a_sign_flipper(learners, gossip):
    nodes = learners("digits", 10, LearningSettings(local_steps=8))
    gossip(nodes, "complete").run(12, final=3, tamper=attack("flip"))
    assert min(found.accuracy for found in evaluate_batch(nodes[1:])) < 0.6


def test_the_norm_bound_keeps_a_huge_model_out(learners, gossip):
    nodes = learners("digits", 3)
    with pytest.raises(AssertionError, match="norm bound"):
        gossip(nodes, "complete").exchange(1, tamper=attack("huge"))
