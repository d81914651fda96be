"""Using a model: outputs, figures, batch-norm statistics, and the random state of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from node.learning import metrics
from node.learning.metrics import Interval, Metrics
from node.learning.sampling import stream_seed
from node.learning.task import Rows, Table, Task, take
from node.learning.tasks import Quadratic

INTERVALS: Final = ("accuracy", "auroc", "own_accuracy", "own_auroc")  # figures that may have one
_ROWS_AT_ONCE: Final = 2048
# These behave alike in training and evaluation and draw no random numbers.
_PLAIN: Final = (
    *(nn.Sequential, nn.Linear, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Flatten, nn.Conv2d),
    Quadratic,
)


class Inference:
    """The task's model in evaluation, and the switch to training and back."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = task.model
        modules = list(task.model.modules())
        # a module that is not a known layer may do anything in its forward
        self.plain = all(type(module) in _PLAIN for module in modules)
        self._norms = [module for module in modules if isinstance(module, _BatchNorm)]
        self._device = next(task.model.parameters()).device
        self.model.train(False)

    @contextmanager
    def training(self, seed: int, round_: int) -> Iterator[None]:
        """The model in training mode; dropout and the like draw from a stream of (seed, round)."""
        if self.plain:
            yield
            return
        self.model.train(True)
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(seed ^ 0x5EED, round_))
            yield
        self.model.train(False)

    def has(self, rows: Rows | None) -> bool:
        return self.count(rows) > 0

    def count(self, rows: Rows | None) -> int:
        return 0 if rows is None else len(rows)

    def outputs(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(outputs, labels) of all rows, on the CPU."""
        with torch.inference_mode():
            if isinstance(rows, Table) and len(rows) <= _ROWS_AT_ONCE:
                return self.model(rows.x.to(self._device)).cpu(), rows.y.cpu()
            found = []
            for at in range(0, len(rows), _ROWS_AT_ONCE):
                x, y = take(rows, self._range(at, rows), self._device)
                found.append((self.model(x).cpu(), y.cpu()))
            outputs, labels = zip(*found, strict=True)
            return torch.cat(outputs), torch.cat(labels)

    def _range(self, at: int, rows: Rows) -> Tensor:
        return torch.arange(at, min(at + _ROWS_AT_ONCE, len(rows)))

    def evaluate(self) -> Metrics:
        """All figures of the present model."""
        common = self._figures(self.task.test)
        own = self._figures(self.task.own_test)
        return Metrics(**common, **{f"own_{name}": value for name, value in own.items()})

    def _figures(self, rows: Rows | None) -> dict[str, Any]:
        if rows is None or not len(rows):
            return {}
        return self.figures(*self.outputs(rows))

    def figures(self, output: Tensor, labels: Tensor) -> dict[str, Any]:
        """accuracy, auroc, loss, correct, rows of outputs (n, …) against labels (n,)."""
        count = len(labels)
        found: dict[str, Any] = {"rows": count, "loss": float(self.task.loss(output, labels))}
        if self.task.metric == "loss":
            return found
        found["correct"] = metrics.correct(output, labels)
        found["accuracy"] = found["correct"] / count
        values = metrics.scores(output)
        if values is not None:
            found["auroc"] = metrics.auroc(values, labels)
        return found

    def interval(self, figure: str) -> Interval | None:
        """See Learner.interval."""
        rows = self.task.own_test if figure.startswith("own_") else self.task.test
        if rows is None or not len(rows) or self.task.metric == "loss":
            return None
        output, labels = self.outputs(rows)
        if figure.endswith("accuracy"):
            return metrics.wilson(metrics.correct(output, labels), len(labels))
        values = metrics.scores(output)
        return None if values is None else metrics.auroc_interval(values, labels)

    def intervals(self) -> dict[str, Interval]:
        """The 95 % intervals of all figures that have one."""
        found = {figure: self.interval(figure) for figure in INTERVALS}
        return {figure: interval for figure, interval in found.items() if interval is not None}

    def class_accuracy(self) -> dict[str, float]:
        """Accuracy on the common test rows of each class; empty for a task without classes."""
        rows = self.task.test
        if rows is None or not len(rows) or self.task.metric == "loss":
            return {}
        return metrics.by_class(*self.outputs(rows))

    def validate(self, *, fallback: bool = False) -> float | None:
        """The task's metric on the validation rows, larger is better; None where undefined.

        ``fallback``: accuracy where AUROC is undefined. That depends on the labels alone, so one
        member's values compare over rounds; they would not compare between members.
        """
        found = self._figures(self.task.validation)
        if not found:
            return None
        if self.task.metric == "loss":
            return -float(found["loss"])
        value = found.get(self.task.metric)
        if value is None and fallback:
            value = found["accuracy"]
        return None if value is None else float(value)

    def refresh_statistics(self) -> None:
        """Batch-norm statistics of the present model: an even average over the own batches."""
        rows = self.task.train
        if not self._norms or rows is None or not len(rows):
            return
        momenta = [norm.momentum for norm in self._norms]
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's way to say: the plain average over all batches
            norm.train(True)
        with torch.no_grad():
            for at in range(0, len(rows), _ROWS_AT_ONCE):
                x, _ = take(rows, self._range(at, rows), self._device)
                if len(x) > 1:  # a batch of one has no variance
                    self.model(x)
        for norm, momentum in zip(self._norms, momenta, strict=True):
            norm.momentum = momentum
            norm.train(False)
