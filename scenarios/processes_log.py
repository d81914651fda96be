"""What the processes of a run said: their events as they are printed, life by life."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from scenarios.founding import Seat
from scenarios.nursery import Child

_WORDS_MAX: Final = 300


class Life:
    """One process of a node, from its start to its end. ``child`` None: it never came to be."""

    def __init__(self, child: Child | None) -> None:
        self.child = child
        self.killed = False  # by a fault of the scenario
        self.disk_full = False  # a fault of the scenario made it so
        self.given_up = ""  # why the engine ended it
        self.events: list[dict[str, Any]] = []

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.code is None

    @property
    def out_of_space(self) -> bool:
        """Whether it ended by itself, with the storage error, after its disk was made full."""
        return self.disk_full and self.child is not None and self.child.code == 4

    @property
    def down(self) -> bool:
        """Whether a fault ended it, so that a restart brings it back."""
        return not self.alive and (self.killed or self.out_of_space)

    def origin(self) -> float:
        """When the node's own clock was zero, by the machine's: events are told late, never early.

        0.0 for one that said nothing.
        """
        return min((e["clock"] - float(e["at"]) for e in self.events), default=0.0)


class NodeLog:
    """Reads what a node's processes print, and remembers it."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.lives: list[Life] = []
        self.round = 0
        self.resumed = 0
        self.phase = ""
        self.ready = False  # its newest process listens
        self.words: list[str] = []  # lines that are no events: what a process said as it failed
        self._path = seat.log
        self._offset = 0
        self._rest = b""

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @property
    def final(self) -> bool:
        """The model is made and written; the node only lingers."""
        return self.phase == "final" and (self.seat.state / "model.safetensors").exists()

    def begin(self, child: Child | None) -> None:
        """Another life; ``child``: its process."""
        self.lives.append(Life(child))
        self.ready = False

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        """All of a kind, over all lives."""
        for life in self.lives:
            yield from (event for event in life.events if event["event"] == kind)

    def read(self) -> Iterator[dict[str, Any]]:
        """Events printed since the last call."""
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
            if event is None or not self.lives:  # a run that ends while it starts its nodes
                continue
            self.life.events.append(event)
            match event["event"]:
                case "ready":
                    self.ready = True
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
        if isinstance(event, dict) and "clock" in event and event.get("node") == self.seat.name:
            return event
        if line.strip() and not isinstance(event, dict):
            self.words.append(line.decode(errors="replace").strip())
        return None

    def ended(self) -> str:
        life = self.life
        if life.given_up:
            return f"failed: {life.given_up}"
        if life.killed:
            return "killed"
        if life.out_of_space:
            return "failed: disk full (exit code 4)"
        for event in reversed(life.events):
            if event["event"] in ("finished", "stopped"):
                return str(event["event"])
            if event["event"] == "failed":
                return f"failed: {event['why']}"
        said = " / ".join(self.words[-3:])[-_WORDS_MAX:]
        code = None if life.child is None else life.child.code
        return f"failed: exit code {code}" + (f": {said}" if said else "")
