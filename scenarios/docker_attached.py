"""A container that runs, and what it prints: brought to a file in whole lines.

Two containers of one node print into one log, the second while it waits for its turn. What comes
from the engine is cut anywhere, not at ends of lines; written as it came, the two would be mixed up
within a line, and a line that cannot be read is one that was never said.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from threading import Thread
from typing import IO

from scenarios.docker_command import command


class Attached:
    """The `docker start` of one container; it ends with it, and with its code."""

    def __init__(self, container: str, log: Path) -> None:
        self._process = subprocess.Popen(
            [command(), "start", "--attach", container],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        streams = (self._process.stdout, self._process.stderr)
        self._pumps = [Thread(target=bring, args=(one, log), daemon=True) for one in streams]
        for pump in self._pumps:
            pump.start()

    def poll(self) -> int | None:
        """The exit code, when it has ended and all that it said is in the file."""
        code = self._process.poll()
        return None if code is None else self.wait()

    def wait(self) -> int:
        for pump in self._pumps:
            pump.join()
        return self._process.wait()


def bring(stream: IO[bytes], log: Path) -> None:
    """Append each line of ``stream`` in one write; also the last, of which a kill left a part."""
    with stream, log.open("ab", buffering=0) as file:
        for line in stream:
            file.write(line if line.endswith(b"\n") else line + b"\n")
