"""Local optimisers. Their state stays with the node: it is checkpointed, never sent or mixed.

sgd, momentum, adam and qgm step the flat vector in place, one model (D,) or a stack (n, D) with
the same arithmetic; any other name is a class of torch.optim over the model's own parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from msgspec import Struct
from torch import Tensor, nn

from node.errors import ConfigError
from node.learning.task import Task
from node.learning.vector import FlatModel
from node.strict import nearest
from node.types.settings import LearningSettings

Factory = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]

# what each built-in keeps beside the model, one vector each
STATE: Final[dict[str, tuple[str, ...]]] = {
    "sgd": (),
    "momentum": ("momentum",),
    "adam": ("first", "second"),
    "qgm": ("momentum",),
}
# These need a closure, sparse gradients, or more than an element at a time of a plain parameter.
_UNFIT: Final = ("Optimizer", "LBFGS", "SparseAdam")


class Hyper(Struct, frozen=True):
    """What a built-in optimiser is told. ``momentum``: β of momentum and qgm, β₁ of adam."""

    name: str
    learning_rate: float
    momentum: float
    weight_decay: float


def update(hyper: Hyper, x: Tensor, grad: Tensor, state: dict[str, Tensor], step: Any) -> None:
    """One step of a built-in optimiser, in place; ``grad`` is used up.

    x, grad and each state vector: (D,) or (n, D). ``step``: its number from 1, an int, or (n, 1).
    Weight decay is the L2 term of torch.optim's SGD and Adam. qgm (Lin et al. 2021, "Quasi-global
    momentum"): x ← x − η(β m̂ + g), m̂ fixed during the round.
    """
    rate, beta = hyper.learning_rate, hyper.momentum
    if hyper.weight_decay:
        grad.add_(x, alpha=hyper.weight_decay)
    match hyper.name:
        case "sgd":
            x.add_(grad, alpha=-rate)
        case "momentum":
            x.add_(state["momentum"].mul_(beta).add_(grad), alpha=-rate)
        case "qgm":
            x.add_(state["momentum"], alpha=-rate * beta).add_(grad, alpha=-rate)
        case "adam":
            first = state["first"].mul_(beta).add_(grad, alpha=1 - beta)
            second = state["second"].mul_(0.999).addcmul_(grad, grad, value=0.001)
            scale, growth = rate / (1 - beta**step), 1 - 0.999**step
            if isinstance(step, Tensor):  # counted in float64; the models stay float32
                scale, growth = scale.float(), growth.float()
            x.sub_(first / (second / growth).sqrt_().add_(1e-8) * scale)
        case _:  # pragma: no cover - build() lets no other name through
            raise AssertionError(hyper.name)


class Optimizer(ABC):
    """One node's optimiser: ``begin``, then ``step`` per batch, then ``mixed`` after the gossip."""

    @abstractmethod
    def begin(self) -> None:
        """A round's local steps begin."""

    @abstractmethod
    def step(self) -> None:
        """Apply the gradients, and leave them zero."""

    @abstractmethod
    def mixed(self, *, training: bool) -> None:
        """The model has been mixed; ``training`` False: momentum is frozen."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values that ``load`` takes back."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None: ...


class FlatOptimizer(Optimizer):
    """sgd, momentum, adam or qgm on the flat vector, in place."""

    def __init__(self, hyper: Hyper, vector: FlatModel) -> None:
        self.hyper = hyper
        self.vector = vector
        self.vectors = {key: torch.zeros_like(vector.flat) for key in STATE[hyper.name]}
        self.count = 0  # steps since the last reset, for adam's bias correction
        self.before: Tensor | None = None  # qgm: x_t, the model that the round began with
        self.taken = 0  # steps since begin()

    def begin(self) -> None:
        self.taken = 0
        if self.hyper.name == "qgm":
            if self.before is None:
                self.before = torch.empty_like(self.vector.flat)
            self.before.copy_(self.vector.flat)

    def step(self) -> None:
        self.count += 1
        self.taken += 1
        update(self.hyper, self.vector.flat, self.vector.grad, self.vectors, self.count)
        self.vector.grad.zero_()

    def mixed(self, *, training: bool) -> None:
        """qgm: m̂ ← β m̂ + (1−β)(x_t − x_{t+1}) / (η · steps taken).

        The division by the steps is not in the paper's print: without it eight local steps make
        the momentum diverge.
        """
        before, self.before = self.before, None
        if before is None or not training or not self.taken:
            return
        beta = self.hyper.momentum
        scale = (1 - beta) / (self.hyper.learning_rate * self.taken)
        before.sub_(self.vector.flat)
        self.vectors["momentum"].mul_(beta).add_(before, alpha=scale)

    def reset(self) -> None:
        for vector in self.vectors.values():
            vector.zero_()
        self.before, self.count, self.taken = None, 0, 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = dict(self.vectors)
        if self.before is not None:
            tensors["before"] = self.before
        return tensors, {"count": self.count, "taken": self.taken}

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        for key, vector in self.vectors.items():
            vector.copy_(tensors[key])
        self.before = tensors["before"].to(self.vector.flat) if "before" in tensors else None
        if self.before is not None:
            self.before = self.before.clone()
        self.count, self.taken = int(meta["count"]), int(meta["taken"])


class TorchOptimizer(Optimizer):
    """An optimiser of torch.optim (or of the task) over the model's own parameters."""

    def __init__(self, factory: Factory, vector: FlatModel) -> None:
        self._factory = factory
        self.vector = vector
        self.reset()

    def reset(self) -> None:
        self.inner = self._factory(self.vector.parameters)

    def begin(self) -> None:
        """Nothing to note: classes of torch.optim know no rounds."""

    def mixed(self, *, training: bool) -> None:
        """Nothing to note."""

    def step(self) -> None:
        self.inner.step()
        self.vector.grad.zero_()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        meta: dict[str, Any] = {}
        for index, entries in self.inner.state_dict()["state"].items():
            for key, value in entries.items():
                kind: dict[str, Any] = tensors if isinstance(value, Tensor) else meta
                kind[f"{index}.{key}"] = value
        return tensors, meta

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.reset()
        own = self.inner.state_dict()
        own["state"] = {}
        for name, value in [*tensors.items(), *meta.items()]:
            index, _, key = name.partition(".")
            kept = value.clone() if isinstance(value, Tensor) else value
            own["state"].setdefault(int(index), {})[key] = kept
        self.inner.load_state_dict(own)


def build(task: Task, settings: LearningSettings, vector: FlatModel) -> Optimizer:
    """The optimiser that the settings name; else the task's; else qgm, or momentum under a rule.

    qgm amplifies attackers (an offset in every difference is carried on as momentum), so a robust
    rule takes momentum on the workers. Raises ConfigError for an unknown or unfit name.
    """
    name = settings.optimizer
    if name is None and task.optimizer is not None:
        return TorchOptimizer(task.optimizer, vector)
    if name is None:
        name = "qgm" if settings.rule == "mean" else "momentum"
    rate = settings.learning_rate or task.learning_rate
    if name in STATE:
        return FlatOptimizer(Hyper(name, rate, settings.momentum, settings.weight_decay), vector)
    known = sorted(
        key
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    )
    if name not in known or name in _UNFIT:
        valid = [*STATE, *(key for key in known if key not in _UNFIT)]
        raise ConfigError(f"learning.optimizer: unknown '{name}'{nearest(name, valid)}")
    kind = getattr(torch.optim, name)

    def factory(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = kind(parameters, lr=rate, weight_decay=settings.weight_decay)
        return made

    try:
        return TorchOptimizer(factory, vector)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"learning.optimizer: '{name}' refuses: {error}") from None
