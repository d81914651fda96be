"""What tests of every folder share: a Docker engine, and the images of this checkout."""

from __future__ import annotations

import os

import engine
import pytest


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
