"""[expect]: what may be expected of a run, and the refusal of what nobody could ever measure.

How it is judged once the run is over stands in expectations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta, Struct

from node.errors import ConfigError
from node.types.settings import NonNegative, Share, TaskSettings


class ExpectSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[expect]: what must hold at the end. "Worst" and "mean" are over the nodes that finished."""

    accuracy_min: Share | None = None  # worst node, common test rows
    accuracy_mean_min: Share | None = None
    own_accuracy_min: Share | None = None  # worst node, its own held-out rows
    # { 9 = 0.8 }: worst node, common test rows of that class
    class_accuracy_min: dict[str, Share] | None = None
    auroc_min: Share | None = None  # worst node, common test rows
    loss_max: float | None = None  # worst node, common test rows
    pooled_gap_max: float | None = None  # pooled accuracy minus the worst node's
    local_gain_min: float | None = None  # mean accuracy minus the mean that nodes reach alone
    consensus_distance_max: NonNegative | None = None  # D of docs/design.md, section 4
    consensus_relative_max: NonNegative | None = None  # D/‖x̄‖
    reconverged_within_rounds: Annotated[int, Meta(ge=1)] | None = None  # after heal or restart
    finished_min: Annotated[int, Meta(ge=0)] | None = None  # nodes; without it: all that could
    missed_rounds_max: Annotated[int, Meta(ge=0)] | None = None  # of any node and neighbour


# The classes of the tasks that come with data; of others nothing is known before they are built.
CLASSES: Final[Mapping[str, tuple[str, ...]]] = {
    "breast-cancer": ("0", "1"),  # benign, malignant
    "digits": tuple("0123456789"),
    "quadratic": (),
}
_OF_CLASSES: Final = (
    "accuracy_min",
    "accuracy_mean_min",
    "own_accuracy_min",
    "class_accuracy_min",
    "auroc_min",
    "pooled_gap_max",
    "local_gain_min",
)


def check_expect(
    expect: ExpectSettings, task: TaskSettings, *, nodes: int, mends: bool, source: str
) -> None:
    """Raises ConfigError for figures that this run will not have.

    nodes: how many there are. mends: whether there is a heal, a restart or the like.
    """
    _check_figures(expect, task, source)
    if expect.reconverged_within_rounds is not None and not mends:
        raise ConfigError(
            f"{source}: key 'expect.reconverged_within_rounds': there is no heal or restart "
            "to reconverge after"
        )
    if expect.finished_min is not None and expect.finished_min > nodes:
        raise ConfigError(
            f"{source}: key 'expect.finished_min': {expect.finished_min} of {nodes} nodes"
        )


def check_own_rows(expect: ExpectSettings, own_rows: Mapping[str, int], *, source: str) -> None:
    """Raises ConfigError where own figures are expected of a node without rows for them."""
    without = [name for name, rows in own_rows.items() if rows == 0]
    if expect.own_accuracy_min is not None and without:
        raise ConfigError(
            f"{source}: key 'expect.own_accuracy_min': '{without[0]}' has no held-out rows of its "
            "own; raise task.own_holdout, or give it more rows"
        )


def _check_figures(expect: ExpectSettings, task: TaskSettings, source: str) -> None:
    classes = CLASSES.get(task.name)
    if classes is None:
        return
    asked = [key for key in _OF_CLASSES if getattr(expect, key) is not None]
    if asked and not classes:
        raise ConfigError(
            f"{source}: key 'expect.{asked[0]}': task '{task.name}' has no classes, and so no "
            "accuracy; expect loss_max or consensus_distance_max"
        )
    if expect.auroc_min is not None and len(classes) > 2:
        raise ConfigError(
            f"{source}: key 'expect.auroc_min': task '{task.name}' has {len(classes)} classes, and "
            "an AUROC is of two; expect accuracy_min"
        )
    if expect.own_accuracy_min is not None and task.own_holdout == 0:
        raise ConfigError(
            f"{source}: key 'expect.own_accuracy_min': task.own_holdout is 0, so no node has rows "
            "of its own to measure it on"
        )
    if expect.class_accuracy_min is not None and not expect.class_accuracy_min:
        raise ConfigError(f"{source}: key 'expect.class_accuracy_min': names no class")
    for label in expect.class_accuracy_min or ():
        if label not in classes:
            raise ConfigError(
                f"{source}: key 'expect.class_accuracy_min': task '{task.name}' has no class "
                f"'{label}'; valid are {', '.join(classes)}"
            )
