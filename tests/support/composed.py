"""A compose project for tests, under a name of its own: its commands, its services, their ends."""

from __future__ import annotations

import ipaddress
import random
import secrets
import subprocess
from pathlib import Path

import engine
import pytest

UP_S = 240.0


def free_range() -> str:
    """256 addresses for --subnets, apart from all networks there are: another run may go on."""
    listed = engine.docker("network", "ls", "--quiet").stdout.split()
    shown = "{{range .IPAM.Config}}{{.Subnet}} {{end}}"
    told = engine.docker("network", "inspect", "--format", shown, *listed, check=False).stdout
    taken = [ipaddress.ip_network(one) for one in told.split()]
    ranges = list(ipaddress.ip_network("10.208.0.0/14").subnets(new_prefix=24))
    random.shuffle(ranges)
    return str(next(one for one in ranges if not any(one.overlaps(other) for other in taken)))


class Project:
    """One compose project of its own name, subnets and image."""

    def __init__(self, folder: Path) -> None:
        self._command = engine.compose()
        if not self._command:
            pytest.skip("neither `docker compose` nor docker-compose is installed")
        self.name = f"grapevine-test-{secrets.token_hex(3)}"
        self._file = folder / "docker-compose.yml"

    def __call__(self, *words: str, check: bool = True) -> str:
        options = ["--project-name", self.name, "--file", str(self._file)]
        ran = subprocess.run(
            [*self._command, *options, *words],
            capture_output=True,
            text=True,
            timeout=UP_S,
            env=engine.environment(),
            check=False,
        )
        assert ran.returncode == 0 or not check, ran.stdout[-2000:] + ran.stderr[-3000:]
        return ran.stdout + ran.stderr

    def container(self, service: str) -> str:
        return self("ps", "--quiet", service).split()[0]

    def ended(self, service: str) -> str:
        """Its exit code, once it has ended."""
        try:
            return engine.docker("wait", self.container(service)).stdout.strip()
        except subprocess.TimeoutExpired:
            pytest.fail(f"{service} does not end\n{self('logs', '--tail', '15')}")

    def lines(self, service: str) -> list[str]:
        """What it has printed."""
        return engine.docker("logs", self.container(service)).stdout.splitlines()

    def until(self, service: str, words: str) -> None:
        """Return when a running service has printed ``words``."""
        follow = ["docker", "logs", "--follow", self.container(service)]
        with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as log:
            assert log.stdout is not None
            said = []
            for line in log.stdout:
                said.append(line)
                if words in line:
                    break
            else:
                pytest.fail(f"{service} ended without {words!r}: {said[-15:]}")
            log.kill()
