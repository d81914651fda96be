"""The built-in tasks: from a Silo to a Task. Initial models depend on the training's seed only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.errors import ConfigError
from node.learning.data import BUILT_IN
from node.learning.task import Part, Silo, Task, load_part
from node.strict import nearest
from node.types.settings import TaskSettings

# Raised whenever a change here makes the same rows give another model: members must not mix them.
CODE_VERSION = 1

_LAYERS = {"breast-cancer": (30, 16, 2), "digits": (64, 32, 10)}


class Quadratic(nn.Module):
    """One point x in R^dimension; for rows [a, h] the output is ½ Σ h (x − a)², one a row."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(dimension))

    def forward(self, rows: Tensor) -> Tensor:
        minimum, curvature = rows.chunk(2, dim=1)
        return 0.5 * (curvature * (self.point - minimum).square()).sum(1)


def mean_output(output: Tensor, _: Tensor) -> Tensor:
    """The loss of ``quadratic``: the model's output is the loss of each row already."""
    return output.mean()


def build_task(silo: Silo) -> Task:
    """The task named in the settings, on this member's rows.

    The rows are ``silo.part``, or the file that ``part`` in the node's [data] names. Raises
    ConfigError for an unknown name or key, a missing part, or one of another task or shape.
    """
    part = silo.part
    for key in silo.data:
        if key != "part":
            raise ConfigError(f"[data] of {silo.name}: unknown key '{key}'{nearest(key, ['part'])}")
    if part is None and "part" in silo.data:
        part = load_part(Path(str(silo.data["part"])))
    task = bare_task(silo.settings, seed=silo.seed)
    if part is None:
        raise ConfigError(f"[data] of {silo.name}: key 'part' is missing; it names the rows' file")
    _check(part, silo)
    task.train, task.test = part.train, part.test
    task.own_test, task.validation = part.own_test, part.validation
    task.samples = part.samples
    if silo.device != "cpu":
        try:
            task.model.to(silo.device)
            task.train = part.train.to(silo.device)
        except (RuntimeError, AssertionError) as error:  # torch says both
            why = str(error).splitlines()[0]
            raise ConfigError(f"device of {silo.name}: '{silo.device}': {why}") from None
    return task


def bare_task(settings: TaskSettings, *, seed: int) -> Task:
    """The task without any rows: enough for its digests. Raises ConfigError as build_task."""
    name = settings.name
    if name not in BUILT_IN:
        raise ConfigError(f"unknown task '{name}'{nearest(name, BUILT_IN)}")
    code = f"{name}/{CODE_VERSION}"
    if name == "quadratic":
        model: nn.Module = Quadratic(settings.dimension)
        return Task(model, None, mean_output, metric="loss", code=code, name=name)
    return Task(
        _mlp(_LAYERS[name], seed),
        None,
        functional.cross_entropy,
        metric="auroc" if name == "breast-cancer" else "accuracy",
        code=code,
        name=name,
    )


def _mlp(layers: tuple[int, int, int], seed: int) -> nn.Sequential:
    """Weights uniform within ±1/√fan_in (torch's own default), from a generator of our own.

    The global generator is left alone: several nodes may be built in one process.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    inputs, hidden, outputs = layers
    first = nn.Linear(inputs, hidden, device="meta").to_empty(device="cpu")
    second = nn.Linear(hidden, outputs, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for layer in (first, second):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.ReLU(), second)


def _check(part: Part, silo: Silo) -> None:
    settings = silo.settings
    if part.task != settings.name:
        raise ConfigError(
            f"[data] of {silo.name}: the part is of task '{part.task}', not '{settings.name}'"
        )
    quadratic = settings.name == "quadratic"
    columns = 2 * settings.dimension if quadratic else _LAYERS[settings.name][0]
    labels = torch.float32 if quadratic else torch.int64
    for what in ("train", "validation", "own_test", "test"):
        found = getattr(part, what)
        if tuple(found.x.shape[1:]) != (columns,) or found.x.dtype != torch.float32:
            raise ConfigError(
                f"[data] of {silo.name}: '{what}' has shape {tuple(found.x.shape)} of "
                f"{found.x.dtype}, expected (rows, {columns}) of torch.float32"
            )
        if found.y.dtype != labels or found.y.ndim != 1:
            raise ConfigError(f"[data] of {silo.name}: the labels of '{what}' are not {labels}")
        if (
            not quadratic
            and len(found)
            and not 0 <= int(found.y.min()) <= int(found.y.max()) < _LAYERS[settings.name][2]
        ):
            raise ConfigError(f"[data] of {silo.name}: '{what}' has labels of no class")
