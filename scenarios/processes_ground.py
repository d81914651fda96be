"""Where the processes engine's nodes run: forks of this machine, with files that all can reach."""

from __future__ import annotations

from pathlib import Path

import msgspec

from scenarios.disks import restore
from scenarios.founding import Founded, Seat
from scenarios.nursery import Child, Nursery
from scenarios.weather import Change, Plan, write_change


class Forks:
    """What scenarios.processes_fleet asks of a Ground, by a nursery and the file of changes."""

    def __init__(self, nursery: Nursery, founded: Founded) -> None:
        self._nursery, self._changes = nursery, changes_of(founded)
        self._changes.touch()

    def start(self, seat: Seat, plan: Plan, seed: int) -> Child:
        path = seat.folder / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        arguments = [str(seat.node_toml), "--plan", str(path), "--seed", str(seed)]
        return self._nursery.start(arguments, seat.log)

    def signal(self, child: Child, number: int) -> None:
        self._nursery.signal(child, number)

    def poll(self, timeout_s: float = 0.0) -> None:
        self._nursery.poll(timeout_s)

    def tell(self, change: Change) -> None:
        write_change(self._changes, change)

    def restore(self, seat: Seat, disk: str) -> None:
        restore(seat.state, backups_of(seat), disk)


def changes_of(founded: Founded) -> Path:
    """Where the nodes of a run read what happens to them."""
    return founded.directory / "changes.jsonl"


def backups_of(seat: Seat) -> Path:
    """Where a node's disk is kept as it was at each checkpoint."""
    return seat.folder / "backups"
