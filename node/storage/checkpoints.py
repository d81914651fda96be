"""Checkpoints: everything a node resumes from, one safetensors file a round, the last three kept.

The metadata carries the core's state and the learner's notes as MessagePack, and a BLAKE3 digest
over them and every tensor, so that a flipped bit anywhere makes a file invalid, not wrong.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from blake3 import blake3

from node.errors import StorageError
from node.storage.files import TEMPORARY, replace_durably
from node.types.events import CoreState

if TYPE_CHECKING:
    from torch import Tensor

KEPT: Final = 3
FORMAT: Final = "grapevine-checkpoint/1"
_NAME: Final = re.compile(r"round-(\d{8})\.safetensors")


class Loaded(NamedTuple):
    """A checkpoint as read, and the newer files that could not be used, with the reason."""

    path: Path
    round: int
    state: CoreState
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    skipped: list[tuple[Path, str]]


class _InvalidError(Exception):
    """This one file is no checkpoint; an older one may be."""


def save(
    directory: Path,
    round: int,  # noqa: A002 - the field's own word for it
    state: CoreState,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> Path:
    """Write one checkpoint durably, then drop all but the last three.

    tensors: by name, any shape and dtype that safetensors knows; they must not change meanwhile.
    meta: what MessagePack can carry. Raises StorageError; the older checkpoints are then untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = directory / f"round-{round:08d}.safetensors"
    dense = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    state_bytes = msgspec.msgpack.encode(state)
    meta_bytes = msgspec.msgpack.encode(dict(meta))
    header = {
        "format": FORMAT,
        "round": str(round),
        "state": base64.b64encode(state_bytes).decode(),
        "meta": base64.b64encode(meta_bytes).decode(),
        "digest": _digest(round, state_bytes, meta_bytes, dense),
    }

    def fill(path: Path) -> None:
        path.touch(mode=0o600)
        try:
            save_file(dense, path, metadata=header)
        except SafetensorError as error:
            raise StorageError(f"{target}: cannot be written: {error}") from None

    replace_durably(target, fill)
    _prune(directory, round)
    return target


def load_latest(directory: Path) -> Loaded | None:
    """The newest valid checkpoint; None where there is none at all.

    Raises StorageError where there are files and not one of them is valid.
    """
    skipped: list[tuple[Path, str]] = []
    for number, path in sorted(_present(directory), reverse=True):
        try:
            state, tensors, meta = _read(path, number)
        except _InvalidError as error:
            skipped.append((path, str(error)))
            continue
        return Loaded(path, number, state, tensors, meta, skipped)
    if skipped:
        first = f"{skipped[0][0].name}: {skipped[0][1]}"
        raise StorageError(
            f"{directory}: none of {len(skipped)} checkpoints can be read ({first}); "
            "restore a backup, or move them away to start anew"
        )
    return None


def _read(path: Path, number: int) -> tuple[CoreState, dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # clone: a memory-mapped file would turn a later disk error into a SIGBUS
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as error:
        raise _InvalidError(f"not a whole safetensors file: {_line(error)}") from None
    if header.get("format") != FORMAT:
        raise _InvalidError(f"format {header.get('format')!r}, expected {FORMAT!r}")
    try:
        state_bytes = base64.b64decode(header["state"], validate=True)
        meta_bytes = base64.b64decode(header["meta"], validate=True)
    except (KeyError, ValueError) as error:
        raise _InvalidError(f"metadata cannot be read: {_line(error)}") from None
    if header.get("round") != str(number) or header.get("digest") != _digest(
        number, state_bytes, meta_bytes, tensors
    ):
        raise _InvalidError("the digest does not fit: the file was changed or damaged")
    try:
        state = msgspec.msgpack.decode(state_bytes, type=CoreState)
        meta = msgspec.msgpack.decode(meta_bytes, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise _InvalidError(f"state of another version: {_line(error)}") from None
    return state, tensors, meta


def _digest(number: int, state: bytes, meta: bytes, tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = blake3(FORMAT.encode())
    shapes = [(name, str(one.dtype), tuple(one.shape)) for name, one in sorted(tensors.items())]
    for part in (str(number).encode(), state, meta, msgspec.msgpack.encode(shapes)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    for name in sorted(tensors):  # their lengths follow from shape and dtype
        flat = tensors[name].reshape(-1).view(torch.uint8)
        digest.update(flat.cpu().numpy().data)
    return digest.hexdigest()


def _present(directory: Path) -> list[tuple[int, Path]]:
    if not directory.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in directory.iterdir()]
    return [(int(match[1]), path) for match, path in found if match]


def _prune(directory: Path, newest: int) -> None:
    """Keep the last three up to ``newest``.

    A higher round can only be a file that the resume refused: it must not come back later.
    """
    present = sorted(_present(directory))
    older = [path for number, path in present if number <= newest]
    higher = [path for number, path in present if number > newest]
    leftovers = directory.glob(f"{TEMPORARY}*")
    try:
        for path in [*older[:-KEPT], *higher, *leftovers]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{directory}: cannot be tidied: {error.strerror or error}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
