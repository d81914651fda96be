"""The one secure channel over every transport: mutual TLS 1.3, sans-IO through memory buffers.

Certificates are pinned; who is trusted is exactly the roster. A TLS 1.3 client's handshake is done
before the server has judged its certificate, so the channel is ready only when the other end's
welcome, one record inside TLS, has come (RFC 8446, section 4.4.4 and appendix E.1.2).
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from node.errors import RemoteProtocolError, TransportError

WELCOME: Final = b"grapevine/1 welcome\n"
WRITE_BYTES: Final = 256 * 1024  # a call holds the GIL: 256 KiB are 0.2 ms of AES-GCM
READ_BYTES: Final = 256 * 1024


class Stranger(RemoteProtocolError):
    """Not a member, or a member but not the one that was dialled."""

    reason = "stranger"


class BadHandshake(RemoteProtocolError):
    """What came is not this protocol."""

    reason = "handshake"


def make_context(
    *, server_side: bool, certificate: bytes, key_pem: bytes, trusted: Sequence[bytes]
) -> ssl.SSLContext:
    """A TLS context that trusts exactly the certificates (DER) of ``trusted``; share it by links.

    Raises TransportError where OpenSSL will not take the own certificate or key.
    """
    purpose = ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(purpose)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # pinned leaves are their own roots; no chain is ever built
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.set_alpn_protocols(["grapevine/1"])
    if server_side:
        context.num_tickets = 0
    if trusted:
        context.load_verify_locations(cadata=b"".join(trusted))
    _load_key(context, certificate, key_pem)
    return context


def _load_key(context: ssl.SSLContext, certificate: bytes, key_pem: bytes) -> None:
    """Python's ssl reads keys from files only: give it one that is in memory, or gone at once."""
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode() + key_pem
    try:
        if hasattr(os, "memfd_create"):
            handle = os.memfd_create("grapevine-key", os.MFD_CLOEXEC)
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
                file.flush()
                context.load_cert_chain(f"/proc/self/fd/{handle}")
            return
        with tempfile.TemporaryDirectory() as folder:  # mode 0700
            path = Path(folder, "key.pem")
            path.touch(mode=0o600)
            path.write_bytes(pem)
            context.load_cert_chain(path)
    except (OSError, ssl.SSLError) as error:
        raise TransportError(f"TLS does not take the own key: {error}") from None


class Channel:
    """One end of one link. Feed what arrives, send what is pending; no I/O of its own.

    ``expected``: the certificate (DER) of the dialled member; None on the accepting end.
    """

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, expected: bytes | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._expected = expected
        self._handshaken = False
        self._welcome = b""
        self.ready = False
        self.peer_certificate: bytes = b""
        self._advance()

    def receive(self, data: bytes | memoryview) -> None:
        """Take ciphertext. Raises Stranger, BadHandshake or TransportError (closed or cut)."""
        self._incoming.write(data)
        self._advance()

    def receive_end(self) -> None:
        """The transport ended. Raises TransportError if TLS was not closed in order."""
        self._incoming.write_eof()
        self._advance()

    def pending(self) -> bytes:
        """Ciphertext to be sent; never more than was written, and TLS's own records."""
        return self._outgoing.read()

    @property
    def pending_bytes(self) -> int:
        return self._outgoing.pending

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt. Allowed once ``ready``; take ``pending`` between large pieces."""
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            self._tls.write(view[start : start + WRITE_BYTES])

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Decrypt into ``buffer``; 0 where nothing more is there now. Raises TransportError."""
        if not self.ready:
            return 0
        try:
            return self._tls.read(len(buffer), buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except ssl.SSLError as error:
            raise _closed(error) from None

    def read(self, most: int = READ_BYTES) -> bytes:
        """Decrypt up to ``most`` bytes; empty where nothing more is there now."""
        buffer = bytearray(most)
        return bytes(buffer[: self.read_into(buffer)])

    def close(self) -> None:
        """Put TLS's closing record among the pending bytes."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, OSError, ValueError):
            return  # it is one-way: the other end's answer is not waited for

    def _advance(self) -> None:
        if not self._handshaken:
            self._handshake()
        if self._handshaken and not self.ready:
            self._take_welcome()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLCertVerificationError as error:
            raise Stranger(
                f"its certificate is not in the roster: {error.verify_message}"
            ) from None
        except ssl.SSLError as error:
            raise _closed(error, handshake=True) from None
        certificate = self._tls.getpeercert(binary_form=True)
        if not certificate:
            raise Stranger("it showed no certificate")
        if self._expected is not None and certificate != self._expected:
            raise Stranger("a member, but not the one that was dialled")
        self.peer_certificate = certificate
        self._handshaken = True
        self._tls.write(WELCOME)

    def _take_welcome(self) -> None:
        while len(self._welcome) < len(WELCOME):
            try:
                piece = self._tls.read(len(WELCOME) - len(self._welcome))
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError as error:
                raise _closed(error, handshake=True) from None
            if not piece:
                raise TransportError("closed by the other end before its welcome")
            self._welcome += piece
        if self._welcome != WELCOME:
            raise BadHandshake("no grapevine welcome inside TLS")
        self.ready = True


def _closed(error: ssl.SSLError, *, handshake: bool = False) -> Exception:
    """OpenSSL's words as one of our errors: whose fault is it?"""
    text = (error.reason or str(error)).lower().replace("_", " ")
    if isinstance(error, ssl.SSLZeroReturnError):
        return TransportError("closed by the other end")
    if isinstance(error, ssl.SSLEOFError):
        return TransportError("cut off in the middle")
    if "alert" in text and ("unknown ca" in text or "certificate" in text):
        return Stranger(f"it does not take our certificate: {text}")
    if handshake:
        return BadHandshake(f"not TLS 1.3 as we speak it: {text}")
    return TransportError(f"TLS: {text}")
