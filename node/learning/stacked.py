"""Many models of one shape as one computation: rows of a matrix (n, D), one model a row.

A kernel gives the gradients and outputs of n models at once, by hand for the shapes that the
built-in tasks have. Every operation treats the models separately, so that a model's result does
not depend on its company (bit-equal on one torch thread).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.learning.learner import Learner
from node.learning.tasks import Quadratic, mean_output

# 64 bytes. MKL's products round differently at other addresses, so every matrix in a stack begins
# at a multiple of this: rows of the stack are filled up to it, and so are the numbers of rows of
# data, whose products with any number of columns are then multiples too.
ALIGNED: Final = 16

_ACTIVATIONS: Final = (nn.ReLU, nn.Tanh)


class Kernel(ABC):
    """Gradients and outputs of n models of one shape. Kernels of equal ``key`` are alike."""

    key: Hashable

    def padded(self, rows: int) -> int:
        """To how many rows a batch of so many is filled up (at weight 0)."""
        return rows

    @abstractmethod
    def gradients(self, models: Tensor, into: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """The gradients of each model's loss, written to ``into``; returns the losses (n,).

        models, into: (n, D), or wider, where the rest of a row is 0 and stays so. x: (n, b, …),
        y: (n, b). w: (n, b), what each row of data weighs in the loss: one part in the batch's
        size, 0 for padding.
        """

    @abstractmethod
    def outputs(self, models: Tensor, x: Tensor) -> Tensor:
        """models: (n, D), x: (n, rows, …) or (rows, …) for all alike. Returns (n, rows, …)."""

    @abstractmethod
    def judge(self, outputs: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss of each model (n,) from ``outputs``, and the classes (n, rows) they choose.

        y and w: (n, rows) as in gradients. No classes where the task has none.
        """


class Mlp(Kernel):
    """nn.Sequential of Linear layers with ReLU or Tanh between them, cross-entropy loss."""

    def __init__(self, layers: tuple[tuple[int, int, int, int], ...], kinds: tuple[str, ...]):
        # per layer: where its weight and its bias begin, inputs, outputs
        self.layers = layers
        self.kinds = kinds
        self.key = ("mlp", layers, kinds)

    def padded(self, rows: int) -> int:
        return -(-rows // ALIGNED) * ALIGNED

    def _weights(self, models: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        weight, bias, inputs, outputs = self.layers[layer]
        n = models.shape[0]
        matrix = models[:, weight : weight + inputs * outputs].view(n, outputs, inputs)
        return matrix, models[:, bias : bias + outputs].unsqueeze(1)

    def _forward(self, models: Tensor, x: Tensor) -> list[Tensor]:
        """The input of every layer, then the outputs."""
        values = [x]
        for layer in range(len(self.layers)):
            matrix, bias = self._weights(models, layer)
            value = torch.baddbmm(bias, values[-1], matrix.transpose(1, 2))
            if layer < len(self.kinds):
                value = value.clamp_min_(0) if self.kinds[layer] == "ReLU" else value.tanh_()
            values.append(value)
        return values

    def gradients(self, models: Tensor, into: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        values = self._forward(models, x)
        outputs, labels = values.pop(), y.unsqueeze(2)
        powers, sums, logs, _ = _softmax(outputs)
        losses = ((logs - outputs.gather(2, labels)).squeeze(2) * w).sum(1)
        # of softmax and cross-entropy together: w (p − 1[y])
        slope = powers.div_(sums)
        slope.scatter_add_(2, labels, torch.full_like(w, -1.0).unsqueeze(2))
        slope.mul_(w.unsqueeze(2))
        for layer in reversed(range(len(self.layers))):
            matrix, bias = self._weights(into, layer)
            matrix.copy_(torch.bmm(slope.transpose(1, 2), values[layer]))
            torch.sum(slope, 1, keepdim=True, out=bias)
            if layer:
                slope = torch.bmm(slope, self._weights(models, layer)[0])
                if self.kinds[layer - 1] == "ReLU":
                    slope.mul_(values[layer] > 0)
                else:
                    slope.mul_(1 - values[layer].square())
        return losses

    def outputs(self, models: Tensor, x: Tensor) -> Tensor:
        x = x if x.ndim == 3 else x.expand(models.shape[0], *x.shape)
        return self._forward(models, x)[-1]

    def judge(self, outputs: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
        _, _, logs, classes = _softmax(outputs)
        return ((logs - outputs.gather(2, y.unsqueeze(2))).squeeze(2) * w).sum(1), classes


def _softmax(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each row (n, rows, classes): e^(o−max), its sum, log Σ e^o, and where the maximum is.

    torch's own log_softmax takes three times as long where there are few classes.
    """
    most, classes = outputs.max(2, keepdim=True)
    powers = (outputs - most).exp_()
    sums = powers.sum(2, keepdim=True)
    return powers, sums, sums.log().add_(most), classes.squeeze(2)


class Point(Kernel):
    """The task ``quadratic``: rows [a, h], loss ½ Σ h (x − a)²."""

    key = "quadratic"

    def gradients(self, models: Tensor, into: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        minimum, curvature = x.chunk(2, dim=2)
        size = minimum.shape[2]
        away = models[:, :size].unsqueeze(1) - minimum
        slope = curvature * away * w.unsqueeze(2)
        into[:, :size] = slope.sum(1)
        return 0.5 * (slope * away).sum((1, 2))

    def outputs(self, models: Tensor, x: Tensor) -> Tensor:
        minimum, curvature = x.chunk(2, dim=-1)
        away = models[:, : minimum.shape[-1]].unsqueeze(1) - minimum
        return 0.5 * (curvature * away.square()).sum(2)

    def judge(self, outputs: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor | None]:
        return (outputs * w).sum(1), None


def kernel(learner: Learner) -> Kernel | None:
    """The kernel for this learner's model and loss; None where it must train on its own."""
    task = learner.task
    if type(task.model) is Quadratic and task.loss is mean_output:
        return Point()
    crossed = task.loss is functional.cross_entropy or (
        type(task.loss) is nn.CrossEntropyLoss
        and task.loss.weight is None
        and task.loss.label_smoothing == 0
        and task.loss.reduction == "mean"
    )
    if type(task.model) is not nn.Sequential or not crossed:
        return None
    modules = list(task.model)
    linear = [module for module in modules[::2] if isinstance(module, nn.Linear)]
    between = modules[1::2]
    if len(linear) != len(modules[::2]) or any(m.bias is None for m in linear):
        return None
    if len(linear) != len(between) + 1 or not all(type(m) in _ACTIVATIONS for m in between):
        return None
    starts = _starts(learner)
    layers = []
    for module in linear:
        pair = (id(module.weight), id(module.bias))
        if any(which not in starts for which in pair):
            return None  # frozen: not part of the vector
        layers.append((starts[pair[0]], starts[pair[1]], module.in_features, module.out_features))
    return Mlp(tuple(layers), tuple(type(m).__name__ for m in between))


def _starts(learner: Learner) -> dict[int, int]:
    """Where each trained parameter begins in the flat vector, by the parameter's identity."""
    starts, at = {}, 0
    for parameter in learner.vector.parameters:
        starts[id(parameter)] = at
        at += parameter.numel()
    return starts
