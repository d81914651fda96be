"""Small scenarios for the simulation's tests."""

from __future__ import annotations

from typing import Any

from scenarios.settings import Scenario, parse_scenario

QUADRATIC = """
name = "quadratic"
topology = {{ {topology} }}
[task]
name = "quadratic"
dimension = 8
[learning]
rounds = {rounds}
local_steps = 2
learning_rate = 0.1
final_mixing = {mixing}
deadline_max_s = 2.0
[compute]
step_ms = 50
[network]
latency_ms = 20
jitter_ms = 5
loss = 0.01
"""


def quadratic(
    text: str = "", *, topology: str = 'kind = "ring", nodes = 5', rounds: int = 8, mixing: int = 4
) -> Scenario:
    """A scenario that runs in some ten milliseconds; ``text``: events and expectations."""
    head = QUADRATIC.format(topology=topology, rounds=rounds, mixing=mixing)
    return parse_scenario(head + text, source="quadratic.toml")


def failed(run: Any) -> list[Any]:
    """The checks of a run that did not hold."""
    return [check for check in run.checks if not check.ok]


def found(run: Any) -> tuple[list[Any], dict[str, str]]:
    """What a test on real nodes says of a run that failed: its checks, and how nodes ended."""
    return failed(run), {node.name: node.ended for node in run.nodes}
