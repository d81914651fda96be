"""Two containers that print into one log: no line of one is torn by the other."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

from scenarios.docker_attached import bring


def test_lines_that_come_in_pieces_are_not_mixed_up(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.touch()
    ends = [os.pipe() for _ in range(2)]
    pumps = [Thread(target=bring, args=(os.fdopen(end[0], "rb"), log)) for end in ends]
    for pump in pumps:
        pump.start()
    (_, one), (_, other) = ends
    for number in range(200):  # as a Python without buffers prints: the text, and then its end
        os.write(one, b"one %d" % number)
        os.write(other, b"other %d" % number)
        os.write(one, b"\n")
        os.write(other, b"\n")
    os.write(one, b"killed as it sp")
    for end in (one, other):
        os.close(end)
    for pump in pumps:
        pump.join()
    text = log.read_text()
    assert text.endswith("\n")
    lines = text.splitlines()
    for who in ("one", "other"):
        said = [line for line in lines if line.startswith(who)]
        assert said == [f"{who} {number}" for number in range(200)]
    assert len(lines) == 401
    assert "killed as it sp" in lines
