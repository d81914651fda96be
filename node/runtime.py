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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from crypto.identity import NodeId
from node.errors import LocalProtocolError
from node.learning.metrics import Metrics
from node.learning.vector import as_bytes
from node.protocol.frames import chunk_prefix, encode
from node.runtime_parts import Parts, wall_ms
from node.runtime_result import final_figures, missed, round_figures, write_model, write_result
from node.status.control import Control
from node.status.progress import Reporter, Sink
from node.storage import checkpoints
from node.storage.writer import Writer
from node.types.events import (
    Apply,
    Checkpoint,
    Choose,
    Dial,
    DialFailed,
    DropPayload,
    Effect,
    Encode,
    Encoded,
    Event,
    Exit,
    Finalise,
    Finalised,
    Forget,
    Frame,
    Hangup,
    Jumped,
    LinkDown,
    LinkUp,
    Mix,
    Note,
    Notice,
    Persist,
    Persisted,
    Rebase,
    RoundDone,
    Send,
    SendChunk,
    Start,
    Stop,
    StoreChunk,
    Train,
    Trained,
    Wake,
)
from node.types.messages import CHUNK_BYTES, CREDIT_LINK_BYTES, Gone, MiB

T = TypeVar("T")

# What a peer asks for is its credit (8 MiB); twice that covers Wants that crossed our answers.
WANTED_MAX: Final = 2 * CREDIT_LINK_BYTES // CHUNK_BYTES
# Chunks are handed to a link only while it holds less than this: views of a model that the next
# Encode overwrites must not wait in long queues, and memory stays bounded.
LINK_FULL_BYTES: Final = 2 * MiB
# A model up to this size is copied for its checkpoint, so that training goes on while it is
# written; above it memory is dearer than time.
COPIED_BYTES_MAX: Final = 16 * MiB


class Worker:
    """One thread that runs jobs in the order given and hands each result to the loop."""

    def __init__(self, name: str, fail: Callable[[BaseException], None]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._fail = fail
        self._loop = asyncio.get_running_loop()

    def run(self, job: Callable[[], T], then: Callable[[T], object] | None = None) -> Future[T]:
        """Queue ``job``; ``then`` gets its result in the loop. An error of it ends the node."""
        future = self._pool.submit(job)
        future.add_done_callback(lambda done: self._hand_over(done, then))
        return future

    def _hand_over(self, done: Future[T], then: Callable[[T], object] | None) -> None:
        if not self._loop.is_closed() and not done.cancelled():
            self._loop.call_soon_threadsafe(self._deliver, done, then)

    def _deliver(self, done: Future[T], then: Callable[[T], object] | None) -> None:
        error = done.exception()
        if error is not None:
            self._fail(error)
        elif then is not None:
            then(done.result())

    async def close(self) -> None:
        """Drop what has not begun and wait for the job in hand."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)


class NodeRuntime:
    """Runs one node to its end. ``run`` once; everything it starts is gone when it returns.

    sinks: get every event (see node/status/progress.py). transport: made by the caller, who may
    have wrapped it. pad: seconds that n local steps take at least (engines that model a slower
    machine). Raises the error that ended the node: StorageError for the disk, and so on.
    """

    def __init__(
        self,
        parts: Parts,
        transport: Any,
        sinks: tuple[Sink, ...] = (),
        *,
        pad: Callable[[int], float] | None = None,
    ) -> None:
        self.parts = parts
        self._core = parts.core
        self._learner = parts.learner
        self._transport = transport
        self._pad = pad
        self._reporter = Reporter(parts.me.name, parts.consortium.roster, sinks)
        self._inbox: deque[Event] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._durable = 0
        self._held: dict[NodeId, deque[tuple[int | None, bytes]]] = {}
        self._wanted: dict[NodeId, deque[tuple[bytes, int]]] = {}
        self._own_root: bytes | None = None  # of the public model, while it may be read
        self._quit = threading.Event()
        self._signals = 0
        self._jumps = 0
        self._figures: dict[str, Any] = {}
        self._exit: Exit | None = None
        self._carry: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            SendChunk: self._send_chunk,
            StoreChunk: self._store_chunk,
            DropPayload: lambda e: parts.spool.drop(e.member, e.root),
            Dial: lambda e: self._transport.dial(e.peer),
            Hangup: lambda e: self._transport.hangup(e.peer, e.why),
            Train: self._train,
            Encode: self._encode,
            Apply: self._apply,
            Mix: lambda e: self._learn(lambda: self._learner.mix(e)),
            Rebase: lambda e: self._learn(lambda: self._learner.rebase(e)),
            Forget: self._forget,
            Finalise: self._finalise,
            Choose: self._choose,
            Persist: self._persist,
            Note: lambda e: self._note(e.note),
            Exit: self._leave,
        }

    # ── life ──

    async def run(self, *, handle_signals: bool = False) -> dict[str, Any]:
        """Run until the training is done or the node is stopped; the result, as in result.json."""
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        directory = self.parts.directory
        self._work = Worker("grapevine-learner", self.fail)
        self._check = Worker("grapevine-check", self.fail)
        self._disk = Writer(
            self.parts.journal,
            call_soon=self._loop.call_soon_threadsafe,
            persisted=lambda id_: self._persisted(id_),
            failed=self.fail,
        )
        control = Control(directory.path, self._asked)
        try:
            await self._transport.start(self)
            await control.start()
            if handle_signals:
                self._catch_signals()
            self._tell_ready()
            self.feed(Start(wall_ms()))
            ended = await self._ended
            return await self._finish(ended)
        except Exception as error:
            self._report("failed", why=" ".join(str(error).split()))
            raise
        finally:
            self._quit.set()
            if self._timer is not None:
                self._timer.cancel()
            await control.close()
            await self._transport.close()
            await self._close_threads()

    def fail(self, error: BaseException) -> None:
        """End the node with this error; the first one counts."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def stop(self, *, after_round: bool = False) -> None:
        """Leave in order: a checkpoint, good-byes, then the end of ``run``."""
        self.feed(Stop(after_round=after_round))

    async def _finish(self, ended: Exit) -> dict[str, Any]:
        """The last words: flush the disk, write the result."""
        await asyncio.to_thread(self._disk.close)
        figures = await asyncio.wrap_future(self._work.run(self._write_final))
        result = self._result("finished" if ended.finished else "stopped", figures)
        write_result(self.parts.directory.result, result)
        self._report("finished" if ended.finished else "stopped", why=ended.why, result=result)
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

    def feed(self, event: Event) -> None:
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._core.next_wake()
        if at is not None and not self._ended.done():
            self._timer = self._loop.call_at(at, self.feed, Wake())

    # ── what the transport tells ──

    def on_up(self, peer: NodeId) -> None:
        self._forget_link(peer)
        self.feed(LinkUp(peer))

    def on_down(self, peer: NodeId, why: str) -> None:
        self._forget_link(peer)
        self.feed(LinkDown(peer, why))

    def on_dial_failed(self, peer: NodeId, why: str) -> None:
        self.feed(DialFailed(peer, why))

    def on_frame(self, peer: NodeId, frame: memoryview) -> None:
        self.feed(Frame(peer, frame))

    def on_drained(self, peer: NodeId) -> None:
        """The link has room again."""
        self._pump(peer)

    # ── links ──

    def _forget_link(self, peer: NodeId) -> None:
        self._held.pop(peer, None)
        self._wanted.pop(peer, None)

    def _send(self, effect: Send) -> None:
        held = self._held.get(effect.peer)
        if held or (effect.after is not None and effect.after > self._durable):
            self._held.setdefault(effect.peer, deque()).append((effect.after, effect.frame))
        else:
            self._transport.send(effect.peer, effect.frame)

    def _persisted(self, id_: int) -> None:
        """Let go what waited for the disk, then tell the core."""
        self._durable = id_
        for peer, held in list(self._held.items()):
            while held and (held[0][0] is None or held[0][0] <= id_):
                self._transport.send(peer, held.popleft()[1])
            if not held:
                self._held.pop(peer, None)
        self.feed(Persisted(id_))

    def _send_chunk(self, effect: SendChunk) -> None:
        wanted = self._wanted.setdefault(effect.peer, deque())
        if len(wanted) >= WANTED_MAX:
            self._transport.hangup(effect.peer, "it asks for more than its credit")
            return
        wanted.append((effect.root, effect.index))
        self._pump(effect.peer)

    def _pump(self, peer: NodeId) -> None:
        """Hand chunks to the link while it has room; the bytes are looked up only now."""
        wanted = self._wanted.get(peer)
        while wanted and self._transport.queued_bytes(peer) < LINK_FULL_BYTES:
            root, index = wanted.popleft()
            data = self._chunk(root, index)
            if data is None:
                self._transport.send(peer, encode(Gone(root)))
            else:
                self._transport.send(peer, chunk_prefix(root, index), data)

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

    def _store_chunk(self, effect: StoreChunk) -> None:
        self.parts.spool.store(
            effect.member, effect.root, effect.offset, effect.length, effect.data
        )

    # ── learning ──

    def _learn(self, job: Callable[[], Event]) -> None:
        self._work.run(job, self.feed)

    def _train(self, effect: Train) -> None:
        def job() -> Trained:
            began = time.monotonic()
            trained = self._learner.train(effect.round)
            if self._pad is not None:
                self._quit.wait(max(0.0, began + self._pad(trained.steps) - time.monotonic()))
            return trained

        self._learn(job)

    def _encode(self, effect: Encode) -> None:
        self._own_root = None

        def done(encoded: Encoded) -> None:
            self._own_root = encoded.payload.root
            self.feed(encoded)

        self._work.run(lambda: self._learner.encode(effect), done)

    def _apply(self, effect: Apply) -> None:
        payload = self.parts.spool.take(effect.member, effect.root)
        self._check.run(lambda: self._learner.apply(effect, payload), self.feed)

    def _forget(self, effect: Forget) -> None:
        self._check.run(lambda: self._learner.replicas.pop(effect.member, None))

    def _finalise(self, effect: Finalise) -> None:
        def job() -> Finalised:
            finalised = self._learner.finalise(effect)
            self._write_final()
            return finalised

        self._learn(job)

    def _choose(self, effect: Choose) -> None:
        def done(held: bool) -> None:
            which = f"the model of round {effect.round}" if effect.round else "the last model"
            why = f"{effect.voters} members chose {which}"
            self._report("chosen", round=effect.round, voters=effect.voters, held=held, why=why)

        self._work.run(lambda: self._learner.choose(effect), done)

    def _write_final(self) -> dict[str, Any]:
        """In the learner's thread: measure the final model and write it."""
        me, consortium = self.parts.me, self.parts.consortium
        metadata = {"member": me.name, "consortium": consortium.id.hex()}
        write_model(self.parts.directory.model, self._learner, metadata)
        return final_figures(self._learner)

    # ── the disk ──

    def _persist(self, effect: Persist) -> None:
        record = effect.record
        if not isinstance(record, Checkpoint):
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

    # ── telling ──

    def _note(self, notice: Notice) -> None:
        self.parts.journal.note(notice, time.time())
        if isinstance(notice, RoundDone):
            self._after_round(notice)
            return
        if isinstance(notice, Jumped):
            self._jumps += 1
        self._reporter.notice(notice, at=self._at())

    def _after_round(self, done: RoundDone) -> None:
        """Measure the mixed model, before the learner's thread goes on to the next round."""
        policy, every = self.parts.consortium.policy, self._learner.settings.evaluate_every
        if done.round in policy.candidates:
            self._work.run(lambda: self._learner.keep_candidate(done.round))
        at, traffic = self._at(), self._traffic()

        def tell(metrics: Metrics | None) -> None:
            if metrics is not None:
                self._figures = round_figures(metrics)
            measured = self._figures if metrics is not None else {}
            self._reporter.round(done, at=at, measured=measured, traffic=traffic)

        if done.round % every == 0 or done.round >= policy.last_round:
            self._work.run(self._learner.evaluate, tell)
        else:
            tell(None)

    def _at(self) -> float:
        return self._loop.time() - self._began

    def _report(self, event: str, **fields: Any) -> None:
        self._reporter.emit(event, at=self._at(), **fields)

    def _tell_ready(self) -> None:
        policy, settings = self.parts.consortium.policy, self.parts.settings
        self._report(
            "ready",
            listen=settings.listen,
            pid=os.getpid(),
            rounds=policy.last_round,
            resumed=self.parts.resumed,
            round=self._core.round,
        )
        for warning in self.parts.warnings:
            self._report("warning", why=warning)

    def _traffic(self) -> dict[str, int]:
        return {
            "sent_bytes": self._transport.sent_bytes,
            "received_bytes": self._transport.received_bytes,
        }

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer the control socket."""
        core, policy = self._core, self.parts.consortium.policy
        if request.get("do") == "stop":
            self.stop(after_round=request.get("after_round") is True)
        elif request.get("do") != "status":
            return {"error": f"unknown request {request.get('do')!r}"}
        roster = self.parts.consortium.roster
        return {
            "running": True,
            "name": self.parts.me.name,
            "pid": os.getpid(),
            "phase": core.phase.value,
            "round": core.round,
            "rounds": policy.last_round,
            "neighbours": len(self.parts.me.neighbours),
            "linked": [roster.name(peer.id) for peer in core.links.linked()],
            "accuracy": self._figures.get("accuracy"),
            "rejections": dict(core.context.rejections),
            **self._traffic(),
        }

    def _result(self, ended: str, figures: dict[str, Any]) -> dict[str, Any]:
        """Everything of scenarios' NodeRun; ``jumped`` and bytes are this process's own."""
        core, parts = self._core, self.parts
        return {
            "name": parts.me.name,
            "samples": parts.me.samples,
            "ended": ended,
            "rounds": core.round,
            **figures,
            "missed": missed(core.snapshot(), parts.consortium.roster),
            **self._traffic(),
            "rejections": dict(sorted(core.context.rejections.items())),
            "half_edges": core.half_edges,
            "late": core.late,
            "jumped": self._jumps,
            "resumed": parts.resumed,
            "model": str(parts.directory.model),
        }

    # ── leaving ──

    def _leave(self, effect: Exit) -> None:
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
        self._report("stopping", why="stopping; a second signal ends it at once")
        self.stop()
