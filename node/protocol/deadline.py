"""How long a round waits: learned from when neighbours' versions arrived in earlier rounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Final

from node.types.roster import Policy

OBSERVATIONS_MAX: Final = 64  # of all neighbours together: the last 8 rounds at degree 8
OBSERVATIONS_MIN: Final = 5  # fewer say nothing yet: the maximum is waited


class Arrivals:
    """Delays, in seconds after the own publish, at which edges became complete."""

    def __init__(self, policy: Policy, seen: Iterable[float] = ()) -> None:
        self._policy = policy
        self._seen: deque[float] = deque(seen, maxlen=OBSERVATIONS_MAX)

    def observe(self, delay_s: float) -> None:
        """Note one arrival. One that came before the own publish waited for nobody: 0."""
        self._seen.append(max(0.0, delay_s))

    def seen(self) -> tuple[float, ...]:
        return tuple(self._seen)

    def wait_s(self, *, training: bool = True, ahead: bool = False) -> float:
        """How long to wait after the own publish, by the policy's ``wait``.

        Rounds without training exist to mix: with ``wait = "none"`` they wait adaptively.
        ``ahead``: the neighbours are far behind, and what earlier rounds have shown says nothing
        of when they will be here.
        """
        policy = self._policy
        if policy.wait == "none" and training:
            return 0.0
        if policy.wait == "all" or ahead or len(self._seen) < OBSERVATIONS_MIN:
            return policy.deadline_max_s
        middle = median(self._seen)
        mad = median(abs(delay - middle) for delay in self._seen)
        wanted = middle + policy.deadline_mads * mad
        return min(max(wanted, policy.deadline_min_s), policy.deadline_max_s)
