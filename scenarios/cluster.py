"""The same work over a Ray cluster, one task a run wherever a core is free: the extra ``ray``.

RAY_ADDRESS names the cluster. Without it Ray starts on this machine, and ends with us. Its machines
need grapevine installed, in one version; what a run gives does not depend on where it ran.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from node.errors import ConfigError, TransportError

Work = Callable[[int], bytes]

_IN_HAND: Final = 2  # tasks that wait for each core: none is idle while an answer travels


def check() -> None:
    """Raises ConfigError, naming the extra, where Ray is not installed."""
    _import()


def spread(work: Work, tasks: int) -> Iterator[tuple[int, bytes | None]]:
    """As workers.spread, over the cluster. ``work`` must not raise.

    Raises TransportError where there is no cluster, ConfigError where its machines cannot do the
    work at all.
    """
    ray = _import()
    ours = not ray.is_initialized()  # a program that has a cluster in hand keeps it
    if ours:
        _connect(ray)
    try:
        yield from _spread(ray, work, tasks)
    finally:
        if ours:
            ray.shutdown()


def _spread(ray: Any, work: Work, tasks: int) -> Iterator[tuple[int, bytes | None]]:
    # a run that took its process with it would take the next one as well
    one = ray.remote(num_cpus=1, max_retries=0)(_one)
    shared = ray.put(work)
    room = _IN_HAND * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(range(tasks))
    in_hand: dict[Any, int] = {}
    while waiting or in_hand:
        while waiting and len(in_hand) < room:
            task = waiting.popleft()
            in_hand[one.remote(shared, task)] = task
        done, _ = ray.wait(list(in_hand), num_returns=1)
        for reference in done:
            yield in_hand.pop(reference), _answer(ray, reference)


def _one(work: Work, task: int) -> bytes:
    """On a machine of the cluster: one thread, as everywhere."""
    import torch

    torch.set_num_threads(1)
    return work(task)


def _answer(ray: Any, reference: Any) -> bytes | None:
    try:
        answer: bytes = ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as error:
        said = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"--jobs ray: a machine of the cluster cannot do the work ({said}); it needs this "
            "version of grapevine"
        ) from None
    except ray.exceptions.RayError:  # its process or its machine is gone
        return None
    return answer


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "local")
    alone = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
    except Exception as error:  # Ray raises what it likes here
        said = " ".join(str(error).split())[:200]
        raise TransportError(f"--jobs ray: no cluster at '{address}': {said}") from None


def _import() -> Any:
    # No telemetry: Ray reports its use unless told not to, before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError("--jobs ray: needs Ray; install grapevine with [ray]") from None
    return ray
