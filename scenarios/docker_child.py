"""A node of a scenario in its container: everything imported, it says so and waits to begin.

    python -m scenarios.docker_child GO

Containers take seconds to import PyTorch; a scenario's time begins when all of them have. GO is the
file that the engine puts into the container then: the arguments of scenarios.child, as JSON.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3

HELD: Final = "held"
LOOK_S: Final = 0.02
# A berth may wait for a restart near the end of a long run; one whose engine was killed must not
# wait for ever.
HOLD_S: Final = 24 * 3600.0
_PACKAGES: Final = ("crypto", "node", "scenarios", "topology")


def fingerprint() -> str:
    """A digest of the code that runs here: an image made of other code is found out by it."""
    digest = blake3()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        folder = Path(next(iter(spec.submodule_search_locations or ())))
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest(16)


def main(argv: Sequence[str]) -> int:
    """Say that this process is there, wait for GO, and run the node to its end."""
    from scenarios import child

    (go,) = argv
    child.preload()
    told = {"event": HELD, "go": go, "code": fingerprint(), "monotonic": time.monotonic()}
    print(json.dumps(told), flush=True)  # noqa: T201
    arguments = _await(Path(go))
    if arguments is None:
        print("the engine never said to begin", file=sys.stderr)  # noqa: T201
        return 3
    return child.main(arguments)


def _await(go: Path) -> list[str] | None:
    """What GO says, once it is there in full; None where it never is."""
    until = time.monotonic() + HOLD_S
    while time.monotonic() < until:
        try:
            found: list[str] = json.loads(go.read_bytes())
        except (FileNotFoundError, ValueError):  # not yet, or only in part
            time.sleep(LOOK_S)
        else:
            return found
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
