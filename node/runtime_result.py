"""What a node leaves behind: result.json (the keys of scenarios' NodeRun) and model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from crypto.hashing import tree_digest
from node.errors import StorageError
from node.learning.learner import Learner
from node.learning.metrics import Metrics
from node.learning.vector import as_bytes
from node.storage.files import replace_durably, write_durably
from node.types.events import CoreState
from node.types.roster import Roster


def round_figures(metrics: Metrics) -> dict[str, Any]:
    """What a round's event tells of an evaluation."""
    return {
        "accuracy": metrics.accuracy,
        "own_accuracy": metrics.own_accuracy,
        "auroc": metrics.auroc,
        "own_auroc": metrics.own_auroc,
        "loss": metrics.loss,
    }


def final_figures(learner: Learner) -> dict[str, Any]:
    """The final model's figures with their 95 % intervals, and its digest."""
    found = learner.evaluate()
    classes = found.accuracy is not None
    return {
        **round_figures(found),
        "correct": found.correct if classes else None,
        "test_rows": found.rows,
        "own_correct": found.own_correct if found.own_accuracy is not None else None,
        "own_test_rows": found.own_rows,
        "class_accuracy": learner.inference.class_accuracy(),
        "intervals": learner.inference.intervals(),
        "digest": tree_digest(as_bytes(learner.x.detach().cpu())).hex(),
    }


def missed(state: CoreState, roster: Roster) -> list[dict[str, Any]]:
    """Every neighbour that was missing in some round: when first, when last, and why then."""
    return [
        {"peer": roster.name(member), "rounds": count, "first": first, "last": last, "why": why}
        for member, (count, first, last, why) in sorted(state.missed.items())
    ]


def write_model(path: Path, learner: Learner, metadata: Mapping[str, str]) -> None:
    """model.safetensors: every tensor by name, and the shared part flat as "vector".

    Raises StorageError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = learner.model_state_dict()
    tensors["vector"] = learner.x.detach().cpu().clone()

    def fill(target: Path) -> None:
        target.touch(mode=0o600)
        try:
            save_file(tensors, target, metadata=dict(metadata))
        except SafetensorError as error:
            raise StorageError(f"{path}: cannot be written: {error}") from None

    replace_durably(path, fill)


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """result.json, whole or not at all. Raises StorageError."""
    text = msgspec.json.format(msgspec.json.encode(dict(result)), indent=2)
    write_durably(path, text + b"\n")
