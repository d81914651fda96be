"""What is learned: the Silo a task function is given, and the Task and Part it works with.

Tasks of users and built-in tasks alike are a function ``(Silo) -> Task``. A Part is one member's
own rows; it crosses processes as a safetensors file, never as a pickle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from node.errors import ConfigError, StorageError
from node.types.settings import TaskSettings

Metric = Literal["accuracy", "auroc", "loss"]
Loss = Callable[[Any, Any], Tensor]

_FORMAT = "grapevine-part-1"
_SETS = ("train", "validation", "own_test", "test")


class Rows(Protocol):
    """A map-style data set: item i is ``(x, y)``; torch's Dataset classes are such."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Table(Struct, frozen=True, eq=False):
    """Rows held as two tensors: x (n, …) float32 and y (n,) int64 or float32."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def to(self, device: str) -> Table:
        return Table(self.x.to(device), self.y.to(device))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Part(Struct, frozen=True, eq=False):
    """One member's rows of a built-in data set, and the test rows that all members share.

    ``samples``: what the member weighs in the average; its training rows, except for
    ``quadratic``, where one row stands for all of them.
    """

    task: str
    train: Table
    validation: Table
    own_test: Table
    test: Table
    samples: int


class Silo(Struct, frozen=True, eq=False):
    """What a task function is given. ``seed`` is the training's, the same at every member."""

    name: str
    data: dict[str, Any]
    device: str
    seed: int
    settings: TaskSettings
    part: Part | None = None


@dataclass(eq=False)
class Task:
    """One member's learning problem.

    ``loss(model(x), y)`` returns the mean over the rows. ``optimizer``: parameters to a torch
    optimizer; None leaves the choice to the training's settings. ``shared``: what is sent and
    mixed: all parameters, only the trainable ones (the rest frozen), or those that match one of
    the globs; ``personal`` takes parameters out again. ``metric`` "loss": no accuracy is defined.
    ``code``: what identifies the task's code to other members, by name and version.
    """

    model: nn.Module
    train: Rows | None
    loss: Loss
    test: Rows | None = None
    own_test: Rows | None = None
    validation: Rows | None = None
    metric: Metric = "accuracy"
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    shared: Literal["all", "trainable"] | Sequence[str] = "all"
    personal: Sequence[str] = ()
    learning_rate: float = 0.1
    code: str = ""
    name: str = ""
    samples: int | None = None  # what the member weighs; None: its training rows
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many training rows there are here."""
        return 0 if self.train is None else len(self.train)

    @property
    def weight(self) -> int:
        """The n of the sample-weighted average, at least 1."""
        return max(1, self.rows if self.samples is None else self.samples)


def take(rows: Rows, indices: Tensor, device: torch.device) -> tuple[Any, Any]:
    """The rows at ``indices`` (int64) as one batch (x, y) on ``device``."""
    if isinstance(rows, torch.utils.data.TensorDataset) and len(rows.tensors) == 2:
        rows = Table(*rows.tensors)
    if isinstance(rows, Table):
        indices = indices.to(rows.x.device)
        x, y = rows.x.index_select(0, indices), rows.y.index_select(0, indices)
    else:
        x, y = torch.utils.data.default_collate([rows[int(i)] for i in indices])
    if device.type == "cpu":
        return x, y
    return _moved(x, device), _moved(y, device)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def save_part(path: Path, part: Part) -> None:
    """Write ``part`` as a safetensors file. Raises StorageError where the disk refuses."""
    tensors = {}
    for name in _SETS:
        table: Table = getattr(part, name)
        tensors[f"{name}.x"] = table.x.contiguous()
        tensors[f"{name}.y"] = table.y.contiguous()
    meta = {"format": _FORMAT, "task": part.task, "samples": str(part.samples)}
    try:
        save_file(tensors, path, metadata=meta)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be written: {error}") from None


def load_part(path: Path) -> Part:
    """Read what ``save_part`` wrote.

    Raises ConfigError naming the file where it is missing, cut short, or something else.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a part written by `grapevine`")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: not a safetensors file, or cut short: {error}") from None
    wanted = {f"{name}.{axis}" for name in _SETS for axis in "xy"}
    samples = meta.get("samples", "")
    if meta.get("format") != _FORMAT or set(tensors) != wanted or not samples.isdigit():
        raise ConfigError(f"{path}: found another kind of safetensors file, not a member's part")
    tables = {name: Table(tensors[f"{name}.x"], tensors[f"{name}.y"]) for name in _SETS}
    for name, table in tables.items():
        if table.y.ndim == 0 or table.x.ndim == 0 or len(table.y) != len(table.x):
            raise ConfigError(f"{path}: '{name}' has {len(table.x)} rows but other labels")
        if not bool(torch.isfinite(table.x).all()):
            raise ConfigError(f"{path}: '{name}' holds values that are not finite numbers")
    return Part(task=meta.get("task", ""), samples=int(samples), **tables)
