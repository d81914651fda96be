"""Stacked training equals single training, and does not depend on who else is in the stack."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from node.learning import batch
from node.learning.batch import evaluate_batch, mix_batch, train_batch
from node.learning.learner import Learner
from node.learning.task import Table, Task
from node.types.events import Apply, Encode, Mix, Source
from node.types.settings import LearningSettings, SplitSettings

TASKS = ["digits", "breast-cancer", "quadratic"]
OPTIMIZERS = ["sgd", "momentum", "adam", "qgm"]
UNEVEN = SplitSettings(kind="dirichlet", alpha=0.2)


def uneven(task):
    return SplitSettings() if task == "quadratic" else UNEVEN


def close(one, other, tolerance):
    torch.testing.assert_close(one.vector.flat, other.vector.flat, atol=tolerance, rtol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_twenty_stacked_steps_are_twenty_single_steps(learners, task, optimizer):
    policy = LearningSettings(
        local_steps=5,
        optimizer=optimizer,
        learning_rate=0.002 if optimizer == "adam" else 0.05,
        weight_decay=0.01,
    )
    stacked, single = (learners(task, 6, policy, uneven(task)) for _ in range(2))
    for round_ in range(1, 5):
        batched = train_batch([(node, round_) for node in stacked])
        for node, other, found in zip(single, stacked, batched, strict=True):
            expected = node.train(round_)
            assert (found.round, found.steps) == (round_, 5)
            assert found.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-5)
            for each in (node, other):
                each.mix(Mix(round_, (), True))
    for node, other in zip(single, stacked, strict=True):
        close(node, other, 1e-4)
        for key, vector in node.optimizer.vectors.items():
            torch.testing.assert_close(vector, other.optimizer.vectors[key], atol=1e-3, rtol=1e-3)
        assert node.optimizer.count == other.optimizer.count


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", TASKS)
def test_a_models_bits_do_not_depend_on_its_company(learners, task, optimizer):
    policy = LearningSettings(local_epochs=1, optimizer=optimizer)
    runs = [learners(task, 16, policy, uneven(task)) for _ in range(3)]
    losses = [{}, {}, {}]
    for round_ in range(1, 3):
        for nodes, size, seen in zip(runs, (1, 3, 16), losses, strict=True):
            order = nodes if size < 16 else nodes[::-1]
            for at in range(0, 16, size):
                some = order[at : at + size]
                found = train_batch([(node, round_) for node in some])
                seen |= {(node.me, round_): one.loss for node, one in zip(some, found, strict=True)}
            for node in nodes:
                node.mix(Mix(round_, (), True))
    assert losses[0] == losses[1] == losses[2]
    figures = [
        [one for at in range(0, 16, size) for one in evaluate_batch(nodes[at : at + size])]
        for nodes, size in zip(runs, (1, 3, 16), strict=True)
    ]
    for nodes, found in zip(runs[1:], figures[1:], strict=True):
        for node, first in zip(nodes, runs[0], strict=True):
            assert torch.equal(node.vector.flat, first.vector.flat)
        assert found == figures[0]


def test_matrices_of_odd_shape_are_aligned_alike_in_every_place():
    """Without alignment the last models of an odd stack differ in their last bits."""

    def make():
        nodes = []
        for seed in range(9):
            task = sequential(
                nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 3)
            )
            policy = LearningSettings(local_steps=6, batch_size=3, optimizer="sgd")
            nodes.append(Learner(task, policy, me=bytes([seed]), seed=seed))
        return nodes

    together, alone = make(), make()
    train_batch([(node, 1) for node in together])
    for node in alone:
        train_batch([(node, 1)])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.x, other.x)
    stack = batch._stack([torch.ones(17), torch.ones(17)])
    assert all(row.data_ptr() % 64 == 0 for row in stack)
    assert float(stack.sum()) == 34


def test_members_with_few_rows_and_epochs_of_different_length(learners):
    policy = LearningSettings(local_epochs=2)
    split = SplitSettings(kind="size", sizes=(1, 1, 3, 40, 200))
    stacked, single = (learners("breast-cancer", 5, policy, split) for _ in range(2))
    batched = train_batch([(node, 1) for node in stacked])
    for node, other, found in zip(single, stacked, batched, strict=True):
        expected = node.train(1)
        assert found.steps == expected.steps
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        close(node, other, 1e-5)
    assert len({found.steps for found in batched}) > 2


@pytest.mark.parametrize("task", TASKS)
def test_figures_of_a_batch_are_the_single_ones(learners, task):
    nodes = learners(task, 5, LearningSettings(local_steps=4), uneven(task))
    train_batch([(node, 1) for node in nodes])
    for node, found in zip(nodes, evaluate_batch(nodes), strict=True):
        expected = node.evaluate()
        for name in expected.__struct_fields__:
            value, other = getattr(expected, name), getattr(found, name)
            assert other == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6))


def sequential(*layers, personal=(), loss=functional.cross_entropy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.4, 0.4, generator=generator)
    x = torch.randn(50, 6, generator=generator)
    rows = Table(x, torch.randint(3, (50,), generator=generator))
    return Task(model, rows, loss, test=rows, own_test=rows, personal=personal)


CASES = {
    "deep tanh": lambda: sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "a personal layer in front": lambda: sequential(
        nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), personal=("0.*",)
    ),
    "a loss object": lambda: sequential(nn.Linear(6, 3), loss=nn.CrossEntropyLoss()),
    "label smoothing": lambda: sequential(
        nn.Linear(6, 3), loss=nn.CrossEntropyLoss(label_smoothing=0.1)
    ),
    "no bias": lambda: sequential(nn.Linear(6, 3, bias=False)),
    "batch norm": lambda: sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
    "dropout": lambda: sequential(nn.Linear(6, 4), nn.Dropout(0.3), nn.Linear(4, 3)),
}
BY_HAND = ("deep tanh", "a personal layer in front", "a loss object")


@pytest.mark.parametrize("case", CASES)
def test_other_models_train_alike_stacked_or_one_by_one(case):
    policy = LearningSettings(local_steps=4)
    stacked, single = (
        [Learner(CASES[case](), policy, me=bytes([i]), seed=i) for i in range(3)] for _ in range(2)
    )
    assert all((batch._stackable(node) is not None) == (case in BY_HAND) for node in stacked)
    for round_ in (1, 2):
        train_batch([(node, round_) for node in stacked])
        for node in single:
            node.train(round_)
    for node, other in zip(single, stacked, strict=True):
        close(node, other, 1e-5)
        assert other.evaluate().loss == pytest.approx(evaluate_batch([other])[0].loss, rel=1e-5)


def test_learners_of_different_shape_go_in_one_call_and_answers_keep_their_order(learners):
    policy = LearningSettings(local_steps=2)
    mixed = [
        *learners("digits", 2, policy),
        *learners("breast-cancer", 2, LearningSettings(local_steps=2, optimizer="AdamW")),
        *learners("quadratic", 2, LearningSettings(local_steps=2, optimizer="adam")),
        *learners("breast-cancer", 1, policy),
    ]
    mixed = [mixed[i] for i in (6, 0, 4, 2, 1, 5, 3)]
    before = [node.evaluate().loss for node in mixed]
    found = train_batch([(node, round_) for round_, node in enumerate(mixed)])
    assert [trained.round for trained in found] == list(range(7))
    after = [metrics.loss for metrics in evaluate_batch(mixed)]
    assert all(now != then for now, then in zip(after, before, strict=True))
    assert after == [pytest.approx(node.evaluate().loss, rel=1e-4) for node in mixed]


def test_nothing_to_train_or_evaluate():
    assert train_batch([]) == []
    assert evaluate_batch([]) == []


def gossiping(learners, header_of, task, rule, f, training):
    """Nine nodes around a ring of degree 4 after some rounds, and the mixes of the next."""
    policy = LearningSettings(local_steps=2, rule=rule, f=f, gamma=1.0 if training else 0.5)
    nodes = learners(task, 9, policy, uneven(task))
    for round_ in (1, 2):
        train_batch([(node, round_) for node in nodes])
        payloads = [node.encode(Encode(round_, round_, True)).payload for node in nodes]
        jobs = []
        for place, node in enumerate(nodes):
            sources = []
            for step in (-2, -1, 1, 2):
                other = (place + step) % len(nodes)
                payload = payloads[other]
                effect = Apply(nodes[other].me, payload.root, header_of(payload, round_))
                assert node.apply(effect, payload.inline).ok
                # one node lacks a neighbour, another weighs its own differently
                if (place, step) != (4, 1):
                    weight = 0.1 if (place, step) == (6, 2) else 0.2
                    sources.append(Source(nodes[other].me, weight, 0))
            jobs.append((node, Mix(round_, tuple(sources), training, 1.2)))
        yield jobs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("rule", "f"),
    [("mean", 0), ("trimmed-mean", 1), ("trimmed-mean", 2), ("median", 0), ("clip", 1)],
)
@pytest.mark.parametrize("task", TASKS)
def test_mixing_together_is_mixing_alone_bit_for_bit(learners, header, task, rule, f, training):
    runs = zip(
        *(gossiping(learners, header, task, rule, f, training) for _ in range(3)), strict=True
    )
    for alone, together, in_threes in runs:
        expected = [node.mix(effect) for node, effect in alone]
        assert mix_batch(together) == expected
        order = in_threes[::-1]
        found = [one for at in range(0, 9, 3) for one in mix_batch(order[at : at + 3])]
        assert found[::-1] == expected
        for (one, _), (other, _), (third, _) in zip(alone, together, in_threes, strict=True):
            assert torch.equal(one.vector.flat, other.vector.flat)
            assert torch.equal(one.vector.flat, third.vector.flat)
            for key, vector in one.optimizer.vectors.items():
                assert torch.equal(vector, other.optimizer.vectors[key])
        # four models bear no two attackers: that node keeps its own, and says so
        assert ["needs" in mixed.kept_own for mixed in expected] == [
            f == 2 and place == 4 for place in range(9)
        ]


def test_mixes_that_are_alike_are_worked_out_together(learners, header, monkeypatch):
    made = []
    mix = batch.rules.mix
    monkeypatch.setattr(batch.rules, "mix", lambda *a, **k: made.append(a[1]) or mix(*a, **k))
    jobs = next(gossiping(learners, header, "digits", "median", 0, True))
    mix_batch(jobs)
    sizes = sorted(own.numel() // jobs[0][0].vector.size for own in made)
    assert sizes == [1, 8], "the one that lacks a neighbour is done alone"


def test_a_task_measured_by_its_loss_has_no_accuracy():
    def make():
        task = sequential(nn.Linear(6, 3))
        task.metric = "loss"
        return Learner(task, LearningSettings(local_steps=1), me=b"m" * 32, seed=1)

    (found,) = evaluate_batch([make()])
    expected = make().evaluate()
    assert found.accuracy is expected.accuracy is None
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_of_equal_outputs_the_first_class_is_chosen_as_by_one_model_alone():
    task = sequential(nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.zero_()
    node = Learner(task, LearningSettings(local_steps=1), me=b"m" * 32, seed=1)
    (found,) = evaluate_batch([node])
    assert found.correct == node.evaluate().correct == int((task.test.y == 0).sum())
