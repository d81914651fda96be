"""The core pulls in nothing that has a clock, a socket, a tensor or a loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import node

ROOT = Path(node.__file__).parents[1]
FORBIDDEN = (
    "asyncio socket ssl selectors torch numpy logging structlog sqlite3 networkx cryptography "
    "concurrent.futures multiprocessing subprocess"
)
PACKAGES = ("node", "topology", "crypto", "scenarios")


def test_a_fresh_process_with_the_core_has_loaded_nothing_impure() -> None:
    code = (
        "import sys, node.protocol.core\n"
        f"print(*[m for m in {FORBIDDEN.split()!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_init_is_empty(package: str) -> None:
    files = list((ROOT / package).rglob("__init__.py"))
    assert files
    assert [f for f in files if f.read_bytes()] == []


@pytest.mark.parametrize("module", ["time", "random", "threading", "os", "datetime"])
def test_no_source_of_the_core_imports(module: str) -> None:
    for file in (ROOT / "node/protocol").glob("*.py"):
        lines = [line.split() for line in file.read_text().splitlines()]
        imports = [w[1].split(".")[0] for w in lines if w and w[0] in ("import", "from")]
        assert module not in imports, file.name
