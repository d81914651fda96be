"""What all transports over TLS share: who may link, dials as tasks, refusals counted and told.

Whoever is in the roster is known by its certificate. `attempt.py` has one connection that may
become a link.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Mapping

from crypto.channel import Channel, Stranger, make_context
from crypto.identity import NodeId, short_id
from node.transport.addresses import PeerAddress
from node.transport.links import Gate, Transport

_log = logging.getLogger("grapevine.transport")


class SecuredTransport(Transport):
    """certificate, key_pem: the own node's, DER and PKCS #8. peers: who may link, by id.

    gate: asked with a peer's id before a dial and after an accept; False refuses. log_s: at most
    one line about refusals in this time.
    """

    def __init__(
        self,
        me: NodeId,
        *,
        certificate: bytes,
        key_pem: bytes,
        peers: Mapping[NodeId, PeerAddress],
        gate: Gate | None,
        handshake_s: float,
        outbox_bytes: int,
        log_s: float,
    ) -> None:
        super().__init__(me, gate=gate, race_s=handshake_s, outbox_bytes_max=outbox_bytes)
        self._peers = {peer: peers[peer] for peer in sorted(peers) if peer != me}
        self._members = {known.certificate: peer for peer, known in self._peers.items()}
        trusted = tuple(known.certificate for known in self._peers.values())
        self._server_context, self._client_context = (
            make_context(
                server_side=side, certificate=certificate, key_pem=key_pem, trusted=trusted
            )
            for side in (True, False)
        )
        self._dials: dict[NodeId, asyncio.Task[None]] = {}
        self._closing = False
        self._log_s = log_s
        self._unlogged, self._log_after = 0, 0.0

    def dial(self, peer: NodeId) -> None:
        if self._closing or peer in self.links or peer in self._dials:
            return
        task = asyncio.get_running_loop().create_task(self._dial(peer))
        self._dials[peer] = task
        task.add_done_callback(lambda done: self._dialled(peer, done))

    @abstractmethod
    async def _reach(self, peer: NodeId) -> str | None:
        """Try the ways to ``peer``, a member. None when a link stands, else why none does."""

    # ── for connections ─────────────────────────────────────────────────────────────────────

    def identify(self, certificate: bytes) -> NodeId:
        """Whose certificate (DER) this is. Raises Stranger."""
        peer = self._members.get(certificate)
        if peer is None:
            raise Stranger("its certificate is not in the roster")
        return peer

    def refuse(self, reason: str, who: str, why: str) -> None:
        """Count a connection that became no link; a line about it from time to time."""
        self.stats.refused[reason] += 1
        self._unlogged += 1
        now = asyncio.get_running_loop().time()
        if now >= self._log_after:
            _log.warning(
                "%s: connection refused (%s): %s; %d such since the last line",
                who,
                reason,
                why,
                self._unlogged,
            )
            self._unlogged, self._log_after = 0, now + self._log_s

    # ── dials ───────────────────────────────────────────────────────────────────────────────

    def _channel_to(self, peer: NodeId) -> Channel:
        expected = self._peers[peer].certificate
        return Channel(self._client_context, server_side=False, expected=expected)

    async def _dial(self, peer: NodeId) -> None:
        why: str | None
        if not self.gate(peer):
            why = "unreachable"
        elif peer not in self._peers:
            why = "it is not a member"
        else:
            why = await self._reach(peer)
        if why is not None and peer not in self.links and not self._closing:
            del self._dials[peer]  # so that the handler may dial again from within
            self.handler.on_dial_failed(peer, why)

    def _dialled(self, peer: NodeId, task: asyncio.Task[None]) -> None:
        if self._dials.get(peer) is task:
            del self._dials[peer]
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"dialling {short_id(peer)} failed", "exception": error}
            )

    async def _end_dials(self) -> None:
        for task in self._dials.values():
            task.cancel()
        await asyncio.gather(*self._dials.values(), return_exceptions=True)
