"""Where this node stands in the training: its phase, its rounds, the phase's own deadline."""

from __future__ import annotations

from node.errors import LocalProtocolError
from node.protocol.context import Context
from node.protocol.phases import Phase, Step, after
from node.types.events import CoreState, Event, PhaseChanged


class Standing:
    """Shared by the parts of one core; the phase changes here and nowhere else."""

    def __init__(self, context: Context, state: CoreState) -> None:
        self._context = context
        self.phase = Phase.STARTING
        self.round = state.round  # the last one mixed
        self.current = state.round  # the one in hand
        self.mixed_round = state.mixed_round  # the last one mixed with others, not jumped over
        self.counted = state.counted  # whose edges counted in it
        self.finished = state.finished
        self.timer: float | None = None

    def expired(self) -> bool:
        """Whether the phase's deadline is past."""
        return self.timer is not None and self._context.now >= self.timer

    def expect(self, phase: Phase, event: Event) -> None:
        """Raises LocalProtocolError in any other phase."""
        if self.phase is not phase:
            raise LocalProtocolError(f"{type(event).__name__} in phase '{self.phase.value}'")

    def step(self, step: Step) -> None:
        """Take one step of the phase table. Raises LocalProtocolError where it has none."""
        self.phase = after(self.phase, step)
        self._context.note(PhaseChanged(self.phase.value, self.current))
