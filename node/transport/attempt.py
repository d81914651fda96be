"""A connection on its way to being a link: whom it is with, the dial's answer, and whose fault.

TCP's and the broker's connections differ in how bytes come and go; what follows from them is here.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from crypto.channel import Channel
from crypto.identity import NodeId
from node.errors import GrapevineError, RemoteProtocolError, TransportError
from node.transport.links import Link
from node.transport.secured import SecuredTransport


class Attempt(ABC):
    """``dialled``: by this end. ``link`` is there while it is one; a closed one stays."""

    link: Link | None

    def __init__(self, owner: SecuredTransport, channel: Channel, *, dialled: bool) -> None:
        self._owner = owner
        self._channel = channel
        self.dialled = dialled
        self.link = None
        self._sent = self._received = 0  # of the handshake
        # the dial's answer: a link stands, or an error says why not
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    @abstractmethod
    def who(self) -> str:
        """The other end as a line about a refusal calls it: nobody has shown who it is yet."""

    @abstractmethod
    def shut(self) -> None:
        """Close in order: what was written goes out first, if the other end takes it in time."""

    @abstractmethod
    def _make_link(self, peer: NodeId) -> Link: ...

    def _welcome(self, peer: NodeId) -> None:
        """The other end has shown that it is ``peer``: a link now, unless it may not be one."""
        if not self._owner.gate(peer):
            self._owner.refuse("gate", self.who, "refused by the gate")
            self._resolve(TransportError("refused"))
            self.shut()
            return
        self._owner.stats.sent[peer] += self._sent
        self._owner.stats.received[peer] += self._received
        self.link = link = self._make_link(peer)  # before it is told: the handler may send at once
        admitted = self._owner.admit(link)
        self._resolve(None)
        if not admitted:
            self.link = None
            self.shut()

    def _fault(self, error: GrapevineError) -> None:
        """The other end's doing: count it, tell it by TLS where that is possible, and close."""
        reason = error.reason if isinstance(error, RemoteProtocolError) else "transport"
        if self.link is not None:
            if isinstance(error, RemoteProtocolError):
                self._owner.stats.violations[reason] += 1
            self.link.close(str(error))
            return
        self._owner.refuse(reason, self.who, str(error))
        self._resolve(error)
        self.shut()

    def _resolve(self, error: GrapevineError | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(None)
        elif self.dialled:
            self.outcome.set_exception(error)
        else:
            self.outcome.cancel()  # nobody waits for an accepted one

    def _unasked(self) -> None:
        """Nobody waits for the answer any more: asyncio is not to complain of it."""
        if not self.outcome.cancel() and not self.outcome.cancelled():
            self.outcome.exception()

    def _count_sent(self, count: int) -> None:
        if self.link is not None:
            self._owner.stats.sent[self.link.peer] += count
        else:
            self._sent += count

    def _count_received(self, count: int) -> None:
        if self.link is not None:
            self._owner.stats.received[self.link.peer] += count
        else:
            self._received += count
