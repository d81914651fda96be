"""What the consortium is compared with: each member alone, and one node that has all the rows.

Both get what one node of the training gets: rounds, local steps, batch size and optimiser. They
have no neighbours, so there is nothing to mix, neither during the training nor after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from msgspec import Struct, structs

from crypto.identity import NodeId
from node.learning.batch import evaluate_batch, train_batch
from node.learning.learner import Learner
from node.learning.metrics import Interval, Metrics
from node.learning.task import Part, Silo, Table, Task
from node.learning.tasks import build_task
from node.types.events import Finalise, Mix
from node.types.settings import LearningSettings, TaskSettings

Build = Callable[[Silo], Task]


class Baseline(Struct, frozen=True):
    """A model's figures, with 95 % intervals for those of ``Learner.interval`` that exist."""

    metrics: Metrics
    intervals: dict[str, Interval]


def local_only(
    settings: TaskSettings,
    learning: LearningSettings,
    parts: Mapping[str, Part],
    *,
    seeds: Mapping[str, int],
    build: Build = build_task,
) -> dict[str, Baseline]:
    """Every member alone on its own rows, by name. ``seeds``: the members' own, for the batches."""
    learners = [
        _learner(name, settings, learning, part, seed=seeds[name], build=build)
        for name, part in parts.items()
    ]
    return dict(zip(parts, _run(learners, learning.rounds), strict=True))


def pooled(
    settings: TaskSettings,
    learning: LearningSettings,
    parts: Mapping[str, Part],
    *,
    seed: int,
    build: Build = build_task,
) -> Baseline:
    """One node on all members' training rows. Its own_… figures are over all own held-out rows.

    Where the policy counts epochs, it takes the members' mean number of steps a round.
    """
    if learning.local_steps is None:
        epochs = learning.local_epochs or 1
        each = [-(-len(p.train) // min(learning.batch_size, len(p.train))) for p in parts.values()]
        steps = max(1, round(epochs * sum(each) / len(each)))
        learning = structs.replace(learning, local_steps=steps, local_epochs=None)
    learner = _learner("pooled", settings, learning, pool(parts), seed=seed, build=build)
    return _run([learner], learning.rounds)[0]


def pool(parts: Mapping[str, Part]) -> Part:
    """All members' rows as one part.

    quadratic: the weighted sum of the members' functions is again one of the kind, up to a
    constant: the one whose row is the common test row.
    """
    every = list(parts.values())
    if every[0].task == "quadratic":
        return structs.replace(every[0], train=every[0].test, samples=_samples(every))
    return Part(
        task=every[0].task,
        train=_joined([part.train for part in every]),
        validation=_joined([part.validation for part in every]),
        own_test=_joined([part.own_test for part in every]),
        test=every[0].test,
        samples=_samples(every),
    )


def _samples(parts: list[Part]) -> int:
    return sum(part.samples for part in parts)


def _joined(tables: list[Table]) -> Table:
    return Table(torch.cat([table.x for table in tables]), torch.cat([table.y for table in tables]))


def _learner(
    name: str,
    settings: TaskSettings,
    learning: LearningSettings,
    part: Part,
    *,
    seed: int,
    build: Build,
) -> Learner:
    # "agreed" is a vote, and there is nobody to vote with
    keep = "last" if learning.keep == "agreed" else learning.keep
    learning = structs.replace(learning, keep=keep)
    silo = Silo(name, {}, "cpu", learning.seed, settings, part)
    return Learner(build(silo), learning, me=NodeId(name.encode()), seed=seed)


def _run(learners: list[Learner], rounds: int) -> list[Baseline]:
    for round_ in range(1, rounds + 1):
        train_batch([(learner, round_) for learner in learners])
        for learner in learners:  # without sources: momentum and keep go on, x stays
            learner.mix(Mix(round=round_, sources=(), training=True))
    for learner in learners:
        learner.finalise(Finalise(round=rounds))
    return [
        Baseline(metrics, learner.inference.intervals())
        for learner, metrics in zip(learners, evaluate_batch(learners), strict=True)
    ]
