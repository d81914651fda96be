"""Carries the scenario's faults out in a simulation, in order, and remembers when they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from node.errors import ConfigError
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
from scenarios.network import SECOND
from scenarios.record import FaultSpan
from scenarios.spans import Spans

if TYPE_CHECKING:
    from scenarios.simulation import Simulation
    from scenarios.virtual_node import VirtualNode


class Mended(Struct, frozen=True):
    """A heal or restart: when, and the last round that any node alive had mixed by then."""

    label: str
    at: float
    round: int


class Outages:
    """The faults of one run. ``pending``: what has yet to happen before the run may be over."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        scenario = simulation.scenario
        self._faults = list(scenario.faults)
        self.pending = len(self._faults)
        self.restarts = any(isinstance(fault, Restart) for fault in self._faults)
        self.slowest = max((f.factor for f in self._faults if isinstance(f, Slow)), default=1.0)
        self.last_s = max((f.at.seconds or 0.0 for f in self._faults), default=0.0)
        self.mended: list[Mended] = []
        self.broken = 0  # the last round mixed anywhere when the first fault came
        self.notes: list[str] = []
        self._spans = Spans()
        self._partition: tuple[Partition, float] | None = None
        self._node = {node.name: node for node in simulation.nodes}
        self._carry_out = {
            Partition: self._cut,
            Heal: self._heal,
            Crash: self._crash,
            Restart: self._restart,
            Slow: self._slow,
            Link: self._link,
            Pause: self._pause,
            Resume: self._resume,
            Clog: self._clog,
            Unclog: self._unclog,
            Reset: self._reset,
            ClockSkew: self._skew,
            DiskFull: self._fill,
            Attack: self._attack,
        }
        for fault in self._faults:
            if type(fault) not in self._carry_out:
                raise ConfigError(f"{scenario.source}: simulation cannot inject '{fault.kind}'")

    def prepare(self) -> None:
        """Before any node starts: whose backups are kept, whose clock is off from the first."""
        for fault in self._faults:
            if isinstance(fault, Restart) and fault.disk == "backup":
                for name in fault.nodes:
                    self._node[name].disk.backups = []
            if isinstance(fault, ClockSkew) and fault.at.seconds == 0:
                for name in fault.nodes:
                    self._node[name].skew_s = fault.offset_s

    def arm(self) -> None:
        """The run begins."""
        for fault in self._faults:
            if fault.at.seconds is not None:
                self._simulation.clock.at(round(fault.at.seconds * SECOND), self._look)
        self._look()

    def round_done(self, node: VirtualNode) -> None:
        """A node mixed a round: what waited for it happens when this instant's work is done."""
        if self._faults and self._faults[0].at.round is not None and self._due(self._faults[0]):
            self._simulation.clock.at(self._simulation.clock.now, self._look)

    def finish(self) -> None:
        """The run is over."""
        if self._partition is not None:
            self._judge_sides()
        for fault in self._faults:
            self.notes.append(f"'{fault.label}' never happened: the run was over before")

    @property
    def unhappened(self) -> tuple[str, ...]:
        return tuple(fault.label for fault in self._faults)

    def spans(self) -> tuple[FaultSpan, ...]:
        return self._spans.all()

    # ── in order ──

    def _look(self) -> None:
        while self._faults and self._due(self._faults[0]):
            fault = self._faults.pop(0)
            if not self._spans:
                self.broken = max(self._rounds().values(), default=0)
            self._carry_out[type(fault)](fault)
            self.pending -= 1

    def _due(self, fault: Fault) -> bool:
        simulation = self._simulation
        if fault.at.seconds is not None:
            return simulation.clock.now >= round(fault.at.seconds * SECOND)
        wanted = fault.at.round or 0
        names = concerned(fault, simulation.scenario.graph)
        return any(self._node[name].round >= wanted for name in names)

    def _rounds(self) -> dict[str, int]:
        return {node.name: node.round for node in self._simulation.nodes if node.alive}

    # ── each kind ──

    def _cut(self, fault: Fault) -> None:
        assert isinstance(fault, Partition)
        simulation = self._simulation
        self._partition = (fault, simulation.now)
        simulation.checkers.cut(fault, simulation.now, self._rounds())
        names = tuple(name for side in fault.sides for name in side)
        self._begin(fault, names, f"{len(fault.sides)} sides")
        for a, b in simulation.scenario.graph.edges:
            i, j = self._node[a].index, self._node[b].index
            if not fault.one_way:
                if fault.cuts(a, b):
                    simulation.network.cut(i, j)
            elif fault.holds(a, b):
                simulation.network.hold(i, j)
            elif fault.holds(b, a):
                simulation.network.hold(j, i)

    def _heal(self, fault: Fault) -> None:
        simulation = self._simulation
        assert self._partition is not None
        cut, _ = self._partition
        self._judge_sides()
        self._partition = None
        for a, b in simulation.scenario.graph.edges:
            i, j = self._node[a].index, self._node[b].index
            if not cut.one_way:
                if cut.cuts(a, b):
                    simulation.network.heal(i, j)
            elif cut.holds(a, b):
                simulation.network.release(i, j)
            elif cut.holds(b, a):
                simulation.network.release(j, i)
        self._end("partition", cut.sides[0][0])
        self._mend(fault)

    def _judge_sides(self) -> None:
        """Long enough: for any node to train, wait for the longest deadline, and mix."""
        simulation = self._simulation
        assert self._partition is not None
        slowest = max(node.steps * node.step_ms * node.slow for node in simulation.nodes)
        a_round = slowest / 1000 + simulation.founded.policy.deadline_max_s
        long = simulation.now - self._partition[1] > 2 * a_round
        simulation.checkers.healed(simulation.now, self._rounds(), long=long)

    def _crash(self, fault: Fault) -> None:
        assert isinstance(fault, Crash)
        for name in fault.nodes:
            node = self._node[name]
            if not node.alive:
                self.notes.append(f"'{fault.label}' did nothing: {name} had ended before")
                continue
            self._begin(fault, (name,), name)
            self._simulation.kill(node)

    def _restart(self, fault: Fault) -> None:
        assert isinstance(fault, Restart)
        for name in fault.nodes:
            node = self._node[name]
            node.disk.full = False  # somebody made room
            full = node.ended.startswith("failed: disk full")
            if node.alive or not (full or node.ended == "killed"):
                self.notes.append(f"'{fault.label}' did nothing: {name} was not down")
                self._end("disk_full", name)
                continue
            if fault.disk != "own":
                node.disk.restore(fault.disk)
                self._simulation.checkers.restored(node.me)
            self._simulation.boot(node)
            self._end("crash", name)
            self._end("disk_full", name)
        self._mend(fault)

    def _slow(self, fault: Fault) -> None:
        assert isinstance(fault, Slow)
        for name in fault.nodes:
            self._end("slow", name)
            self._node[name].slow = fault.factor
            if fault.factor != 1:
                self._begin(fault, (name,), f"{name}, {fault.factor:g}× slower")

    def _link(self, fault: Fault) -> None:
        assert isinstance(fault, Link)
        network = self._simulation.network
        for a, b in fault.pairs:
            i, j = self._node[a].index, self._node[b].index
            network.reshape(i, j, network.shape(i, j).changed(fault.change))
        names = concerned(fault, self._simulation.scenario.graph)
        self._begin(fault, names, f"{len(fault.pairs)} links")

    def _pause(self, fault: Fault) -> None:
        assert isinstance(fault, Pause)
        for name in fault.nodes:
            self._begin(fault, (name,), name)
            self._node[name].paused = self._node[name].alive

    def _resume(self, fault: Fault) -> None:
        assert isinstance(fault, Resume)
        for name in fault.nodes:
            if self._node[name].paused:
                self._simulation.resume(self._node[name])
            self._end("pause", name)
        self._mend(fault)

    def _clog(self, fault: Fault) -> None:
        assert isinstance(fault, Clog)
        for a, b in fault.pairs:
            i, j = self._node[a].index, self._node[b].index
            self._simulation.network.hold(i, j)
            self._simulation.network.hold(j, i)
            self._begin(fault, (a, b), f"{a}–{b}", key=f"{a} {b}")

    def _unclog(self, fault: Fault) -> None:
        assert isinstance(fault, Unclog)
        for a, b in fault.pairs:
            i, j = self._node[a].index, self._node[b].index
            self._simulation.network.release(i, j)
            self._simulation.network.release(j, i)
            self._end("clog", f"{a} {b}")
        self._mend(fault)

    def _reset(self, fault: Fault) -> None:
        assert isinstance(fault, Reset)
        for a, b in fault.pairs:
            self._simulation.network.reset(self._node[a].index, self._node[b].index)
            self._begin(fault, (a, b), f"{a}–{b}", key=f"{a} {b}")
            self._end("reset", f"{a} {b}")

    def _skew(self, fault: Fault) -> None:
        assert isinstance(fault, ClockSkew)
        for name in fault.nodes:
            self._node[name].skew_s = fault.offset_s
        self._begin(fault, fault.nodes, f"{fault.offset_s:g} s")

    def _fill(self, fault: Fault) -> None:
        assert isinstance(fault, DiskFull)
        for name in fault.nodes:
            self._node[name].disk.full = True
            self._begin(fault, (name,), name)

    def _attack(self, fault: Fault) -> None:
        assert isinstance(fault, Attack)
        for name in fault.nodes:
            self._end("attack", name)
            self._simulation.attack(self._node[name], fault)
            if not fault.ends:
                self._begin(fault, (name,), f"{name}, {fault.what.rpartition('/')[2]}")

    def _mend(self, fault: Fault) -> None:
        rounds = self._rounds()
        label, at = fault.label, self._simulation.now
        self.mended.append(Mended(label, at, max(rounds.values(), default=0)))

    def _begin(self, fault: Fault, names: tuple[str, ...], what: str, *, key: str = "") -> None:
        self._spans.begin(fault, names, what, self._simulation.now, key=key)

    def _end(self, kind: str, name: str) -> None:
        self._spans.end(kind, name, self._simulation.now)
