"""One member's process: the asyncio shell around the protocol core.

The only place that owns the loop, the tasks, the timer and the threads. It hands events to the
core, carries its effects out in order, and re-arms one timer. Torch runs in two worker threads
(the learner's own, and one that checks incoming payloads); the disk has a thread of its own.
What the node is made of is put together in node/runtime_parts.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from crypto.identity import NodeId
from node.learning.vector import as_bytes
from node.protocol.frames import chunk_prefix, encode
from node.runtime_links import Links, Wrap, node_links
from node.runtime_memory import ReplicaMemory
from node.runtime_parts import Parts, assemble, wall_ms
from node.runtime_result import final_figures, write_model, write_result
from node.runtime_teller import Teller
from node.runtime_worker import Worker
from node.status.control import Control
from node.status.progress import LogFile, Sink
from node.storage import checkpoints
from node.storage.writer import Writer
from node.types import events as ev
from node.types.messages import CHUNK_BYTES, CREDIT_LINK_BYTES, Gone, MiB
from node.types.settings import NodeSettings

# What a peer asks for is its credit (8 MiB); twice that covers Wants that crossed our answers.
WANTED_MAX: Final = 2 * CREDIT_LINK_BYTES // CHUNK_BYTES
# Chunks are handed to a link only while it holds less than this: views of a model that the next
# Encode overwrites must not wait in long queues, and memory stays bounded.
LINK_FULL_BYTES: Final = MiB
# A model up to this size is copied for its checkpoint, so that training goes on while it is
# written; above it memory is dearer than time.
COPIED_BYTES_MAX: Final = 16 * MiB
# The next step of learning waits while more records than this are not durable: rounds may be
# faster than the disk for a while (it commits in groups), but not for good.
BEHIND_MAX: Final = 256


class NodeRuntime:
    """Runs one node to its end. ``run`` once; everything it starts is gone when it returns.

    links: made by the caller, who may have wrapped them. sinks: get every event (see
    node/status/progress.py). For engines: ``pad``, seconds that n local steps take at least (a
    slower machine), and ``wall``, the wall clock in ms since 1970 (a clock that is off). Raises the
    error that ended the node: StorageError for the disk, and so on.
    """

    def __init__(
        self,
        parts: Parts,
        links: Links,
        sinks: tuple[Sink, ...] = (),
        *,
        pad: Callable[[int], float] | None = None,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        self.parts = parts
        self._core = parts.core
        self._learner = parts.learner
        self._links = links
        self._pad, self._wall = pad, wall
        self._sinks = sinks
        self._inbox: deque[ev.Event] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._durable = 0
        self._submitted = 0
        self._parked: Callable[[], object] | None = None  # learning that waits for the disk
        self._held: dict[NodeId, deque[tuple[int | None, bytes]]] = {}
        self._wanted: dict[NodeId, deque[tuple[bytes, int]]] = {}
        self._memory = ReplicaMemory(parts.spool, parts.learner.payload_bytes)
        self._own_root: bytes | None = None  # of the public model, while it may be read
        self._quit = threading.Event()
        self._signals = 0
        self._carry: dict[type, Callable[[Any], None]] = {
            ev.Send: self._send,
            ev.SendChunk: self._send_chunk,
            ev.StoreChunk: self._memory.store,
            ev.DropPayload: self._memory.drop,
            ev.Dial: lambda e: self._links.dial(e.peer),
            ev.Hangup: lambda e: self._links.hangup(e.peer, e.why),
            ev.Train: self._train,
            ev.Encode: self._encode,
            ev.Apply: self._apply,
            ev.Mix: lambda e: self._learn(lambda: self._learner.mix(e)),
            ev.Rebase: lambda e: self._learn(lambda: self._learner.rebase(e)),
            ev.Forget: self._forget,
            ev.Finalise: self._finalise,
            ev.Choose: self._choose,
            ev.Persist: self._persist,
            ev.Note: lambda e: self._teller.note(e.note),
            ev.Exit: self._leave,
        }

    # ── life ──

    async def run(self, *, handle_signals: bool = False) -> dict[str, Any]:
        """Run until the training is done or the node is stopped; the result, as in result.json."""
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._ended: asyncio.Future[ev.Exit] = self._loop.create_future()
        directory = self.parts.directory
        self._work = Worker("grapevine-learner", self.fail)
        self._check = Worker("grapevine-check", self.fail)
        self._disk = Writer(
            self.parts.journal,
            call_soon=self._loop.call_soon_threadsafe,
            persisted=self._persisted,
            failed=self.fail,
        )
        self._teller = Teller(
            self.parts, self._sinks, work=self._work, links=self._links, at=self._at
        )
        control = Control(directory.path, self._asked)
        try:
            await self._links.start(self)
            await control.start()
            if handle_signals:
                self._catch_signals()
            self._teller.ready()
            self._memory.stock(self._check)
            self.feed(ev.Start(self._wall()))
            ended = await self._ended
            return await self._finish(ended)
        except Exception as error:
            self._teller.say("failed", why=" ".join(str(error).split()))
            raise
        finally:
            self._quit.set()
            if self._timer is not None:
                self._timer.cancel()
            await control.close()
            await self._links.close()
            await self._close_threads()

    def fail(self, error: BaseException) -> None:
        """End the node with this error; the first one counts."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def stop(self, *, after_round: bool = False) -> None:
        """Leave in order: a checkpoint, good-byes, then the end of ``run``."""
        self.feed(ev.Stop(after_round=after_round))

    async def _finish(self, ended: ev.Exit) -> dict[str, Any]:
        """The last words: flush the disk, write the result."""
        await asyncio.to_thread(self._disk.close)
        figures = await asyncio.wrap_future(self._work.run(self._write_final))
        how = "finished" if ended.finished else "stopped"
        result = self._teller.result(how, figures)
        write_result(self.parts.directory.result, result)
        self._teller.say(how, why=ended.why, result=result)
        return result

    async def _close_threads(self) -> None:
        # first the disk: what it waits for comes from the learner's thread
        try:
            await asyncio.to_thread(self._disk.close)
        except Exception as error:
            self.fail(error)
        await self._work.close()
        await self._check.close()

    # ── the core's only entry ──

    def feed(self, event: ev.Event) -> None:
        """Hand one event in and carry out what follows, then what came meanwhile."""
        self._inbox.append(event)
        if self._feeding or self._ended.done():
            return
        self._feeding = True
        try:
            while self._inbox:
                event = self._inbox.popleft()
                for effect in self._core.handle(event, now=self._loop.time()):
                    self._carry[type(effect)](effect)
        except Exception as error:
            self._inbox.clear()
            self.fail(error)
        finally:
            self._feeding = False
        self._arm()

    def _arm(self) -> None:
        at = self._core.next_wake()
        if self._timer is not None:
            # one that rings early costs a Wake; every chunk puts the core's next one off
            if at is not None and self._timer.when() <= at and not self._ended.done():
                return
            self._timer.cancel()
            self._timer = None
        if at is not None and not self._ended.done():
            self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.feed(ev.Wake())

    # ── what the transport tells ──

    def on_up(self, peer: NodeId) -> None:
        self._forget_link(peer)
        self.feed(ev.LinkUp(peer))

    def on_down(self, peer: NodeId, why: str) -> None:
        self._forget_link(peer)
        self.feed(ev.LinkDown(peer, why))

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self.feed(ev.DialFailed(peer, why))

    def on_frame(self, peer: NodeId, frame: memoryview) -> None:
        self.feed(ev.Frame(peer, frame))

    def on_broker(self, up: bool, why: str) -> None:
        self._teller.broker(up, why)

    def on_drained(self, peer: NodeId) -> None:
        """The link has room again."""
        self._pump(peer)

    # ── links ──

    def _forget_link(self, peer: NodeId) -> None:
        self._held.pop(peer, None)
        self._wanted.pop(peer, None)

    def _send(self, effect: ev.Send) -> None:
        held = self._held.get(effect.peer)
        if held or (effect.after is not None and effect.after > self._durable):
            self._held.setdefault(effect.peer, deque()).append((effect.after, effect.frame))
        else:
            self._links.send(effect.peer, effect.frame)

    def _persisted(self, id_: int) -> None:
        """Let go what waited for the disk, then tell the core."""
        self._durable = id_
        if self._parked is not None and self._submitted - id_ <= BEHIND_MAX:
            parked, self._parked = self._parked, None
            parked()
        for peer, held in list(self._held.items()):
            while held and (held[0][0] is None or held[0][0] <= id_):
                self._links.send(peer, held.popleft()[1])
            if not held:
                self._held.pop(peer, None)
        self.feed(ev.Persisted(id_))

    def _send_chunk(self, effect: ev.SendChunk) -> None:
        wanted = self._wanted.setdefault(effect.peer, deque())
        if len(wanted) >= WANTED_MAX:
            self._links.hangup(effect.peer, "it asks for more than its credit")
            return
        wanted.append((effect.root, effect.index))
        self._pump(effect.peer)

    def _pump(self, peer: NodeId) -> None:
        """Hand chunks to the link while it has room; the bytes are looked up only now."""
        wanted = self._wanted.get(peer)
        while wanted and self._links.queued_bytes(peer) < LINK_FULL_BYTES:
            root, index = wanted.popleft()
            data = self._chunk(root, index)
            if data is None:
                self._links.send(peer, encode(Gone(root)))
            else:
                self._links.send(peer, chunk_prefix(root, index), data)

    def _chunk(self, root: bytes, index: int) -> memoryview | None:
        """A chunk of the public model or of a relayed replica; None while Encode overwrites it."""
        start = index * CHUNK_BYTES
        if root == self._own_root:
            return self._learner.chunk(root, start, CHUNK_BYTES)
        # copied first: the other worker may replace a replica meanwhile
        for replica in list(self._learner.replicas.values()):
            if replica.root == root:
                return as_bytes(replica.vector)[start : start + CHUNK_BYTES]
        return None

    # ── learning ──

    def _learn(self, job: Callable[[], ev.Event]) -> None:
        self._work.run(job, self.feed)

    def _paced(self, begin: Callable[[], object]) -> None:
        """Begin now, or once the disk has caught up; the core issues one such step at a time."""
        if self._submitted - self._durable <= BEHIND_MAX:
            begin()
        else:
            self._parked = begin

    def _train(self, effect: ev.Train) -> None:
        def job() -> ev.Trained:
            began = time.monotonic()
            trained = self._learner.train(effect.round)
            if self._pad is not None:
                self._quit.wait(max(0.0, began + self._pad(trained.steps) - time.monotonic()))
            return trained

        self._paced(lambda: self._learn(job))

    def _encode(self, effect: ev.Encode) -> None:
        self._own_root = None

        def done(encoded: ev.Encoded) -> None:
            self._own_root = encoded.payload.root
            self.feed(encoded)

        self._paced(lambda: self._work.run(lambda: self._learner.encode(effect), done))

    def _apply(self, effect: ev.Apply) -> None:
        payload, rough = self._memory.take(effect)

        def done(applied: ev.Applied) -> None:
            self._memory.applied(effect.member, payload, ok=applied.ok)
            self.feed(applied)
            self._memory.stock(self._check)

        read = partial(self._learner.read, rough=rough)
        self._check.run(lambda: self._learner.apply(effect, payload, read), done)

    def _forget(self, effect: ev.Forget) -> None:
        self._check.run(
            lambda: self._learner.replicas.pop(effect.member, None),
            lambda _: self._memory.forgotten(effect.member),
        )

    def _finalise(self, effect: ev.Finalise) -> None:
        def job() -> ev.Finalised:
            finalised = self._learner.finalise(effect)
            self._write_final()
            return finalised

        self._learn(job)

    def _choose(self, effect: ev.Choose) -> None:
        def done(held: bool) -> None:
            which = f"the model of round {effect.round}" if effect.round else "the last model"
            why = f"{effect.voters} members chose {which}"
            self._teller.say("chosen", round=effect.round, voters=effect.voters, held=held, why=why)

        self._work.run(lambda: self._learner.choose(effect), done)

    def _write_final(self) -> dict[str, Any]:
        """In the learner's thread: measure the final model and write it."""
        me, consortium = self.parts.me, self.parts.consortium
        metadata = {"member": me.name, "consortium": consortium.id.hex()}
        write_model(self.parts.directory.model, self._learner, metadata)
        return final_figures(self._learner)

    # ── the disk ──

    def _persist(self, effect: ev.Persist) -> None:
        record, self._submitted = effect.record, effect.id
        if not isinstance(record, ev.Checkpoint):
            self._disk.submit(effect.id, record)
            return
        folder, state = self.parts.directory.checkpoints, record.state
        if self._learner.payload_bytes <= COPIED_BYTES_MAX:
            captured = self._work.run(self._learner.state)
            self._disk.submit(
                effect.id,
                record,
                lambda: checkpoints.save(folder, state.round, state, *captured.result()),
            )
        else:
            # written where the learner's tensors are still: no copy, and training waits
            saved = self._work.run(
                lambda: checkpoints.save(
                    folder, state.round, state, *self._learner.state(copy=False)
                )
            )
            self._disk.submit(effect.id, record, saved.result)

    # ── leaving, and who asks ──

    def _at(self) -> float:
        return self._loop.time() - self._began

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer the control socket."""
        match request.get("do"):
            case "stop":
                self.stop(after_round=request.get("after_round") is True)
            case "status":
                pass
            case other:
                return {"error": f"unknown request {other!r}"}
        return self._teller.status()

    def _leave(self, effect: ev.Exit) -> None:
        if not self._ended.done():
            self._ended.set_result(effect)

    def _catch_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        """The first asks to leave in order; the second does not wait for the job in hand."""
        self._signals += 1
        if self._signals > 1:
            # safe: everything durable is, as after a power cut
            os._exit(128 + number)
        self._teller.say("stopping", why="stopping; a second signal ends it at once")
        self.stop()


def run_node(
    settings: NodeSettings,
    *,
    base: Path,
    passphrase: bytes | None = None,
    sinks: tuple[Sink, ...] = (),
    seed: int | None = None,
    wrap: Wrap | None = None,
    pad: Callable[[int], float] | None = None,
) -> dict[str, Any]:
    """Run one member's node in this process until it is done; its result, as in result.json.

    ``base``: what the settings' paths are relative to. For engines: ``seed`` fixes the node's own
    randomness, ``wrap`` stands between node and links, ``pad``: see NodeRuntime. Signals end it
    in order. Raises ConfigError, StorageError, and what else ended the node.
    """
    import torch

    torch.set_num_threads(settings.threads)
    parts = assemble(settings, base=base, passphrase=passphrase, seed=seed)
    log = LogFile(parts.directory.path / "log.jsonl")
    try:
        links: Links = node_links(parts)
        if wrap is not None:
            links = wrap(links)
        node = NodeRuntime(parts, links, (log, *sinks), pad=pad)
        return asyncio.run(node.run(handle_signals=True))
    finally:
        log.close()
        parts.close()
