"""The one secure channel over every transport: mutual TLS 1.3, sans-IO through memory buffers.

Certificates are pinned; who is trusted is exactly the roster. A TLS 1.3 client's handshake is done
before the server has judged its certificate, so the channel is ready only when the other end's
welcome, one record inside TLS, has come (RFC 8446, section 4.4.4 and appendix E.1.2).
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

from node.errors import ConfigError, LocalProtocolError, RemoteProtocolError, TransportError

PROTOCOL: Final = "grapevine/1"  # the ALPN name (RFC 7301): other versions share none with us
WELCOME: Final = b"grapevine/1 welcome\n"
WRITE_BYTES: Final = 256 * 1024  # per call into OpenSSL: bounds what one call encrypts at once
READ_BYTES: Final = 512 * 1024  # a chunk: less costs a receiver more turns of its loop
# A handshake with our certificates and the welcome take under 3 KiB each way; OpenSSL's own limit
# for a chain of certificates is 100 KiB, and nobody needs a tenth of that here.
HANDSHAKE_BYTES_MAX: Final = 64 * 1024


class Stranger(RemoteProtocolError):
    """Not in the roster."""

    reason = "stranger"


class NotTheDialled(Stranger):
    """In the roster, but another one than the one that was dialled."""

    reason = "not-dialled"


class Refused(RemoteProtocolError):
    """The other end does not take our certificate."""

    reason = "refused"


class BadHandshake(RemoteProtocolError):
    """What came is not this protocol."""

    reason = "handshake"


class WrongVersion(BadHandshake):
    """TLS or grapevine in a version that this node does not speak."""

    reason = "version"


class Closed(TransportError):
    """The other end closed the link in order: everything that it sent has been read."""


class CutOff(TransportError):
    """The link ended without TLS's closing record: bytes may be missing at its end."""


class Garbled(TransportError):
    """A record was changed, lost or doubled on the way; whoever did it is not known."""


class Context(ssl.SSLContext):
    """A TLS context that remembers whom it pins; made by ``make_context``, shared by links."""

    pinned: frozenset[bytes]
    own: bytes


def make_context(
    *, server_side: bool, certificate: bytes, key_pem: bytes, trusted: Sequence[bytes]
) -> Context:
    """A TLS context that trusts exactly the certificates (DER) of ``trusted``; share it by links.

    Raises ConfigError where OpenSSL will not take a certificate or the own key.
    """
    context = Context(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # pinned leaves are their own roots
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # a cut must not look like an orderly end
    context.set_alpn_protocols([PROTOCOL])
    if server_side:
        context.num_tickets = 0  # nobody resumes past a change of the roster
    context.pinned = frozenset(bytes(der) for der in trusted)
    context.own = bytes(certificate)
    try:
        if context.pinned:
            context.load_verify_locations(cadata=b"".join(sorted(context.pinned)))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"a roster certificate is not one that TLS takes: {error}") from None
    _load_key(context, ssl.DER_cert_to_PEM_cert(context.own).encode() + key_pem)
    return context


def _load_key(context: ssl.SSLContext, pem: bytes) -> None:
    """Python's ssl reads keys from files only: give it one in memory, or one that is gone at once.

    Neither can be opened by another user, and nothing is left behind.
    """
    try:
        if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
            handle = os.memfd_create("grapevine-key", os.MFD_CLOEXEC)
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
                file.flush()
                context.load_cert_chain(f"/proc/self/fd/{handle}")
            return
        handle, name = tempfile.mkstemp(prefix="grapevine-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
            context.load_cert_chain(name)
        finally:
            Path(name).unlink()
    except (OSError, ssl.SSLError) as error:  # SSLError is an OSError; named for the reader
        raise ConfigError(f"TLS does not take the own key and certificate: {error}") from None


class Channel:
    """One end of one link. Feed what arrives, send what is pending; no I/O of its own.

    ``expected``: the certificate (DER) of the dialled member; None on the accepting end.
    After an error send what is still ``pending`` (TLS's alert tells the other end why), then hang
    up. Nothing is written or read before ``ready``.
    """

    def __init__(
        self, context: Context, *, server_side: bool, expected: bytes | None = None
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._context = context
        self._expected = expected
        self._handshaken = False
        self._fed = 0
        self._welcome = b""
        self._closing = False
        self._end: TransportError | None = None
        self.ready = False
        self.peer_certificate: bytes = b""
        self._advance()

    def receive(self, data: bytes | memoryview) -> None:
        """Take ciphertext; read until nothing is left before taking more.

        Raises, until ``ready``: Stranger, NotTheDialled, Refused, BadHandshake, WrongVersion,
        Closed, CutOff. Afterwards it is reading that raises.
        """
        if not self.ready:
            if self._fed > HANDSHAKE_BYTES_MAX:
                raise BadHandshake(f"no handshake within {HANDSHAKE_BYTES_MAX} bytes")
            self._fed += len(data)
        self._incoming.write(data)
        self._advance()

    def receive_end(self) -> None:
        """The transport ended. Raises CutOff or Closed at once, or when all has been read."""
        self._incoming.write_eof()
        self._advance()

    def pending(self) -> bytes:
        """Ciphertext to be sent; never more than was written, and TLS's own records."""
        return self._outgoing.read()

    @property
    def pending_bytes(self) -> int:
        """How much ``pending`` would hand over now."""
        return self._outgoing.pending

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt. Allowed once ``ready``; take ``pending`` between large pieces."""
        if not self.ready or self._closing:
            raise LocalProtocolError("a channel is written to before it is ready or after close")
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            try:
                self._tls.write(view[start : start + WRITE_BYTES])
            except ssl.SSLError as error:
                raise _trouble(error, ready=True) from None

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Decrypt into ``buffer`` until it is full; 0 where nothing more is there now.

        Raises Closed, CutOff or Garbled, once all that came before has been read.
        """
        if not self.ready:
            return 0
        if self._end is not None:
            raise self._end
        view, got = memoryview(buffer), 0
        read = cast(Callable[[int, memoryview], int], self._tls.read)
        size = len(view)
        try:
            while got < size:  # one record, 16 KiB at most, a call: 65,000 for a gigabyte
                count = read(size - got, view[got:])
                if not count:
                    raise ssl.SSLZeroReturnError
                got += count
        except ssl.SSLWantReadError:
            return got
        except ssl.SSLError as error:
            ended = _trouble(error, ready=True)
            assert isinstance(ended, TransportError)
            self._end = ended
            if not got:
                raise ended from None
        return got

    def read(self, most: int = READ_BYTES) -> bytes:
        """Decrypt up to ``most`` bytes; empty where nothing more is there now."""
        buffer = bytearray(most)
        return bytes(memoryview(buffer)[: self.read_into(buffer)])

    def close(self) -> None:
        """Put TLS's closing record among the pending bytes; nothing can be written afterwards."""
        self._closing = True
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
        except ssl.SSLError as error:
            raise _trouble(error, ready=False) from None
        self._check_peer(self._tls.getpeercert(binary_form=True) or b"")
        self._handshaken = True
        self._tls.write(WELCOME)

    def _check_peer(self, certificate: bytes) -> None:
        """The exact bytes decide: OpenSSL would also take what a pinned certificate issued."""
        if certificate == self._context.own:
            raise Stranger("it shows this node's own certificate: one key is used by two nodes")
        if certificate not in self._context.pinned:
            raise Stranger("its certificate is not in the roster")
        if self._expected is not None and certificate != self._expected:
            raise NotTheDialled("a member, but not the one that was dialled")
        if self._tls.selected_alpn_protocol() != PROTOCOL:
            raise WrongVersion(f"it does not speak {PROTOCOL}")
        self.peer_certificate = certificate

    def _take_welcome(self) -> None:
        while len(self._welcome) < len(WELCOME):
            try:
                piece = self._tls.read(len(WELCOME) - len(self._welcome))
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError as error:
                raise _trouble(error, ready=False) from None
            if not piece:
                raise Closed("closed by the other end before its welcome")
            self._welcome += piece
            if not WELCOME.startswith(self._welcome):
                raise BadHandshake("no grapevine welcome inside TLS")
        self.ready = True


def _trouble(error: ssl.SSLError, *, ready: bool) -> RemoteProtocolError | TransportError:
    """OpenSSL's words as one of our errors: whose fault is it?"""
    if isinstance(error, ssl.SSLZeroReturnError):
        return Closed("closed by the other end")
    if isinstance(error, ssl.SSLEOFError):
        return CutOff("cut off in the middle")
    text = (error.reason or str(error)).lower().replace("_", " ")
    if ready:
        return Garbled(f"the encrypted stream does not hold together: {text}")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Stranger(f"its certificate is not in the roster: {error.verify_message}")
    if "did not return a certificate" in text:
        return Stranger("it showed no certificate")
    if "alert" in text and ("unknown ca" in text or "certificate" in text):
        return Refused(f"it does not take our certificate: {text}")
    if "unsupported protocol" in text or "protocol version" in text:
        return WrongVersion(f"it does not speak TLS 1.3: {text}")
    return BadHandshake(f"not TLS 1.3 as we speak it: {text}")
