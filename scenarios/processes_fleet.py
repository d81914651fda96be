"""The nodes of one run on processes: starting them, hearing them, seeing them all to their end.

Whatever happens it ends: a node that cannot start, one that says nothing any more, one that stands
still, Ctrl-C.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from scenarios.faults import Attack, Crash, DiskFull, Fault, Pause, Restart, Resume, Slow
from scenarios.founding import Founded, Seat
from scenarios.nursery import Child
from scenarios.prepare import Prepared
from scenarios.processes_ground import backups_of, changes_of
from scenarios.processes_log import NodeLog
from scenarios.processes_outages import ProcessOutages
from scenarios.settings import Scenario, derive, node_seed
from scenarios.weather import Change, Plan

POLL_S: Final = 0.01
KILL_S: Final = 20.0  # from SIGKILL until it is reaped; only a disk that hangs needs so long

Progress = Callable[[dict[str, Any]], None]


class Ground(Protocol):
    """Where nodes run. ``tell`` and ``restore``: as scenarios.processes_outages has them."""

    def start(self, seat: Seat, plan: Plan, seed: int) -> Child: ...
    def signal(self, child: Child, number: int) -> None: ...
    def poll(self, timeout_s: float = 0.0) -> None: ...
    def tell(self, change: Change) -> None: ...
    def restore(self, seat: Seat, disk: str) -> None: ...


class Fleet:
    """The nodes of one run, what they have said, and the faults still to come."""

    def __init__(
        self,
        scenario: Scenario,
        prepared: Prepared,
        founded: Founded,
        ground: Ground,
        on_progress: Progress | None,
    ) -> None:
        self.scenario, self.prepared, self.founded = scenario, prepared, founded
        self.logs = {name: NodeLog(seat) for name, seat in founded.seats.items()}
        self._ground = ground
        self._tell = on_progress or (lambda _event: None)
        self.outages = ProcessOutages(scenario, self)
        self._given_up = False
        self.start = 0.0  # the engine's start: the instant at which all nodes are up
        self._heard = 0.0
        self.wall_s = 0.0  # from the start to the last node's end

    def run(self, timeout_s: float | None) -> None:
        """Start every node and stay until each has ended."""
        self.start = self._heard = time.monotonic()
        try:
            absent = self.outages.before()
            for name in self.logs:
                if name not in absent:
                    self.launch(name)
            self._until_up(timeout_s)
            while not self._over():
                for fault in self.outages.look():
                    self._told(fault)
                self._ground.poll(POLL_S)
                self._listen()
                self._watch(timeout_s)
        except BaseException:
            self._tell = lambda _event: None  # what dying nodes say now helps nobody
            raise
        finally:
            self._end_all("the engine was interrupted")
            self._listen()
            self.wall_s = self.now()

    # ── what can be done to a node (scenarios.processes_outages.Hands) ──────────────────────

    def now(self) -> float:
        """Seconds since the engine's start."""
        return time.monotonic() - self.start

    def clock(self) -> float:
        return time.monotonic()

    def launch(self, name: str) -> None:
        seat, seed = self.founded.seats[name], node_seed(self.scenario, name)
        self.logs[name].begin(self._ground.start(seat, self._plan(name), seed))

    def kill(self, name: str) -> None:
        life = self.logs[name].life
        self._end(name)
        life.killed = life.child is not None and life.child.code == -signal.SIGKILL

    def stop(self, name: str) -> None:
        """Let it stand still; its connections stay up, and fill."""
        self._signal(name, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self._signal(name, signal.SIGCONT)

    def tell(self, change: Change) -> None:
        self._ground.tell(change)

    def restore(self, name: str, disk: str) -> None:
        self._ground.restore(self.founded.seats[name], disk)

    def _plan(self, name: str) -> Plan:
        scenario, seat = self.scenario, self.founded.seats[name]
        lives = len(self.logs[name].lives)
        return Plan(
            me=name,
            seed=derive(scenario.seed, "network", name, str(lives)),
            step_ms=scenario.step_ms[name],
            shapes={peer: scenario.link_shape(name, peer) for peer in self._neighbours(name)},
            bandwidth_mbps=scenario.settings.network.bandwidth_mbps,
            changes=str(changes_of(self.founded)),
            skew_s=self.outages.skew_s.get(name, 0.0),
            backups=str(backups_of(seat)) if name in self.outages.kept else None,
            broker=scenario.settings.network.transport == "mqtt",
        )

    def _neighbours(self, name: str) -> tuple[str, ...]:
        return self.scenario.graph.neighbours(name)

    def _signal(self, name: str, number: int) -> None:
        child = self.logs[name].life.child
        if child is not None and child.code is None:
            self._ground.signal(child, number)

    def _end(self, name: str) -> None:
        """Kill it and wait for it; one that stands still dies of this signal all the same."""
        child = self.logs[name].life.child
        if child is not None:
            self._signal(name, signal.SIGKILL)
            self._wait(child)

    def _wait(self, child: Child) -> None:
        """Until the nursery has reaped it: its port and its directory's lock are free then."""
        until = time.monotonic() + KILL_S
        while child.code is None and time.monotonic() < until:
            self._ground.poll(POLL_S)

    # ── the run ─────────────────────────────────────────────────────────────────────────────

    def _until_up(self, timeout_s: float | None) -> None:
        """The scenario's time begins when all listen, as it does where starting costs nothing."""
        while not all(log.ready or not log.life.alive for log in self.logs.values()):
            self._ground.poll(POLL_S)
            self._listen()
            self._watch(timeout_s)
        hour_ms, after_s = (
            self.founded.consortium.policy.start_by_ms,
            self.scenario.settings.start.after_s,
        )
        if hour_ms is not None and after_s is not None:
            # the hour that the charter names is then after_s away, as the scenario says
            time.sleep(max(0.0, hour_ms / 1000 - after_s - time.time()))
        self.start = time.monotonic()

    def _told(self, fault: Fault) -> None:
        named = Crash | Restart | Slow | Pause | Resume | DiskFull | Attack
        nodes = list(fault.nodes) if isinstance(fault, named) else []
        said = {"event": "fault", "node": None, "at": self.now(), "kind": fault.kind}
        self._tell({**said, "nodes": nodes, "label": fault.label})

    def _listen(self) -> None:
        for log in self.logs.values():
            for event in log.read():
                self._heard = time.monotonic()
                self._tell(event)

    def _over(self) -> bool:
        ended = not any(log.life.alive for log in self.logs.values())
        return ended and (self._given_up or not self.outages.waits)

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    def _watch(self, timeout_s: float | None) -> None:
        now = time.monotonic()
        if timeout_s is not None and self.now() > timeout_s:
            self._end_all(f"not done after {timeout_s:g} s")
        elif now - self._heard > self._silence_s():
            self._end_all(f"no sign of life from any node for {self._silence_s():.0f} s")
        elif self._broken():
            self._end_all("stopped, since a node failed before the first round")

    def _silence_s(self) -> float:
        """Longer than any node may be silent: a round's wait, its steps, and a fault ahead."""
        settings, learning = self.scenario.settings, self.prepared.learning
        slow = max([1.0, *(f.factor for f in self.scenario.faults if isinstance(f, Slow))])
        steps = max(self.prepared.steps.values()) * max(self.scenario.step_ms.values()) / 1000
        ahead = [f.at.seconds - self.now() for f in self.outages.pending if f.at.seconds]
        start = settings.start.after_s or 0.0
        waits = 2 * learning.deadline_max_s + learning.linger_s + start
        return 60.0 + waits + 2 * slow * steps + max([0.0, *ahead])

    def _broken(self) -> bool:
        """A node could not even start; the others would wait for it until the silence is long."""
        if any(log.round for log in self.logs.values()):
            return False
        lives = (log.life for log in self.logs.values())
        return any(not (one.alive or one.down or one.child.code == 0) for one in lives if one.child)

    def _end_all(self, why: str) -> None:
        self._given_up = True
        for name, log in self.logs.items():
            if log.lives and log.life.alive:
                self._end(name)
                log.life.given_up = why
