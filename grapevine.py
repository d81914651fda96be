"""The public Python API: what ``from grapevine import …`` offers. Re-exports only.

from grapevine import load_model, load_scenario, run

result = run("wan-partition", seed=3)
print(result.consensus_distance, [node.accuracy for node in result.nodes])

What stands in ``scenarios`` is imported when it is asked for: the release image has no such
package, and a member's own task code takes Silo and Task from here.
"""

from typing import TYPE_CHECKING, Any

from node.errors import ConfigError, GrapevineError
from node.learning.export import load_model
from node.learning.task import Part, Silo, Table, Task

if TYPE_CHECKING:
    from scenarios.engines import run
    from scenarios.record import Run
    from scenarios.settings import Scenario, load_scenario

__all__ = [
    "ConfigError",
    "GrapevineError",
    "Part",
    "Run",
    "Scenario",
    "Silo",
    "Table",
    "Task",
    "load_model",
    "load_scenario",
    "run",
]

_OF_SCENARIOS = {
    "run": "scenarios.engines",
    "Run": "scenarios.record",
    "Scenario": "scenarios.settings",
    "load_scenario": "scenarios.settings",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_SCENARIOS:
        raise AttributeError(f"module 'grapevine' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_OF_SCENARIOS[name]), name)
