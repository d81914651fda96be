"""A file system of a test's own: read-only, or too small."""

from __future__ import annotations

import subprocess
import sys

import pytest


def in_own_mounts(mount: str, script: str) -> str:
    """Run Python where ``mount`` was done, unseen by others; skips where that is not allowed."""
    shell = f'{mount} || exit 77; exec "$0" -c "$1"'
    command = ["unshare", "-m", "sh", "-c", shell, sys.executable, script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare(1) here")
    if done.returncode:
        if done.returncode == 77 or "unshare" in done.stderr:
            pytest.skip(f"mounts are not allowed here: {done.stderr.strip()[:100]}")
        raise AssertionError(done.stderr)
    return done.stdout.strip()
