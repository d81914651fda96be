"""Starts node processes cheaply: one process imports torch once and forks each node from there.

Every node is still an operating-system process of its own, with its own pid, state directory and
log. Five parallel imports of torch take 10 to 24 s on 2 cores; a fork takes milliseconds.

Nobody is orphaned: nodes die with the nursery, the nursery with whoever opened it (a closed
control socket everywhere, a parent-death signal on Linux besides), and ``close`` reaps them all.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from node.errors import GrapevineError

READY_S: Final = 120.0  # importing torch from a cold disk; a nursery that needs more is broken
CLOSE_S: Final = 10.0
TARGET: Final = "scenarios.child"
_PR_SET_PDEATHSIG: Final = 1

# One thread per process: five nodes with a pool each would fight over the same cores, and a
# process with threads cannot be forked safely.
_POOLS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Child:
    """One node process. ``code``: None while it runs, else as ``Popen.returncode``."""

    def __init__(self, key: int) -> None:
        self.key = key
        self.pid: int | None = None
        self.code: int | None = None


class Nursery:
    """The parent's end. ``poll`` must be called now and then to learn what happened."""

    def __init__(
        self, log: Path, *, target: str = TARGET, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the nursery process; its own output goes to ``log``.

        target: the module whose ``preload()`` is called once and ``main(argv)`` in each child.
        ``env`` adds to os.environ.
        """
        self.ready_s: float | None = None
        self._children: list[Child] = []
        self._buffer = b""
        self._log = log
        self._control, theirs = socket.socketpair()
        begun = time.monotonic()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "scenarios.nursery", str(theirs.fileno()), target],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **dict.fromkeys(_POOLS, "1"), **(env or {})},
                    # its own group: Ctrl-C reaches the engine alone, which then ends the nodes
                    start_new_session=True,
                )
        finally:
            theirs.close()
        self._begun = begun

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def wait_ready(self, within_s: float = READY_S) -> None:
        """Return when the imports are done. Raises GrapevineError when they fail or take longer."""
        while self.ready_s is None:
            left = self._begun + within_s - time.monotonic()
            if left <= 0:
                raise GrapevineError(f"starting node processes took over {within_s:g} s")
            self.poll(left)

    def start(self, argv: Sequence[str], log: Path) -> Child:
        """Start ``scenarios.child.main(argv)`` with stdout and stderr appended to ``log``."""
        child = Child(len(self._children))
        self._children.append(child)
        self._say({"start": child.key, "argv": list(argv), "log": str(log)})
        return child

    def signal(self, child: Child, number: int) -> None:
        """Send a signal; the nursery does it, which alone knows that the pid is still that node."""
        self._say({"signal": int(number), "key": child.key})

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in what the nursery reports; waits up to ``timeout_s`` for the first report.

        Raises GrapevineError when the nursery itself is gone.
        """
        self._control.settimeout(max(timeout_s, 0.0))
        while True:
            try:
                data = self._control.recv(65536)
            except (BlockingIOError, TimeoutError):
                return
            if not data:
                raise GrapevineError(f"the process that starts the nodes died; see {self._log}")
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            self._control.settimeout(0.0)

    def close(self) -> None:
        """Kill whatever still runs and reap it all. Safe to call twice."""
        self._control.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for child in self._children:
            if child.code is None:
                child.code = -signal.SIGKILL

    def _say(self, message: Mapping[str, Any]) -> None:
        self._control.settimeout(CLOSE_S)
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise GrapevineError(
                f"the process that starts the nodes died ({error}); see {self._log}"
            ) from None

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self.ready_s = time.monotonic() - self._begun
            return
        child = self._children[message["key"]]
        child.pid = message["pid"]
        child.code = message["code"]


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends; elsewhere the control socket does."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request: nobody would tell us any more
        os._exit(1)


def serve(control: socket.socket, target: str) -> None:
    """The nursery process: fork on request, report pids and exits, end with the control socket."""
    module = importlib.import_module(target)
    module.preload()

    gc.freeze()  # keeps the imported pages shared with the forks
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write)
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    running: dict[int, int] = {}  # key -> pid
    _report(control, {"ready": True})
    buffer = b""
    try:
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if wake_read in ready:
                os.read(wake_read, 4096)
                _reap(control, running)
            if control.fileno() not in ready:
                continue
            data = control.recv(65536)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if "start" in request:
                    key = request["start"]
                    pid = _fork(module.main, request, control, (wake_read, wake_write))
                    running[key] = pid
                    _report(control, {"key": key, "pid": pid, "code": None})
                elif request["key"] in running:
                    os.kill(running[request["key"]], request["signal"])
    finally:
        for pid in running.values():
            os.kill(pid, signal.SIGKILL)
        for pid in running.values():
            os.waitpid(pid, 0)


def _reap(control: socket.socket, running: dict[int, int]) -> None:
    for key, pid in list(running.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            del running[key]
            code = os.waitstatus_to_exitcode(status)
            _report(control, {"key": key, "pid": pid, "code": code})


def _report(control: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the engine is gone: the next read ends the nursery
        control.sendall(json.dumps(message).encode() + b"\n")


def _fork(
    main: Callable[[list[str]], int],
    request: Mapping[str, Any],
    control: socket.socket,
    pipes: tuple[int, int],
) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 5
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(parent)
        control.close()
        for end in pipes:
            os.close(end)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        code = main(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the nursery's own frames, buffers and exit handlers are not this node's.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
