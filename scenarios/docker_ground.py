"""Where the docker engine's nodes run: what its fleet asks of a Ground, done to containers.

A node's files are made here and copied into its volume; what it wrote is copied back at the end.
Partitions are networks that lose an end; the rest of what is told to nodes goes into their volumes.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from node.compose_parts import PORT
from node.errors import ConfigError, GrapevineError
from node.types.settings import MqttSettings, NodeSettings
from scenarios.disks import restore
from scenarios.docker_berths import HOME, Berth, Berths
from scenarios.docker_broker import ADDRESS, cut_off, mosquitto_conf
from scenarios.docker_broker import edges as broker_edges
from scenarios.docker_child import fingerprint
from scenarios.docker_command import together
from scenarios.faults import Fault, Partition, Restart, When
from scenarios.founding import Founded, Seat, toml
from scenarios.nursery import Child
from scenarios.processes_ground import backups_of, changes_of
from scenarios.weather import Change, Plan, write_change
from scenarios.witness import PAYLOADS

READY_S: Final = 240.0  # all containers, importing PyTorch at once from a cold disk on two cores
CLOCK_S: Final = 60.0  # two clocks of one machine differ by the time that a line takes to arrive
LOOK_S: Final = 0.05
_OURS: Final = ("log.jsonl",)  # in a seat's folder, and written by the engine


class Containers:
    """The nodes of one run in their berths.

    A node that the scenario restarts finds its next berth ready, with everything imported, as a
    process of the other engine does: what a round waits for is the node, not PyTorch.
    """

    def __init__(
        self, berths: Berths, founded: Founded, faults: Sequence[Fault], *, at_broker: bool
    ) -> None:
        self._berths, self._founded, self._at_broker = berths, founded, at_broker
        # by node: its berths that wait, what the restarts to come make of its disk, its volume
        self._held: dict[str, list[tuple[Berth, Child]]] = {name: [] for name in founded.seats}
        self._ahead = {name: _disks(faults, name) for name in founded.seats}
        self._volume: dict[str, str] = {}
        self._changes = changes_of(founded)
        self._changes.touch()

    def hold(self) -> None:
        """Make every container and start it; return when each waits for its beginning.

        Raises GrapevineError where one ends before, or takes too long; ConfigError where the image
        holds other code than this, or the engine's machine is another one.
        """
        self._berths.open()
        seats = self._founded.seats
        broker = self._serve() if self._at_broker else None
        together(self._settle, seats.values())
        for seat in seats.values():
            self._begin_waiting(self._berths.at(seat.name), seat)
            self._prepare(seat)
        for name, held in self._held.items():
            for berth, child in held:
                self._await(seats[name], berth, child)
        if broker is not None and broker.code is not None:
            raise GrapevineError(f"docker: the broker ended at once: {_last_words(self._log)}")

    def fetch(self) -> None:
        """Copy back what all nodes have written; one after another, for payloads are shared."""
        for seat in self._founded.seats.values():
            self._fetch(seat)

    # ── a Ground ────────────────────────────────────────────────────────────────────────────

    def start(self, seat: Seat, plan: Plan, seed: int) -> Child:
        berth, child = self._take(seat)
        self._await(seat, berth, child)
        self._berths.join(berth)
        home = f"{HOME}/{seat.name}"
        plan = structs.replace(
            plan,
            changes=f"{HOME}/{self._changes.name}",
            backups=plan.backups and f"{home}/{backups_of(seat).name}",
        )
        node = [f"{home}/node.toml", "--plan", f"{home}/plan.json", "--seed", str(seed)]
        files: dict[str, bytes | Path] = {
            self._changes.name: self._changes.read_bytes(),
            f"{seat.name}/plan.json": msgspec.json.encode(plan),
            berth.go: json.dumps(node).encode(),  # the last: who finds it finds the rest
        }
        self._berths.put(berth, files)
        if not self._held[seat.name]:
            self._prepare(seat)
        return child

    def signal(self, child: Child, number: int) -> None:
        self._berths.signal(child, number)
        if number == signal.SIGKILL:
            # where the killed one's networks are free, its successor is put into them at once
            node = self._berths.of(child).node
            for berth, _ in self._held[node][:1]:
                if berth.volume == self._volume[node]:
                    self._berths.join(berth)

    def poll(self, timeout_s: float = 0.0) -> None:
        self._berths.poll(timeout_s)

    def tell(self, change: Change) -> None:
        """A partition is done to networks; all else the nodes do to themselves when they read it.

        They read it at once: a change's own hour is by the engine's clock.
        """
        if change.sides and not change.one_way:
            cut = Partition(at=When(seconds=change.at), sides=change.sides)
            graph = self._founded.consortium.graph
            if self._at_broker:
                self._berths.cut(broker_edges(cut_off(cut, graph)))
            else:
                self._berths.cut([edge for edge in graph.edges if cut.cuts(*edge)])
            return
        if change.sides is not None:
            self._berths.mend()
        write_change(self._changes, structs.replace(change, at=0.0))
        together(self._pass_on, self._founded.seats)

    def restore(self, seat: Seat, disk: str) -> None:
        """Another volume, and in it what scenarios.disks says is left of the old one."""
        self._fetch(seat)
        restore(seat.state, backups_of(seat), disk)
        held, before = self._held[seat.name], self._volume[seat.name]
        fresh = next((berth for berth, _ in held if berth.volume != before), None)
        if fresh is None:
            fresh = self._berths.make(seat.name)
            self._begin_waiting(fresh, seat)
        self._furnish(seat, fresh)
        self._volume[seat.name] = fresh.volume

    # ── berths ──────────────────────────────────────────────────────────────────────────────

    def _serve(self) -> Child:
        """The run's broker, in a network with each node."""
        berth = self._berths.make_broker(mosquitto_conf(len(self._founded.seats)))
        self._berths.join(berth)
        return self._berths.start(berth, self._log)

    @property
    def _log(self) -> Path:
        return self._founded.directory / "broker.log"

    def _settle(self, seat: Seat) -> None:
        """The node's first berth, with its files, in its networks."""
        berth = self._berths.make(seat.name)
        self._furnish(seat, berth)
        self._berths.join(berth)
        self._volume[seat.name] = berth.volume

    def _prepare(self, seat: Seat) -> None:
        """A berth for the node's next restart, where there is one ahead."""
        if self._ahead[seat.name]:
            own = self._ahead[seat.name].pop(0) == "own"
            volume = self._volume[seat.name] if own else None
            self._begin_waiting(self._berths.make(seat.name, volume), seat)

    def _begin_waiting(self, berth: Berth, seat: Seat) -> None:
        self._held[seat.name].append((berth, self._berths.start(berth, seat.log)))

    def _take(self, seat: Seat) -> tuple[Berth, Child]:
        """The next berth with the node's volume. One made for a restart that was none is left."""
        held = self._held[seat.name]
        while held and held[0][0].volume != self._volume[seat.name]:
            self._berths.leave(held.pop(0)[0])
        if not held:
            berth = self._berths.make(seat.name, self._volume[seat.name])
            self._begin_waiting(berth, seat)
        return held.pop(0)

    def _await(self, seat: Seat, berth: Berth, child: Child) -> None:
        """Until the container says that everything is imported there."""
        until = time.monotonic() + READY_S
        while not self._is_held(seat, berth):
            if child.code is not None:
                raise GrapevineError(f"docker: {seat.name} ended at once: {_last_words(seat.log)}")
            if time.monotonic() > until:
                raise GrapevineError(f"docker: a container took over {READY_S:g} s to start")
            self._berths.poll(LOOK_S)

    # ── files ───────────────────────────────────────────────────────────────────────────────

    def _furnish(self, seat: Seat, berth: Berth) -> None:
        """Put into a new volume what the member has: keys, charter, rows, settings."""
        sealed = self._founded.consortium.path
        settings = NodeSettings(
            state=seat.state.name,
            consortium=f"../{sealed.name}",
            listen=None if self._at_broker else f"0.0.0.0:{PORT}",
            mqtt=MqttSettings(broker=str(ADDRESS)) if self._at_broker else None,
            data={"part": seat.part.name},
        )
        files: dict[str, bytes | Path] = {sealed.name: sealed}
        for path in sorted(seat.folder.iterdir()):
            if path.name not in _OURS:
                files[f"{seat.name}/{path.name}"] = path
        files[f"{seat.name}/{seat.node_toml.name}"] = toml(settings).encode()
        self._berths.put(berth, files)

    def _fetch(self, seat: Seat) -> None:
        kept = seat.node_toml.read_bytes()
        shutil.rmtree(seat.state)
        places = (seat.name, PAYLOADS)
        self._berths.get(self._berths.at(seat.name), places, self._founded.directory)
        seat.node_toml.write_bytes(kept)  # the container's own is of no use here

    def _pass_on(self, name: str) -> None:
        self._berths.put(self._berths.at(name), {self._changes.name: self._changes.read_bytes()})

    def _is_held(self, seat: Seat, berth: Berth) -> bool:
        """Whether the container has said that it is there. Raises ConfigError, as ``hold``."""
        for line in seat.log.read_bytes().split(b"\n")[:-1]:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            if isinstance(told, dict) and told.get("go") == f"{HOME}/{berth.go}":
                self._check(told)
                return True
        return False

    def _check(self, told: dict[str, object]) -> None:
        if told["code"] != fingerprint():
            raise ConfigError(
                f"--on docker: the image '{self._berths.image}' holds other code than runs here; "
                f"make it again: docker build --target scenario -t {self._berths.image} ."
            )
        clock = told["monotonic"]
        if not isinstance(clock, float) or abs(clock - time.monotonic()) > CLOCK_S:
            raise ConfigError(
                "--on docker: the engine runs on another machine, or in a virtual one: its clock "
                "is not this one's, and what nodes did could not be put in order; run there"
            )


def _last_words(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


def _disks(faults: Sequence[Fault], name: str) -> list[str]:
    """What each restart of a node finds of its disk, in order."""
    return [fault.disk for fault in faults if isinstance(fault, Restart) and name in fault.nodes]
