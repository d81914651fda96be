"""What the processes of a run said: their events as they are printed, life by life."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from scenarios.faults import Fault
from scenarios.founding import Seat
from scenarios.nursery import Child

_WORDS_MAX: Final = 300


class Happened(Struct, frozen=True):
    """A fault, when it happened, and the last round that any node had mixed by then."""

    at: float  # seconds since the engine's start
    fault: Fault
    round: int


class Life:
    """One process of a node, from its start to its end."""

    def __init__(self, child: Child, started_at: float) -> None:
        self.child = child
        self.started_at = started_at  # seconds since the engine's start
        self.killed_at: float | None = None  # by a fault of the scenario
        self.given_up = ""  # why the engine ended it
        self.events: list[tuple[float, dict[str, Any]]] = []  # (heard at, event)

    def origin(self) -> float:
        """When the node's own clock was zero: its events are heard late, never early."""
        waits = [heard - float(event["at"]) for heard, event in self.events if "at" in event]
        return min(waits, default=self.started_at)


class NodeLog:
    """Reads what a node's processes print, and remembers it."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.lives: list[Life] = []
        self.round = 0
        self.resumed = 0
        self.phase = ""
        self.ready_s: float | None = None  # from the first start to "ready"
        self.words: list[str] = []  # lines that are no events: what a process said as it failed
        self._path = seat.folder / "log.jsonl"
        self._offset = 0
        self._rest = b""

    @property
    def final(self) -> bool:
        """The model is made and written; the node only lingers."""
        return self.phase == "final" and (self.seat.state / "model.safetensors").exists()

    def read(self, now: float) -> Iterator[dict[str, Any]]:
        """Events printed since the last call; ``now``: seconds since the engine's start."""
        try:
            if self._path.stat().st_size == self._offset:
                return
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = self._event(line)
            if event is None:
                continue
            self.lives[-1].events.append((now, event))
            match event["event"]:
                case "ready" if self.ready_s is None:
                    self.ready_s = now - self.lives[0].started_at
                case "round":
                    self.round = max(self.round, int(event["round"]))
                case "phase":
                    self.phase = event["phase"]
            yield event

    def _event(self, line: bytes) -> dict[str, Any] | None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event and event.get("node") == self.seat.name:
            return event
        if line.strip():
            self.words.append(line.decode(errors="replace").strip())
        return None

    def ended(self) -> str:
        life = self.lives[-1]
        if life.given_up:
            return f"failed: {life.given_up}"
        if life.killed_at is not None:
            return "killed"
        for _, event in reversed(life.events):
            if event["event"] in ("finished", "stopped"):
                return str(event["event"])
            if event["event"] == "failed":
                return f"failed: {event['why']}"
        said = " / ".join(self.words[-3:])[-_WORDS_MAX:]
        return f"failed: exit code {life.child.code}" + (f": {said}" if said else "")
