"""Optimisers against torch's own, and names that do not exist."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from node.errors import ConfigError
from node.learning.learner import Learner
from node.learning.optimizers import FlatOptimizer, TorchOptimizer
from node.learning.task import Table, Task
from node.types.events import Mix
from node.types.settings import LearningSettings


def task(**more):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    rows = Table(torch.randn(20, 5), torch.randint(3, (20,)))
    return Task(model, rows, functional.cross_entropy, **more)


REFERENCES = {
    "sgd": lambda p: torch.optim.SGD(p, 0.03, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.03, momentum=0.8, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.03, betas=(0.8, 0.999), weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.03, weight_decay=0.1),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_each_name_is_the_optimiser_torch_knows(name):
    policy = LearningSettings(
        local_steps=12, optimizer=name, learning_rate=0.03, momentum=0.8, weight_decay=0.1
    )
    node = Learner(task(), policy, me=b"a", seed=1)
    other = task()
    reference = REFERENCES[name](other.model.parameters())
    for indices in node.plan(1):
        reference.zero_grad()
        functional.cross_entropy(
            other.model(other.train.x[indices]), other.train.y[indices]
        ).backward()
        reference.step()
    node.train(1)
    expected = torch.cat([p.detach().reshape(-1) for p in other.model.parameters()])
    torch.testing.assert_close(node.x, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("rule", "f", "expected"),
    [("mean", 0, "qgm"), ("median", 0, "momentum"), ("clip", 1, "momentum")],
)
def test_the_default_is_qgm_for_the_mean_and_momentum_for_robust_rules(rule, f, expected):
    node = Learner(task(), LearningSettings(rule=rule, f=f), me=b"a", seed=1)
    assert isinstance(node.optimizer, FlatOptimizer)
    assert node.optimizer.hyper.name == expected
    assert node.optimizer.hyper.learning_rate == 0.1


def test_the_tasks_own_optimiser_stands_where_the_policy_names_none():
    own = task(optimizer=lambda parameters: torch.optim.AdamW(parameters, 1e-3))
    node = Learner(own, LearningSettings(), me=b"a", seed=1)
    assert isinstance(node.optimizer, TorchOptimizer)
    assert type(node.optimizer.inner) is torch.optim.AdamW
    named = Learner(own, LearningSettings(optimizer="sgd"), me=b"a", seed=1)
    assert named.optimizer.hyper.name == "sgd"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("adamm", "did you mean 'adam'"),
        ("RMSProp", "did you mean 'RMSprop'"),
        ("LBFGS", "unknown 'LBFGS'"),
        ("SparseAdam", "unknown"),
        ("Optimizer", "unknown"),
        ("lr_scheduler", "unknown"),
        ("Rprop", "refuses"),  # knows no weight decay
    ],
)
def test_optimisers_that_cannot_be_are_refused(name, match):
    with pytest.raises(ConfigError, match=match):
        Learner(task(), LearningSettings(optimizer=name), me=b"a", seed=1)


def test_qgm_with_many_local_steps_does_not_diverge():
    policy = LearningSettings(local_steps=8, optimizer="qgm", learning_rate=0.1)
    node = Learner(task(), policy, me=b"a", seed=1)
    for round_ in range(1, 200):
        node.train(round_)
        node.mix(Mix(round_, (), True))
    assert float(node.x.norm()) < 100
