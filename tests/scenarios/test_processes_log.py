"""What an engine makes of the lines that its nodes print."""

from __future__ import annotations

import json
from pathlib import Path

from scenarios.founding import Seat
from scenarios.processes_log import NodeLog


def seat(folder: Path) -> Seat:
    return Seat(
        name="n0",
        node_toml=folder / "node.toml",
        folder=folder,
        state=folder / "state",
        part=folder / "rows",
        port=0,
        samples=1,
    )


def test_what_a_process_says_before_the_engine_knows_it_is_passed_over(tmp_path: Path) -> None:
    """A run that is interrupted while it starts its nodes still reads what they have printed."""
    log = NodeLog(seat(tmp_path))
    ready = {"event": "ready", "node": "n0", "clock": 1.0, "at": 0.0}
    log.seat.log.write_text(json.dumps(ready) + "\n")
    assert list(log.read()) == []
    log.begin(None)
    with log.seat.log.open("a") as file:
        file.write(json.dumps({**ready, "event": "round", "round": 3}) + "\n")
    assert [event["event"] for event in log.read()] == ["round"]
    assert log.round == 3
