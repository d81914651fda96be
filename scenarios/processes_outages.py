"""Carries the scenario's faults out on real processes, in order, and remembers when they were.

The same order, notes and spans as scenarios.outages in simulation; what is done to links, pace and
disks is told to the nodes themselves (scenarios.weather), the rest is done to their processes.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from scenarios.faults import (
    Attack,
    ClockSkew,
    Clog,
    Crash,
    DiskFull,
    Fault,
    Heal,
    Link,
    Partition,
    Pause,
    Reset,
    Restart,
    Resume,
    Slow,
    Unclog,
    concerned,
)
from scenarios.processes_log import NodeLog
from scenarios.record import FaultSpan
from scenarios.settings import Scenario, derive
from scenarios.spans import Spans
from scenarios.weather import Change, change_of


class Happened(Struct, frozen=True):
    """A fault, when it happened, and the last round that each living node had mixed by then."""

    at: float  # seconds since the engine's start
    clock: float  # the same by the machine's clock
    fault: Fault
    rounds: dict[str, int]

    @property
    def round(self) -> int:
        return max(self.rounds.values(), default=0)


class Hands(Protocol):
    """What can be done to processes. ``tell``: to the nodes, by which they do it to themselves."""

    logs: dict[str, NodeLog]

    def now(self) -> float: ...
    def clock(self) -> float: ...
    def launch(self, name: str) -> None: ...
    def kill(self, name: str) -> None: ...
    def stop(self, name: str) -> None: ...
    def go_on(self, name: str) -> None: ...
    def tell(self, change: Change) -> None: ...
    def restore(self, name: str, disk: str) -> None: ...


class ProcessOutages:
    """The faults of one run on processes."""

    def __init__(self, scenario: Scenario, hands: Hands) -> None:
        self._scenario, self._hands = scenario, hands
        self.pending = list(scenario.faults)
        self.happened: list[Happened] = []
        self.skew_s: dict[str, float] = {}  # of a node's wall clock, as it will read it
        # whose disk must be kept at every checkpoint: some restart wants an old one
        self.kept = {
            name
            for fault in scenario.faults
            if isinstance(fault, Restart) and fault.disk == "backup"
            for name in fault.nodes
        }
        self._notes: list[str] = []
        self._spans = Spans()
        self._cut: Partition | None = None
        self._begun = False
        # a restart that came while the node was still about to stop, its disk being full
        self._owed: dict[str, Restart] = {}
        for fault in scenario.faults:
            if isinstance(fault, ClockSkew) and fault.at.seconds == 0:
                self.skew_s |= dict.fromkeys(fault.nodes, fault.offset_s)

    @property
    def unhappened(self) -> list[str]:
        """Faults that the run ended before."""
        return [fault.label for fault in self.pending]

    @property
    def notes(self) -> tuple[str, ...]:
        for name, fault in self._owed.items():
            self._nothing(fault, f"{name} was not down")
        self._owed.clear()
        never = (f"'{label}' never happened: the run was over before" for label in self.unhappened)
        return (*self._notes, *never)

    def spans(self) -> tuple[FaultSpan, ...]:
        return self._spans.all()

    @property
    def waits(self) -> bool:
        """Whether something is still to come even though every process has ended."""
        timed = bool(self.pending) and self.pending[0].at.seconds is not None
        owed = any(self._hands.logs[name].life.down for name in self._owed)
        return timed or owed

    # ── in order ────────────────────────────────────────────────────────────────────────────

    def before(self) -> set[str]:
        """What stands at "0s" happens before any process starts; who need not be started at all.

        Up to the first that needs a process: that one, and what follows, happens at the start.
        """
        while self.pending and self.pending[0].at.seconds == 0:
            if isinstance(self.pending[0], Pause | Resume | Restart | DiskFull):
                break
            self._happen(self.pending.pop(0))
        return {name for name, log in self._hands.logs.items() if log.lives}

    def look(self) -> list[Fault]:
        """Let every fault happen that is due; what happened."""
        self._begun = True
        self._revive()
        done = []
        while self.pending and self._due(self.pending[0]):
            done.append(self.pending.pop(0))
            self._happen(done[-1])
        return done

    def _due(self, fault: Fault) -> bool:
        if fault.at.seconds is not None:
            return self._hands.now() >= fault.at.seconds
        names = concerned(fault, self._scenario.graph)
        return any(self._hands.logs[name].round >= (fault.at.round or 0) for name in names)

    def _happen(self, fault: Fault) -> None:
        at, clock = self._hands.now() if self._begun else 0.0, self._hands.clock()
        rounds = {n: log.round for n, log in self._hands.logs.items() if self._alive(n)}
        self.happened.append(Happened(at, clock, fault, rounds))
        seed = derive(self._scenario.seed, "attack", str(len(self.happened)))
        change = change_of(fault, clock, seed=seed)
        if change is not None:
            self._hands.tell(change)
        self._carry_out(fault, at)

    def _alive(self, name: str) -> bool:
        lives = self._hands.logs[name].lives
        return lives[-1].alive if lives else not self._begun

    def _nothing(self, fault: Fault, why: str) -> None:
        self._notes.append(f"'{fault.label}' did nothing: {why}")

    # ── each kind ───────────────────────────────────────────────────────────────────────────

    def _carry_out(self, fault: Fault, at: float) -> None:
        spans = self._spans
        match fault:
            case Partition():
                self._cut = fault
                names = tuple(name for side in fault.sides for name in side)
                spans.begin(fault, names, f"{len(fault.sides)} sides", at)
            case Heal():
                assert self._cut is not None
                spans.end("partition", self._cut.sides[0][0], at)
                self._cut = None
            case Crash():
                self._crash(fault, at)
            case Restart():
                for name in fault.nodes:
                    self._restart(fault, name, at)
            case Slow():
                for name in fault.nodes:
                    spans.end("slow", name, at)
                    if fault.factor != 1:
                        spans.begin(fault, (name,), f"{name}, {fault.factor:g}× slower", at)
            case Link():
                names = concerned(fault, self._scenario.graph)
                spans.begin(fault, names, f"{len(fault.pairs)} links", at)
            case Clog():
                for a, b in fault.pairs:
                    spans.begin(fault, (a, b), f"{a}–{b}", at, key=f"{a} {b}")
            case Unclog():
                for a, b in fault.pairs:
                    spans.end("clog", f"{a} {b}", at)
            case Reset():
                for a, b in fault.pairs:
                    spans.begin(fault, (a, b), f"{a}–{b}", at, key=f"{a} {b}")
                    spans.end("reset", f"{a} {b}", at)
            case ClockSkew():
                self.skew_s |= dict.fromkeys(fault.nodes, fault.offset_s)
                spans.begin(fault, fault.nodes, f"{fault.offset_s:g} s", at)
            case Attack():
                for name in fault.nodes:
                    spans.end("attack", name, at)
                    if not fault.ends:
                        what = f"{name}, {fault.what.rpartition('/')[2]}"
                        spans.begin(fault, (name,), what, at)
            case Pause() | Resume() | DiskFull():
                self._hold(fault, at)

    def _crash(self, fault: Crash, at: float) -> None:
        for name in fault.nodes:
            if not self._alive(name):
                self._nothing(fault, f"{name} had ended before")
                continue
            self._spans.begin(fault, (name,), name, at)
            if self._begun:
                self._hands.kill(name)
            else:  # it would have been killed at once
                self._hands.logs[name].begin(None)
                self._hands.logs[name].life.killed = True

    def _hold(self, fault: Pause | Resume | DiskFull, at: float) -> None:
        for name in fault.nodes:
            match fault:
                case Pause():
                    self._spans.begin(fault, (name,), name, at)
                    self._hands.stop(name)
                case Resume():
                    self._spans.end("pause", name, at)
                    self._hands.go_on(name)
                case DiskFull():
                    self._spans.begin(fault, (name,), name, at)
                    self._hands.logs[name].life.disk_full = True

    def _restart(self, fault: Restart, name: str, at: float) -> None:
        life = self._hands.logs[name].life
        if life.down:
            self._back(fault, name)
            self._spans.end("crash", name, at)
        elif life.alive and life.disk_full:
            self._owed[name] = fault  # there is room again; but it may have met its full disk
        else:
            self._nothing(fault, f"{name} was not down")
        self._spans.end("disk_full", name, at)

    def _back(self, fault: Restart, name: str) -> None:
        log = self._hands.logs[name]
        if fault.disk != "own":
            self._hands.restore(name, fault.disk)
        log.resumed += 1
        self._hands.launch(name)

    def _revive(self) -> None:
        """Who stopped for want of room although there was some by then comes back after all."""
        for name, fault in list(self._owed.items()):
            life = self._hands.logs[name].life
            if not life.alive:
                del self._owed[name]
                if life.down:
                    self._back(fault, name)
                else:
                    self._nothing(fault, f"{name} was not down")
