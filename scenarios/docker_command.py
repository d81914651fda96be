"""The `docker` command as the docker engine calls it: one line where it is not there, or says no.

What a run makes on an engine carries the run's name and label; nothing else is ever touched.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from node.errors import ConfigError, GrapevineError

# An engine on a busy machine takes seconds for a network; one that takes minutes hangs.
COMMAND_S: Final = 120.0
# The engine works on one request at a time where it touches networks: more would only wait there.
AT_ONCE: Final = 6

T = TypeVar("T")


def command() -> str:
    """Where the `docker` command lies. Raises ConfigError where there is none."""
    found = shutil.which("docker")
    if found is None:
        raise ConfigError(
            "--on docker: there is no docker command on this machine; install Docker, or run on "
            "processes"
        )
    return found


def docker(*words: str, given: bytes | None = None) -> bytes:
    """What the command prints. ``given``: its standard input.

    Raises GrapevineError with the engine's own words where it refuses, or hangs.
    """
    told = f"docker {' '.join(words[:3])}"
    try:
        ran = subprocess.run(
            [command(), *words],
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            timeout=COMMAND_S,
            check=False,
            # Ctrl-C reaches the run alone, which then ends what it began, and cleans up
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise GrapevineError(f"{told} …: no answer within {COMMAND_S:g} s") from None
    if ran.returncode:
        said = ran.stderr.decode(errors="replace").strip().splitlines()
        raise GrapevineError(f"{told} …: {said[-1] if said else f'exit code {ran.returncode}'}")
    return ran.stdout


def check_engine(image: str) -> None:
    """Raises ConfigError, with what to do, where no engine answers or the image is not there."""
    try:
        docker("info", "--format", "{{.ServerVersion}}")
    except GrapevineError as error:
        raise ConfigError(f"--on docker: no engine answers ({error}); start it first") from None
    check_image(image, f"make it in a checkout: docker build --target scenario -t {image} .")


def check_image(image: str, remedy: str) -> None:
    """Raises ConfigError where the engine does not have it."""
    try:
        docker("image", "inspect", "--format", "{{.Id}}", image)
    except GrapevineError:
        raise ConfigError(f"--on docker: there is no image '{image}'; {remedy}") from None


def together(work: Callable[[T], object], items: Iterable[T]) -> None:
    """``work`` on every item, some at a time. Raises the first error, once all have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = [pool.submit(work, item) for item in items]
    for one in done:
        one.result()


def names(kind: Sequence[str], label: str) -> list[str]:
    """What the engine has of this kind under a label. ``kind``: such as ("volume", "ls")."""
    return docker(*kind, "--quiet", "--filter", f"label={label}").decode().split()
