"""The nodes of one run on processes: starting them, hearing them, letting faults happen.

Whatever happens it ends: a node that cannot start, one that says nothing any more, Ctrl-C.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from scenarios.faults import Crash, Fault, Heal, Partition, Restart, Slow, concerned
from scenarios.founding import Founded
from scenarios.nursery import Child, Nursery
from scenarios.prepare import Founded as Prepared
from scenarios.processes_log import Happened, Life, NodeLog
from scenarios.settings import Scenario, derive, node_seed
from scenarios.weather import Plan, change_of, write_change

POLL_S: Final = 0.01
KILL_S: Final = 20.0  # from SIGKILL until it is reaped; only a disk that hangs needs so long

Progress = Callable[[dict[str, Any]], None]


class Fleet:
    """The nodes of one run, what they have said, and the faults still to come."""

    def __init__(
        self,
        scenario: Scenario,
        prepared: Prepared,
        founded: Founded,
        nursery: Nursery,
        on_progress: Progress | None,
    ) -> None:
        self.scenario, self.prepared, self.founded = scenario, prepared, founded
        self.logs = {name: NodeLog(seat) for name, seat in founded.seats.items()}
        self.happened: list[Happened] = []
        self._nursery = nursery
        self._tell = on_progress or (lambda _event: None)
        self._children: dict[str, Child] = {}
        self._pending = list(scenario.faults)
        self._cut = False
        self._given_up = False
        self._down: set[str] = set()
        self._changes = founded.directory / "changes.jsonl"
        self._start = 0.0
        self.wall_s = 0.0  # from the start to the last node's end
        self._heard = 0.0

    @property
    def unhappened(self) -> list[str]:
        """Faults that the run ended before."""
        return [fault.label for fault in self._pending]

    def run(self, timeout_s: float | None) -> None:
        """Start every node and stay until each has ended."""
        self._start = self._heard = time.monotonic()
        self._changes.touch()
        try:
            for name, seat in self.founded.seats.items():
                plan = self._plan(name)
                path = seat.folder / "plan.json"
                path.write_bytes(msgspec.json.encode(plan))
                self._launch(name)
            while not self._over():
                self._nursery.poll(POLL_S)
                self._listen()
                self._inject()
                self._watch(timeout_s)
        except BaseException:
            self._tell = lambda _event: None  # what dying nodes say now helps nobody
            raise
        finally:
            self._end_all("the engine was interrupted")
            self._listen()
            self.wall_s = self._now()

    # ── nodes ───────────────────────────────────────────────────────────────────────────────

    def _plan(self, name: str) -> Plan:
        scenario = self.scenario
        return Plan(
            me=name,
            start=self._start,
            seed=derive(scenario.seed, "network", name),
            step_ms=scenario.step_ms[name],
            shapes={peer: scenario.link_shape(name, peer) for peer in self._neighbours(name)},
            uplink_mbps=scenario.settings.network.bandwidth_mbps,
            changes=str(self._changes),
        )

    def _neighbours(self, name: str) -> tuple[str, ...]:
        return self.scenario.graph.neighbours(name)

    def _launch(self, name: str) -> None:
        seat = self.founded.seats[name]
        arguments = [str(seat.node_toml), "--plan", str(seat.folder / "plan.json")]
        arguments += ["--seed", str(node_seed(self.scenario, name))]
        child = self._nursery.start(arguments, seat.folder / "log.jsonl")
        self._children[name] = child
        self.logs[name].lives.append(Life(child, self._now()))

    def _now(self) -> float:
        """Seconds since the engine's start."""
        return time.monotonic() - self._start

    def _listen(self) -> None:
        for log in self.logs.values():
            for event in log.read(self._now()):
                self._heard = time.monotonic()
                self._tell(event)

    def _over(self) -> bool:
        ended = all(child.code is not None for child in self._children.values())
        return ended and not (self._down and self._will_restart())

    def _will_restart(self) -> bool:
        """Whether a crashed node comes back even though all others have ended."""
        if self._given_up:
            return False
        return any(isinstance(f, Restart) and f.at.seconds is not None for f in self._pending)

    # ── faults ──────────────────────────────────────────────────────────────────────────────

    def _inject(self) -> None:
        """Let every fault happen that is due, in the order in which the scenario has them."""
        for fault in list(self._pending):
            if self._due(fault) and self._possible(fault):
                self._pending.remove(fault)
                self._happen(fault)

    def _due(self, fault: Fault) -> bool:
        if fault.at.seconds is not None:
            return self._now() >= fault.at.seconds
        names = concerned(fault, self.scenario.graph)
        return any(self.logs[name].round >= (fault.at.round or 0) for name in names)

    def _possible(self, fault: Fault) -> bool:
        """A heal waits for its partition and a restart for its crash."""
        if isinstance(fault, Heal):
            return self._cut
        return not isinstance(fault, Restart) or set(fault.nodes) <= self._down

    def _happen(self, fault: Fault) -> None:
        now = self._now()
        furthest = max(log.round for log in self.logs.values())
        self.happened.append(Happened(now, fault, furthest))
        change = change_of(fault, now)
        if change is not None:
            write_change(self._changes, change)
        if isinstance(fault, Partition | Heal):
            self._cut = isinstance(fault, Partition)
        elif isinstance(fault, Crash):
            for name in fault.nodes:
                self._kill(name)
        elif isinstance(fault, Restart):
            for name in fault.nodes:
                self._restart(name)
        nodes = fault.nodes if isinstance(fault, Crash | Restart | Slow) else ()
        said = {"event": "fault", "node": None, "at": now, "kind": fault.kind}
        self._tell({**said, "nodes": list(nodes), "label": fault.label})

    def _kill(self, name: str) -> None:
        child = self._children[name]
        self._nursery.signal(child, signal.SIGKILL)
        self._wait(child)
        life = self.logs[name].lives[-1]
        if child.code == -signal.SIGKILL:
            life.killed_at = self._now()
            self._down.add(name)

    def _restart(self, name: str) -> None:
        self._down.discard(name)
        self.logs[name].resumed += 1
        self._launch(name)

    def _wait(self, child: Child) -> None:
        """Until the nursery has reaped it: its port and its directory's lock are free then."""
        until = time.monotonic() + KILL_S
        while child.code is None and time.monotonic() < until:
            self._nursery.poll(POLL_S)

    # ── the end ─────────────────────────────────────────────────────────────────────────────

    def _watch(self, timeout_s: float | None) -> None:
        now = time.monotonic()
        if timeout_s is not None and self._now() > timeout_s:
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
        ahead = [f.at.seconds - self._now() for f in self._pending if f.at.seconds is not None]
        start = settings.start.after_s or 0.0
        waits = 2 * learning.deadline_max_s + learning.linger_s + start
        return 60.0 + waits + 2 * slow * steps + max([0.0, *ahead])

    def _broken(self) -> bool:
        """A node could not even start; the others would wait for it until the silence is long."""
        if any(log.round for log in self.logs.values()):
            return False
        return any(
            child.code not in (None, 0)
            for n, child in self._children.items()
            if n not in self._down
        )

    def _end_all(self, why: str) -> None:
        self._given_up = True
        for name, child in self._children.items():
            if child.code is None:
                self._nursery.signal(child, signal.SIGKILL)
                self._wait(child)
                self.logs[name].lives[-1].given_up = why
