"""Training, mixing and evaluating many learners at once, for the simulation.

Learners whose models have one shape and one optimiser are stacked; the others run one by one.
Results are those of the single methods up to rounding, and bit-equal whatever the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from msgspec import Struct
from torch import Tensor

from node.learning import metrics, rules
from node.learning.learner import Learner
from node.learning.metrics import Metrics
from node.learning.optimizers import FlatOptimizer, update
from node.learning.rules import COORDINATE_WISE, rule_needs
from node.learning.sampling import padded_width
from node.learning.stacked import ALIGNED, Kernel, kernel
from node.learning.task import Rows, Table
from node.types.events import Mix, Mixed, Trained

T = TypeVar("T")
# padded rows of tables that all learners of a call have in common, by the table's identity
Tests = dict[int, tuple[Tensor, Tensor, Tensor]]

# Stacks that outgrow the processor's caches are slower, model for model: 32 digits models with
# gradients, momentum and a few batches are about 2 MB.
_FLOATS_AT_ONCE: Final = 80_000
_STEPS_AT_ONCE: Final = 8  # batches gathered together

_kernels: WeakKeyDictionary[Learner, tuple[Kernel | None]] = WeakKeyDictionary()


def train_batch(jobs: Sequence[tuple[Learner, int]]) -> list[Trained]:
    """What ``learner.train(round)`` does for each job, in the jobs' order. No learner twice."""
    found: list[Trained | None] = [None] * len(jobs)
    stacked = []
    for index, (learner, round_) in enumerate(jobs):
        made = _stackable(learner)
        if made is None:
            found[index] = learner.train(round_)
        else:
            stacked.append(_Job(index, learner, made, round_))
    for group in _groups(stacked, lambda job: job.key):
        # longest first: those still training are always the first rows of the stack
        group.sort(key=lambda job: -len(job.plan))
        for some in _chunks(group, group[0].learner):
            _train(some)
            for job in some:
                steps = len(job.plan)
                loss = job.total / steps if steps else None
                found[job.index] = Trained(round=job.round_, loss=loss, steps=steps)
    return [trained for trained in found if trained is not None]


def mix_batch(jobs: Sequence[tuple[Learner, Mix]]) -> list[Mixed]:
    """What ``learner.mix(effect)`` does for each job, bit for bit. No learner twice.

    Models that one coordinate-wise rule mixes alike are laid end to end. Nobody's mix reads what
    another one writes: replicas and public models are not x.
    """
    found: list[Mixed | None] = [None] * len(jobs)
    for group in _groups(enumerate(jobs), lambda item: _mixes_alike(*item[1])):
        for some in _chunks(group, group[0][1][0]):
            learners = [learner for _, (learner, _) in some]
            results: Sequence[Tensor | None] = [None] * len(some)
            if len(some) > 1 and _mixes_alike(*some[0][1]) is not None:
                results = _mix(learners, [effect for _, (_, effect) in some])
            for (index, (learner, effect)), mixed in zip(some, results, strict=True):
                found[index] = learner.mix(effect, mixed)
    return [mixed for mixed in found if mixed is not None]


def _mixes_alike(learner: Learner, effect: Mix) -> Hashable:
    """Equal for mixes that may be laid end to end; None for one that must be done alone."""
    settings = learner.settings
    few = len(effect.sources) + 1 < rule_needs(settings.rule, settings.f)
    if settings.rule not in COORDINATE_WISE or few:
        return None
    said: Hashable = len(effect.sources)
    if settings.rule == "mean":
        said = tuple([source.weight for source in effect.sources])
    return (settings.rule, settings.f, learner.vector.size, said)


def _mix(learners: Sequence[Learner], effects: Sequence[Mix]) -> Sequence[Tensor]:
    """The rule's result (P,) for each of several mixes that are alike."""
    settings = learners[0].settings
    weights = [source.weight for source in effects[0].sources]
    sources = [learner.sources(effect) for learner, effect in zip(learners, effects, strict=True)]
    replicas = [torch.cat(column) for column in zip(*sources, strict=True)]
    own = torch.cat([learner.public for learner in learners])
    mixed = rules.mix(settings.rule, own, replicas, weights, f=settings.f, out=own)
    return list(mixed.view(len(learners), -1))


def evaluate_batch(learners: Sequence[Learner]) -> list[Metrics]:
    """What ``learner.evaluate()`` gives for each learner."""
    figures: list[dict[str, Any]] = [{} for _ in learners]
    stacked = []
    for index, learner in enumerate(learners):
        made = _kernel(learner)
        tests = (learner.task.test, learner.task.own_test)
        if made is None or not all(rows is None or isinstance(rows, Table) for rows in tests):
            figures[index] = {"alone": learner.evaluate()}
        else:
            stacked.append((index, learner, made))
    common: Tests = {}
    for group in _groups(stacked, lambda item: (item[2].key, _shape(item[1]))):
        for some in _chunks(group, group[0][1]):
            models = _stack([learner.vector.flat.detach() for _, learner, _ in some])
            for prefix in ("", "own_"):
                _evaluate(some, models, prefix, figures, common)
    return [found.get("alone") or Metrics(**found) for found in figures]


class _Job(Struct, eq=False):
    index: int
    learner: Learner
    kernel: Kernel
    round_: int
    plan: tuple[Tensor, ...] = ()
    width: int = 0
    key: Hashable = None
    total: float = 0.0

    def __post_init__(self) -> None:
        learner = self.learner
        self.plan = learner.plan(self.round_)
        self.width = self.kernel.padded(padded_width(learner.task.rows, learner.settings))
        optimizer = learner.optimizer
        assert isinstance(optimizer, FlatOptimizer)
        self.key = (self.kernel.key, _shape(learner), optimizer.hyper, self.width)


def _train(jobs: list[_Job]) -> None:
    learners = [job.learner for job in jobs]
    own = [learner.optimizer for learner in learners]
    optimizers = [each for each in own if isinstance(each, FlatOptimizer)]
    for learner, optimizer in zip(learners, optimizers, strict=True):
        learner.trained_outside()
        optimizer.begin()
    hyper, gradients = optimizers[0].hyper, jobs[0].kernel.gradients
    models = _stack([learner.vector.flat.detach() for learner in learners])
    slopes = torch.zeros_like(models)
    state = {
        key: _stack([each.vectors[key] for each in optimizers]) for key in optimizers[0].vectors
    }
    counts = torch.tensor([[float(each.count)] for each in optimizers], dtype=torch.float64)
    totals = torch.zeros(len(jobs))
    steps = len(jobs[0].plan)
    for start in range(0, steps, _STEPS_AT_ONCE):
        active = [job for job in jobs if len(job.plan) > start]
        x, y, w = _gather(active, start, min(steps, start + _STEPS_AT_ONCE))
        for at in range(x.shape[1]):
            n = sum(len(job.plan) > start + at for job in active)
            totals[:n] += gradients(models[:n], slopes[:n], x[:n, at], y[:n, at], w[:n, at])
            vectors = {key: stack[:n] for key, stack in state.items()}
            update(hyper, models[:n], slopes[:n], vectors, counts[:n] + (start + at + 1))
    for row, (job, optimizer) in enumerate(zip(jobs, optimizers, strict=True)):
        flat = job.learner.vector.flat.detach()
        flat.copy_(models[row, : flat.numel()])
        for key, stack in state.items():
            optimizer.vectors[key].copy_(stack[row, : flat.numel()])
        optimizer.count += len(job.plan)
        optimizer.taken += len(job.plan)
    for job, total in zip(jobs, totals.tolist(), strict=True):
        job.total = total


def _stack(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors (D,) as rows that all begin at a multiple of 64 bytes, filled up with zeros."""
    size = vectors[0].numel()
    stack = torch.zeros(len(vectors), -(-size // ALIGNED) * ALIGNED)
    for row, vector in enumerate(vectors):
        stack[row, :size].copy_(vector)
    return stack


def _gather(jobs: list[_Job], start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Batches of steps [start, end): x (n, steps, width, …), y and weights (n, steps, width).

    Batches smaller than the width are filled up with their first row, at weight 0.
    """
    steps, width = end - start, jobs[0].width
    table = _rows(jobs[0])
    x = torch.empty((len(jobs), steps, width, *table.x.shape[1:]), dtype=table.x.dtype)
    y = torch.empty((len(jobs), steps, width), dtype=table.y.dtype)
    w = torch.full((len(jobs), steps, width), 1 / width)
    for row, job in enumerate(jobs):
        plan = job.plan[start:end]
        if len(plan) == steps and all(len(batch) == width for batch in plan):
            indices = torch.cat(plan)
        else:
            filled = torch.empty((steps, width), dtype=torch.int64)
            for step in range(steps):
                batch = plan[min(step, len(plan) - 1)]
                filled[step] = batch[0]
                filled[step, : len(batch)] = batch
                w[row, step] = 0
                w[row, step, : len(batch)] = 1 / len(batch)
            indices = filled.view(-1)
        table = _rows(job)
        torch.index_select(table.x, 0, indices, out=x[row].view(-1, *table.x.shape[1:]))
        torch.index_select(table.y, 0, indices, out=y[row].view(-1))
    return x, y, w


def _evaluate(
    some: Sequence[tuple[int, Learner, Kernel]],
    models: Tensor,
    prefix: str,
    figures: list[dict[str, Any]],
    common: Tests,
) -> None:
    """Fill in the figures on the common ("") or own ("own_") test rows.

    The shape of the computation depends on the member alone: own rows of unlike number are padded
    to the kernel's width, and computed together where that is the same.
    """
    tests: list[tuple[int, Table]] = []
    for row, (_, learner, _) in enumerate(some):
        rows: Rows | None = learner.task.own_test if prefix else learner.task.test
        if isinstance(rows, Table) and len(rows):
            tests.append((row, rows))
    padded = some[0][2].padded
    shared = not prefix  # one table for all, in the built-in data
    for alike in _groups(tests, lambda item: id(item[1]) if shared else padded(len(item[1]))):
        chosen = [row for row, _ in alike]
        stack = models if len(chosen) == len(models) else models[chosen]
        kinds = [table for _, table in alike[: 1 if shared else None]]
        found = common.get(id(kinds[0])) if shared else None
        x, y, w = found or _tests(kinds, padded(len(kinds[0])))
        if shared:
            common[id(kinds[0])] = (x, y, w)
            x, y, w = x[0], y.expand(len(alike), -1), w.expand(len(alike), -1)
        first = some[chosen[0]]
        with torch.inference_mode():
            outputs = first[2].outputs(stack, x)
            lost, chose = first[2].judge(outputs, y, w)
            losses = lost.tolist()
        if first[1].task.metric == "loss":
            chose = None
        right: list[int] = []
        if chose is not None:
            right = ((chose == y) & (w > 0)).sum(1).tolist()
        for place, (row, table) in enumerate(alike):
            count = len(table)
            figure: dict[str, Any] = {"rows": count, "loss": losses[place]}
            if chose is not None:
                figure["correct"] = right[place]
                figure["accuracy"] = right[place] / count
                values = metrics.scores(outputs[place, :count])
                if values is not None:
                    figure["auroc"] = metrics.auroc(values, table.y)
            figures[some[row][0]] |= {prefix + key: value for key, value in figure.items()}


def _tests(tables: Sequence[Table], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of test tables, padded to ``size``: x (n, size, …), y and weights (n, size)."""
    x = torch.zeros((len(tables), size, *tables[0].x.shape[1:]))
    y = torch.zeros((len(tables), size), dtype=tables[0].y.dtype)
    w = torch.zeros((len(tables), size))
    for row, table in enumerate(tables):
        x[row, : len(table)] = table.x
        y[row, : len(table)] = table.y
        w[row, : len(table)] = 1 / len(table)
    return x, y, w


def _stackable(learner: Learner) -> Kernel | None:
    if not isinstance(learner.optimizer, FlatOptimizer):
        return None
    if not isinstance(learner.task.train, Table) or learner.x.device.type != "cpu":
        return None
    return _kernel(learner)


def _kernel(learner: Learner) -> Kernel | None:
    if learner not in _kernels:
        _kernels[learner] = (kernel(learner),)
    return _kernels[learner][0]


def _shape(learner: Learner) -> Hashable:
    return learner.vector.flat.numel()


def _rows(job: _Job) -> Table:
    table = job.learner.task.train
    assert isinstance(table, Table)
    return table


def _groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items of one key together, groups and items in the order of their first appearance."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _chunks(items: list[T], learner: Learner) -> list[list[T]]:
    size = max(1, _FLOATS_AT_ONCE // learner.vector.flat.numel())
    return [items[at : at + size] for at in range(0, len(items), size)]
