"""Live lines in a terminal: one row a node, with round, accuracy, neighbours mixed and bytes."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from node.status.progress import human_bytes, sentence

# What is worth a line above the table; links that end when a training does are not.
_TOLD: Final = ("unlinked", "jumped", "equivocation", "warning", "broker")
_PARTING: Final = ("final", "leaving", "stopped")


class Board:
    """A sink for events of one or of several nodes; draws a table that stays in place."""

    def __init__(self, console: Console, *, rounds: int | None = None, title: str = "") -> None:
        self._rounds = rounds  # known beforehand, or from each node's first words
        self._title = title
        self._rows: dict[str, dict[str, Any]] = {}
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Board:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        row = self._rows.setdefault(event["node"], {"state": "starting"})
        kind = event["event"]
        if kind == "ready":
            row["rounds"] = event["rounds"]
        if kind == "round":
            row.update(event)
        elif kind == "phase":
            row["state"] = event["phase"]
        elif kind == "waiting":
            row["state"] = f"waiting, {event['present']} of {event['needed']}"
        elif kind in ("finished", "stopped", "failed", "stopping"):
            row["state"] = kind
        if kind in _TOLD and not (kind == "unlinked" and row["state"] in _PARTING):
            self._live.console.print(f"{escape(event['node'])}: {escape(sentence(event))}")
        if kind != "phase":  # phases change many times a round
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        table = Table(title=self._title or None, expand=False)
        for column in ("node", "round", "accuracy", "mixed", "missing", "sent", "state"):
            table.add_column(column, no_wrap=column != "missing")
        for name, row in self._rows.items():
            mixed, missing = row.get("mixed", []), row.get("missing", [])
            accuracy = row.get("accuracy")
            table.add_row(
                escape(name),
                f"{row.get('round', 0)}/{row.get('rounds', self._rounds or '?')}",
                "–" if accuracy is None else f"{accuracy:.3f}",
                f"{len(mixed)} of {len(mixed) + len(missing)}",
                escape(", ".join(peer for peer, _ in missing)),
                human_bytes(row.get("sent_bytes", 0)),
                escape(str(row["state"])),
            )
        return table
