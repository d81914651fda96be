"""The public Python API: what ``from grapevine import …`` offers. Re-exports only.

from grapevine import load_model, load_scenario, run

result = run("wan-partition", seed=3)
print(result.consensus_distance, [node.accuracy for node in result.nodes])
"""

from node.errors import ConfigError, GrapevineError
from node.learning.export import load_model
from node.learning.task import Part, Silo, Table, Task
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
