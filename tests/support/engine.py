"""A Docker engine for tests: whether one answers, the images of this checkout, its own names."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_S = 1200.0
SCENARIO_IMAGE = "grapevine-scenario:tests"
NODE_IMAGE = "grapevine-node:tests"


def absent() -> str:
    """Why no engine can be used here; empty where one answers."""
    if shutil.which("docker") is None:
        return "there is no docker command on this machine"
    asked = _run(["docker", "info", "--format", "{{.ServerVersion}}"], check=False)
    if asked.returncode:
        return f"no Docker engine answers: {asked.stderr.strip().splitlines()[-1:]}"
    return ""


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return _run(["docker", *words], check=check)


def compose() -> list[str]:
    """The command of Compose 2 where it is installed, else that of 1.29; empty: neither."""
    if _run(["docker", "compose", "version"], check=False).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def build(target: str, image: str) -> None:
    """Build the image ``target`` of this checkout; layers are cached by the engine."""
    words = ["build", "--quiet", "--target", target, "--tag", image]
    words += ["--build-arg", f"TORCH_INDEX={os.environ.get('TORCH_INDEX', '')}"]
    made = _run(["docker", *words, str(ROOT)], check=False, timeout=BUILD_S)
    assert made.returncode == 0, made.stderr[-3000:]


def _run(
    words: Sequence[str], *, check: bool, timeout: float = 300.0
) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        words, capture_output=True, text=True, timeout=timeout, env=environment(), check=False
    )
    if check:
        assert ran.returncode == 0, (words, ran.stdout[-2000:], ran.stderr[-2000:])
    return ran


def environment() -> dict[str, str]:
    """An engine without buildx builds with its classic builder, and wants to be told."""
    found = dict(os.environ)
    asked = ["docker", "buildx", "version"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        found["DOCKER_BUILDKIT"] = "0"
    return found
