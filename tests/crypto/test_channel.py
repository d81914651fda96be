"""The channel: two ends through bytes, no sockets. Who may talk, when it counts, how it ends."""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from crypto import channel as module
from crypto.certificate import make_certificate, private_key_pem
from crypto.channel import (
    HANDSHAKE_BYTES_MAX,
    PROTOCOL,
    READ_BYTES,
    WELCOME,
    BadHandshake,
    Channel,
    Closed,
    Context,
    CutOff,
    Garbled,
    NotTheDialled,
    Refused,
    Stranger,
    WrongVersion,
    make_context,
)
from crypto.identity import SigningKey
from node.errors import ConfigError, GrapevineError, LocalProtocolError

A, B, C, X = (SigningKey.from_seed(letter * 32) for letter in (b"a", b"b", b"c", b"x"))
ALL = (A, B, C)


def context(me: SigningKey, *trusted: SigningKey, server: bool) -> Context:
    return make_context(
        server_side=server,
        certificate=make_certificate(me),
        key_pem=private_key_pem(me),
        trusted=[make_certificate(key) for key in trusted],
    )


def dialler(
    me: SigningKey = A, to: SigningKey = B, trusted: tuple[SigningKey, ...] = ALL
) -> Channel:
    return Channel(
        context(me, *trusted, server=False), server_side=False, expected=make_certificate(to)
    )


def acceptor(me: SigningKey = B, trusted: tuple[SigningKey, ...] = ALL) -> Channel:
    return Channel(context(me, *trusted, server=True), server_side=True)


def pump(one: Channel, two: Channel) -> dict[Channel, GrapevineError]:
    """Carry bytes to and fro until nothing moves; what each end raised, if it did."""
    errors: dict[Channel, GrapevineError] = {}
    moved = True
    while moved:
        moved = False
        for source, target in ((one, two), (two, one)):
            data = source.pending()
            if data and target not in errors:
                moved = True
                try:
                    target.receive(data)
                except GrapevineError as error:
                    errors[target] = error
    return errors


def linked() -> tuple[Channel, Channel]:
    client, server = dialler(), acceptor()
    assert pump(client, server) == {}
    assert client.ready
    assert server.ready
    return client, server


def test_two_members_meet() -> None:
    client, server = linked()
    assert client.peer_certificate == make_certificate(B)
    assert server.peer_certificate == make_certificate(A)
    assert client._tls.version() == "TLSv1.3"
    assert client._tls.selected_alpn_protocol() == PROTOCOL


def test_bytes_go_both_ways() -> None:
    client, server = linked()
    client.write(b"ping")
    server.write(b"pong")
    pump(client, server)
    assert (server.read(), client.read()) == (b"ping", b"pong")
    assert (server.read(), client.read()) == (b"", b"")


def test_a_byte_at_a_time() -> None:
    client, server = dialler(), acceptor()

    def trickle(source: Channel, target: Channel) -> None:
        for byte in source.pending():
            target.receive(bytes([byte]))

    for _ in range(4):
        trickle(client, server)
        trickle(server, client)
    assert client.ready
    assert server.ready
    client.write(b"slow but sure")
    got = b""
    for byte in client.pending():
        server.receive(bytes([byte]))
        got += server.read()
    assert got == b"slow but sure"


def test_a_client_is_not_ready_before_the_server_took_it() -> None:
    """In TLS 1.3 the client's handshake is over before the server has seen its certificate."""
    client, server = dialler(), acceptor()
    server.receive(client.pending())
    client.receive(server.pending())
    assert client._handshaken
    assert not client.ready
    with pytest.raises(LocalProtocolError, match="before it is ready"):
        client.write(b"too early")
    assert client.read() == b""
    server.receive(client.pending())
    assert server.ready
    client.receive(server.pending())
    assert client.ready


def test_a_stranger_that_dials_is_refused_and_never_ready() -> None:
    client, server = dialler(me=X), acceptor()
    errors = pump(client, server)
    assert type(errors[server]) is Stranger
    assert "not in the roster" in str(errors[server])
    assert type(errors[client]) is Refused
    assert client._handshaken  # its TLS was content: only the welcome keeps it from being ready
    assert not client.ready
    assert not server.ready


def test_a_stranger_that_accepts_is_refused() -> None:
    client, server = dialler(), acceptor(me=X)
    errors = pump(client, server)
    assert type(errors[client]) is Stranger
    assert type(errors[server]) is Refused
    assert not client.ready
    assert not server.ready


def test_a_member_that_is_not_the_one_dialled_is_refused() -> None:
    client, server = dialler(to=B), acceptor(me=C)
    errors = pump(client, server)
    assert type(errors[client]) is NotTheDialled
    assert not client.ready
    client.close()
    errors = pump(client, server)
    assert type(errors[server]) is Closed
    assert not server.ready


def test_refused_stays_refused() -> None:
    client, server = dialler(to=B), acceptor(me=C)
    pump(client, server)
    with pytest.raises(NotTheDialled):
        client.receive(b"")
    assert not client.ready
    assert client.peer_certificate == b""


def test_a_link_to_oneself_is_told_apart() -> None:
    client, server = dialler(me=A, to=A), acceptor(me=A)
    assert "own certificate" in str(pump(client, server)[client])


def test_one_who_shows_no_certificate_is_refused() -> None:
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname = False
    plain.verify_mode = ssl.CERT_NONE
    error = meet_with(plain, server_side=False)
    assert type(error) is Stranger
    assert "showed no certificate" in str(error)


def test_a_certificate_issued_by_a_member_is_a_stranger() -> None:
    """OpenSSL would build a chain to a pinned certificate: the exact bytes decide."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certify(subject: str, public: SigningKey, signer: SigningKey, ca: bool) -> bytes:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("issuer"))
            .public_key(Ed25519PrivateKey.from_private_bytes(public.seed).public_key())
            .serial_number(7)
            .not_valid_before(datetime.datetime(1970, 1, 1))
            .not_valid_after(datetime.datetime(9999, 12, 31))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(Ed25519PrivateKey.from_private_bytes(signer.seed), None)
        )
        return certificate.public_bytes(serialization.Encoding.DER)

    issuer, issued = certify("issuer", C, C, True), certify("child", X, C, False)
    evil = make_context(
        server_side=False,
        certificate=issued,
        key_pem=private_key_pem(X),
        trusted=[make_certificate(B)],
    )
    trusting = make_context(
        server_side=True,
        certificate=make_certificate(B),
        key_pem=private_key_pem(B),
        trusted=[make_certificate(A), issuer],
    )
    client = Channel(evil, server_side=False, expected=make_certificate(B))
    server = Channel(trusting, server_side=True)
    errors = pump(client, server)
    assert type(errors[server]) is Stranger
    assert not server.ready
    assert not client.ready


def meet_with(plain: ssl.SSLContext, *, server_side: bool) -> GrapevineError:
    """Let a TLS end that is none of ours meet a Channel; what the Channel raised."""
    ours = dialler() if server_side else acceptor()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = plain.wrap_bio(incoming, outgoing, server_side=server_side)
    for _ in range(5):
        try:
            theirs.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            incoming.read()
        try:
            ours.receive(outgoing.read())
        except GrapevineError as error:
            assert not ours.ready
            return error
        incoming.write(ours.pending())
    raise AssertionError("nothing was refused")


def test_an_older_tls_is_refused() -> None:
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname = False
    plain.verify_mode = ssl.CERT_NONE
    plain.maximum_version = ssl.TLSVersion.TLSv1_2
    error = meet_with(plain, server_side=False)
    assert type(error) is WrongVersion


@pytest.mark.parametrize("protocols", [[], ["grapevine/2"]])
@pytest.mark.parametrize("server_side", [False, True])
def test_another_version_of_grapevine_is_refused(protocols: list[str], server_side: bool) -> None:
    me = B if server_side else A
    plain = context(me, *ALL, server=server_side)
    if protocols:
        plain.set_alpn_protocols(protocols)
    else:
        plain = _without_alpn(me, server_side)
    error = meet_with(plain, server_side=server_side)
    assert type(error) is WrongVersion


def _without_alpn(me: SigningKey, server_side: bool) -> Context:
    original = Context.set_alpn_protocols
    try:
        Context.set_alpn_protocols = lambda *_: None  # type: ignore[method-assign,assignment]
        return context(me, *ALL, server=server_side)
    finally:
        Context.set_alpn_protocols = original  # type: ignore[method-assign]


def test_another_welcome_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = dialler(), acceptor()
    server.receive(client.pending())
    client.receive(server.pending())
    monkeypatch.setattr(module, "WELCOME", b"grapevine/9 welcome\n")
    with pytest.raises(BadHandshake, match="no grapevine welcome"):
        server.receive(client.pending())
    assert not server.ready


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        bytes(100),
        b"\xff" * 100,
        b"SSH-2.0-x\r\n",
        WELCOME * 9,
    ],
)
@pytest.mark.parametrize("end", [acceptor, dialler])
def test_garbage_instead_of_tls(end, junk: bytes) -> None:  # type: ignore[no-untyped-def]
    ours = end()
    with pytest.raises((BadHandshake, WrongVersion)) as caught:
        ours.receive(junk)
    assert "\n" not in str(caught.value)
    assert not ours.ready


def test_every_flipped_bit_of_the_first_flight_ends_in_no_link() -> None:
    """Whatever the damage does, it is one of our errors or a wait, and never a ready channel."""
    shared = context(B, *ALL, server=True)
    hello = dialler().pending()
    for at in range(len(hello)):
        bad = bytearray(hello)
        bad[at] ^= 1 << at % 8
        server = Channel(shared, server_side=True)
        try:
            server.receive(bytes(bad))
        except GrapevineError as error:
            assert "\n" not in str(error)
        assert not server.ready


def test_an_endless_handshake_is_bounded() -> None:
    server = acceptor()
    record = b"\x16\x03\x01\x00\x01\x01"  # a handshake in records of one byte each
    start = b"\x16\x03\x01\x00\x04\x01\x00\x40\x00"  # a ClientHello of 16 KiB, by and by
    with pytest.raises(BadHandshake):
        server.receive(start)
        for _ in range(HANDSHAKE_BYTES_MAX):
            server.receive(record)
    assert server._fed <= HANDSHAKE_BYTES_MAX + len(record)
    waiting = dialler()
    waiting._fed = HANDSHAKE_BYTES_MAX + 1
    with pytest.raises(BadHandshake, match="no handshake within"):
        waiting.receive(b"\x16")


def test_a_large_round_trip_is_exact_and_bounded() -> None:
    client, server = linked()
    size = 3 * 1024 * 1024 + 17
    data = bytes(os.urandom(1024)) * (size // 1024 + 1)
    data = data[:size]
    buffer = memoryview(bytearray(size))
    sent = got = 0
    while got < size:
        if sent < size:
            piece = memoryview(data)[sent : sent + 200_000]
            client.write(piece)
            sent += len(piece)
            # a record of TLS 1.3 carries 16 KiB under 22 bytes of header, type and tag
            assert client.pending_bytes <= len(piece) + 22 * (len(piece) // 16384 + 1)
        server.receive(client.pending())
        assert client.pending_bytes == 0
        while count := server.read_into(buffer[got:]):
            got += count
        assert server.pending_bytes == 0
    assert bytes(buffer) == data
    server.write(data)
    client.receive(server.pending())
    assert b"".join(iter(client.read, b"")) == data


def test_reading_fills_the_buffer_across_records() -> None:
    client, server = linked()
    client.write(bytes(100_000))
    server.receive(client.pending())
    buffer = bytearray(READ_BYTES)
    assert server.read_into(memoryview(buffer)[:60_000]) == 60_000
    assert server.read_into(buffer) == 40_000
    assert server.read_into(buffer) == 0
    assert server.read_into(bytearray()) == 0


def test_an_orderly_end_comes_after_the_last_byte() -> None:
    client, server = linked()
    client.write(b"last words")
    client.close()
    with pytest.raises(LocalProtocolError, match="after close"):
        client.write(b"more")
    server.receive(client.pending())
    assert server.read() == b"last words"
    for _ in range(2):
        with pytest.raises(Closed, match="closed by the other end"):
            server.read()


def test_a_cut_is_not_an_orderly_end() -> None:
    client, server = linked()
    client.write(b"last words")
    server.receive(client.pending())
    server.receive_end()
    assert server.read() == b"last words"
    for _ in range(2):
        with pytest.raises(CutOff, match="cut off"):
            server.read()


@pytest.mark.parametrize("keep", [0, 1, 40])
def test_a_cut_in_the_handshake(keep: int) -> None:
    client, server = dialler(), acceptor()
    server.receive(client.pending()[:keep])
    with pytest.raises(CutOff):
        server.receive_end()
    assert not server.ready


def test_a_cut_before_the_welcome() -> None:
    client, server = dialler(), acceptor()
    server.receive(client.pending())
    client.receive(server.pending())
    with pytest.raises(CutOff):
        client.receive_end()
    assert not client.ready


@pytest.mark.parametrize("damage", ["flip", "lose", "double"])
def test_a_stream_that_was_tampered_with_is_refused_whole(damage: str) -> None:
    client, server = linked()
    records = []
    for word in (b"one", b"two"):
        client.write(word)
        records.append(client.pending())
    first = {
        "flip": records[0][:-1] + bytes([records[0][-1] ^ 1]),
        "lose": b"",
        "double": records[0],
    }
    if damage == "double":
        server.receive(records[0])
        assert server.read() == b"one"
    server.receive(first[damage] + records[1])
    for _ in range(2):
        with pytest.raises(Garbled):
            server.read()


def test_every_flipped_bit_of_a_record_is_refused() -> None:
    client, server = dialler(), acceptor()
    pump(client, server)
    client.write(b"x")
    record = client.pending()
    for at in range(5, len(record)):
        client, server = linked_cheaply()
        client.write(b"x")
        bad = bytearray(client.pending())
        bad[at] ^= 1 << at % 8
        server.receive(bytes(bad))
        with pytest.raises(Garbled):
            server.read()


_CLIENT, _SERVER = context(A, *ALL, server=False), context(B, *ALL, server=True)


def linked_cheaply() -> tuple[Channel, Channel]:
    client = Channel(_CLIENT, server_side=False, expected=make_certificate(B))
    server = Channel(_SERVER, server_side=True)
    assert pump(client, server) == {}
    return client, server


def test_nobody_can_resume_past_the_roster() -> None:
    client, server = linked_cheaply()
    assert _SERVER.num_tickets == 0
    client.write(b"x")
    pump(client, server)
    session = client._tls.session
    assert session is None or not session.has_ticket
    assert not client._tls.session_reused


def test_many_links_share_one_context() -> None:
    links = [linked_cheaply() for _ in range(5)]
    for number, (client, _) in enumerate(links):
        client.write(bytes([number]))
    for number, (client, server) in enumerate(links):
        server.receive(client.pending())
        assert server.read() == bytes([number])


def test_a_large_roster_of_pins() -> None:
    members = [SigningKey.from_seed(bytes([i]) + bytes(31)) for i in range(60)]
    client = dialler(members[0], members[59], tuple(members))
    server = acceptor(members[59], tuple(members))
    assert pump(client, server) == {}
    assert client.ready


def test_without_memory_files_the_key_is_in_a_private_file_and_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = ssl.SSLContext.load_cert_chain

    def look(self: ssl.SSLContext, name: str) -> None:
        seen.append(Path(name).stat().st_mode & 0o777)
        assert Path(name).parent == tmp_path
        original(self, name)

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Context, "load_cert_chain", look)
    context(A, B, server=False)
    assert seen == [0o600]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="own key"):
        make_context(
            server_side=True,
            certificate=make_certificate(A),
            key_pem=private_key_pem(B),
            trusted=[],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_not_the_certificates_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="own key") as caught:
        make_context(
            server_side=True,
            certificate=make_certificate(A),
            key_pem=private_key_pem(B),
            trusted=[],
        )
    assert "BEGIN" not in str(caught.value)


def test_a_roster_certificate_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="roster certificate"):
        make_context(
            server_side=True,
            certificate=make_certificate(A),
            key_pem=private_key_pem(A),
            trusted=[b"garbage"],
        )


def test_an_empty_roster_trusts_nobody() -> None:
    client, server = dialler(), acceptor(trusted=())
    assert type(pump(client, server)[server]) is Stranger
