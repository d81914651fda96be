"""A model as one flat float32 vector: its parameters are views into it, and so are its gradients.

What is shared comes first, so that ``shared`` is a plain slice: what is sent, mixed and hashed.
Parameters that are trained but personal follow. Frozen ones and buffers stay where they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

import blake3
import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from crypto.hashing import tree_digest
from node.errors import ConfigError
from node.learning.task import Task

Named = list[tuple[str, nn.Parameter]]

_SUMMED: Final = 1 << 17  # floats whose squares are summed in float32: a chunk of the wire

if sys.byteorder != "little":  # pragma: no cover - payloads are the vector's own bytes
    raise ConfigError("this machine is big-endian; models travel as little-endian float32")


class FlatModel:
    """Moves the trained parameters of ``task.model`` into one vector and keeps them there.

    ``flat`` (shared + personal,), ``grad`` alike; ``shared`` (P,) is a view of ``flat``'s head.
    ``shared_names``, ``shapes``: of the shared parameters, in order. Raises ConfigError where
    nothing is shared, a glob matches nothing, or a parameter to be trained is not float32.
    """

    def __init__(self, task: Task) -> None:
        self.model = task.model
        chosen, others = select(task)
        self.shared_names = [name for name, _ in chosen]
        self.shapes = [tuple(parameter.shape) for _, parameter in chosen]
        self.parameters = [parameter for _, parameter in [*chosen, *others]]
        self.size = sum(parameter.numel() for _, parameter in chosen)
        device = self.parameters[0].device
        total = sum(parameter.numel() for parameter in self.parameters)
        self.flat = torch.empty(total, dtype=torch.float32, device=device)
        self.grad = torch.zeros(total, dtype=torch.float32, device=device)
        at = 0
        for parameter in self.parameters:
            end = at + parameter.numel()
            view = self.flat[at:end].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.grad[at:end].view(parameter.shape)
            at = end
        self.shared = self.flat[: self.size]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that predicts, by name: fit for a safetensors file (no shared storage)."""
        state = self.model.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def select(task: Task) -> tuple[Named, Named]:
    """The trained parameters as (shared, personal), each in the model's order, with names."""
    named = list(task.model.named_parameters())
    trainable = [(name, p) for name, p in named if p.requires_grad]
    frozen = [name for name, p in named if not p.requires_grad]
    if not trainable:
        raise ConfigError("the task's model has no parameter to train")
    for name, parameter in trainable:
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"parameter '{name}' is {parameter.dtype}; trained parameters must be torch.float32"
            )
    globs: Sequence[str] = ("*",) if isinstance(task.shared, str) else tuple(task.shared)
    if task.shared == "all" and frozen:
        raise ConfigError(
            f"parameter '{frozen[0]}' is frozen, but shared is 'all'; say shared = 'trainable'"
        )
    for key, patterns in (("shared", globs), ("personal", tuple(task.personal))):
        for glob in patterns:
            if not any(fnmatchcase(name, glob) for name, _ in trainable):
                raise ConfigError(f"{key}: '{glob}' matches no parameter that is trained")
    chosen = [
        (name, parameter)
        for name, parameter in trainable
        if any(fnmatchcase(name, glob) for glob in globs)
        and not any(fnmatchcase(name, glob) for glob in task.personal)
    ]
    if not chosen:
        raise ConfigError("no parameter is shared: shared and personal leave nothing to send")
    names = {name for name, _ in chosen}
    return chosen, [(name, p) for name, p in trainable if name not in names]


def schema_digest(task: Task) -> bytes:
    """BLAKE3 (32 bytes) over the names, shapes and dtypes of what is shared, in order."""
    schema = [[name, list(p.shape), str(p.dtype)] for name, p in select(task)[0]]
    digest: bytes = blake3.blake3(b"grapevine/schema/1" + msgspec.msgpack.encode(schema)).digest()
    return digest


def initial_digest(task: Task) -> bytes:
    """The tree digest of the initial shared parameters x₀, little-endian float32 in order."""
    pieces = [p.detach().cpu().reshape(-1) for _, p in select(task)[0]]
    return tree_digest(as_bytes(torch.cat(pieces)))


def code_digest(task: Task) -> bytes:
    """BLAKE3 (32 bytes) of the name and version of the task's code."""
    return blake3.blake3(b"grapevine/code/1" + task.code.encode()).digest()


def as_bytes(vector: Tensor) -> memoryview:
    """The bytes of a CPU vector (n,) float32, not copied."""
    return vector.detach().numpy().data.cast("B")


def squares(values: Tensor | bytes | memoryview) -> float:
    """About Σ v² of a CPU vector (P,) float32, or of the bytes of one; one quick pass.

    Summed in float32 block by block, and so off by less than a hundredth (rounding of 2¹⁷ terms in
    any order: 2¹⁷ · 2⁻²⁴ of their sum). Finite only where every value is; infinite also where the
    sum of a block is too large for float32. Raises ValueError unless bytes are whole float32.
    """
    array = values.numpy() if isinstance(values, Tensor) else np.frombuffer(values, dtype="<f4")
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, len(array), _SUMMED):
            block = array[at : at + _SUMMED]
            total += float(np.dot(block, block))
    return total


class _Borrowed:
    """Memory of a read-only buffer, offered to numpy by the array interface protocol.

    torch warns of any array that is marked read-only. Nothing here writes into a replica; the
    buffer (bytes or a mapped file) is kept alive by this object, which the array refers to.
    """

    def __init__(self, buffer: memoryview) -> None:
        view = np.frombuffer(buffer, dtype="<f4")
        self.keep = view
        self.__array_interface__ = {**view.__array_interface__, "data": (view.ctypes.data, False)}


def from_buffer(buffer: bytes | memoryview) -> Tensor:
    """A float32 vector over ``buffer`` (bytes, mmap, …), not copied; never write into it.

    Raises ValueError unless the buffer is a whole number of float32.
    """
    view = memoryview(buffer).cast("B")
    if view.nbytes == 0:
        return torch.empty(0)
    if not view.readonly:
        return torch.from_numpy(np.frombuffer(view, dtype="<f4"))
    return torch.from_numpy(np.asarray(_Borrowed(view)))
