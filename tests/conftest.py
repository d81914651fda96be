"""What tests of every folder share: workers, a Docker engine, and the images of this checkout."""

from __future__ import annotations

import os
from typing import Any

import engine
import pytest

WORKERS_MAX = 4  # beyond that it waits for the files that one worker runs
# What one worker runs by itself, file after file; the others share all else, test by test.
TOGETHER = {
    # faults among real processes in real time: no two such runs take each other's cores
    "tests/scenarios/test_parity.py": "processes",
    "tests/scenarios/test_processes.py": "processes",
    "tests/scenarios/test_processes_faults.py": "processes",
    # early in a worker's life: after two thousand other tests in one process it does not start
    "tests/scenarios/test_report_browser.py": "browser",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: one more than cores, since many tests wait; on one core none."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min(cores + 1, WORKERS_MAX) if cores > 1 else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Scopes are handed out by their number of tests, the largest first: those of TOGETHER."""
    from xdist.scheduler import LoadScopeScheduling

    class Sharing(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Sharing(config, log)


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Skips, saying why, where no engine answers; fails where there should be one."""
    if why := engine.absent():
        assert not os.environ.get("GRAPEVINE_DOCKER"), why
        pytest.skip(why)


@pytest.fixture(scope="session")
def node_image(docker_engine: None) -> str:
    engine.build("node", engine.NODE_IMAGE)
    return engine.NODE_IMAGE


@pytest.fixture(scope="session")
def scenario_image(docker_engine: None) -> str:
    engine.build("scenario", engine.SCENARIO_IMAGE)
    return engine.SCENARIO_IMAGE
