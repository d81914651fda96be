"""Over-relaxed final mixing: the same fixed point, nothing lost on the way, sooner there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from node.types.events import Apply, Encode, Mix, Rebase, Source
from node.types.settings import LearningSettings, SplitSettings
from topology.measure import relaxation, second_eigenvalue

NO_TRAINING = LearningSettings(local_steps=0)


def spread(gossip, samples):
    models = np.stack([one.x.detach().double().numpy() for one in gossip.learners])
    share = samples / samples.sum()
    centre = share @ models
    return centre, float(np.sqrt(share @ ((models - centre) ** 2).sum(axis=1)))


def mixed(gossip, rounds, omega):
    """Rounds of mixing alone, by hand: (weighted averages, disagreements)."""
    samples = np.array([one.samples for one in gossip.learners], dtype=np.float64)
    found = [spread(gossip, samples)]
    for round_ in range(1, rounds + 1):
        payloads = [one.encode(Encode(round_, round_, True)).payload for one in gossip.learners]
        for i, one in enumerate(gossip.learners):
            sources = []
            for j, other in enumerate(gossip.learners):
                if i != j and gossip.weights[i, j]:
                    head = gossip.header(payloads[j], round_)
                    one.apply(Apply(other.me, payloads[j].root, head), payloads[j].inline)
                    sources.append(Source(other.me, float(gossip.weights[i, j]), 0))
            one.mix(Mix(round_, tuple(sources), False, omega))
        found.append(spread(gossip, samples))
    return found


@pytest.fixture
def scattered(learners, gossip, header):
    def make(topology, count):
        split = SplitSettings(kind="dirichlet", alpha=1.0)
        made = learners("digits", count, NO_TRAINING, split)
        draw = torch.Generator().manual_seed(5)
        for one in made:
            one.x.detach().add_(torch.randn(one.x.shape, generator=draw))
        net = gossip(made, topology)
        net.header = header
        samples = {f"n{i}": one.samples for i, one in enumerate(made)}
        return net, relaxation(second_eigenvalue(net.graph, samples))

    return make


@pytest.mark.parametrize(("topology", "count"), [("ring", 8), ("path", 5), ("hypercube", 8)])
def test_relaxed_mixing_keeps_the_weighted_average_and_is_faster(scattered, topology, count):
    plain = mixed(scattered(topology, count)[0], 25, 1.0)
    net, omega = scattered(topology, count)
    relaxed = mixed(net, 25, omega)
    for centre, _ in relaxed:
        np.testing.assert_allclose(centre, relaxed[0][0], atol=2e-5)
    assert relaxed[-1][1] < 0.2 * plain[-1][1]


def test_relaxed_mixing_is_resumed_exactly(scattered, learners):
    net, omega = scattered("ring", 4)
    mixed(net, 3, omega)
    one = net.learners[0]
    (copy, *_) = learners("digits", 4, NO_TRAINING, SplitSettings(kind="dirichlet", alpha=1.0))
    copy.load_state(*one.state())
    for each in (one, copy):
        each.encode(Encode(4, 4, True))
        each.mix(Mix(4, (), False, omega))
    assert torch.equal(one.x, copy.x)


def test_training_or_a_new_start_forgets_the_earlier_model(scattered):
    for forget in (lambda one: one.mix(Mix(9, (), True)), lambda one: one.rebase(Rebase(9, ()))):
        net, omega = scattered("ring", 4)
        mixed(net, 2, omega)
        one = net.learners[0]
        forget(one)
        one.encode(Encode(10, 10, True))
        before = one.x.detach().clone()
        one.mix(Mix(10, (), False, omega))
        assert torch.equal(one.x, before)


def test_relaxation_is_between_one_and_two():
    assert relaxation(0.0) == 1.0
    assert 1.0 < relaxation(0.5) < relaxation(0.999) < 2.0
