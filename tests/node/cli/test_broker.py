"""`grapevine broker` as it is typed: whose rights it writes, what it keeps, and what it refuses."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ssl

import pytest
from cryptography import x509

from node.broker import certified


def users(path) -> dict[str, list[str]]:
    lines = (line.split(":", 1) for line in path.read_text().splitlines())
    return {name: told.split("$")[1:] for name, told in lines}


def test_every_member_gets_rights_at_its_own_seat_and_a_password(at_broker, do, tmp_path) -> None:
    out = tmp_path / "broker"
    made = do("broker", at_broker.sealed, "--out", out, "--json").json
    assert made["broker"] == "mqtts://broker.example:8883"
    shown = do("consortium", "show", at_broker.sealed, "--json").json
    rights = (out / "mosquitto" / "acl").read_text()
    for member in shown["members"]:
        block = rights.split(f"user {member['name']}\n")[1].split("\nuser")[0]
        assert f"topic read gv1/in/{member['seat']}/#" in block
        assert block.count(member["seat"]) == 4
    told = users(out / "mosquitto" / "passwords")
    assert list(told) == list(at_broker.names)
    passwords = set()
    for name, (kind, rounds, salt, digest) in told.items():
        password = (out / "members" / f"{name}.password").read_text().strip()
        salted = base64.b64decode(salt)
        made = hashlib.pbkdf2_hmac("sha512", password.encode(), salted, int(rounds))
        assert (kind, base64.b64decode(digest)) == ("7", made)
        passwords.add(password)
    assert len(passwords) == 2


def test_nobody_else_on_the_machine_can_read_it(at_broker, do, tmp_path) -> None:
    out = tmp_path / "broker"
    ran = do("broker", at_broker.sealed, "--out", out)
    secret = [out / "mosquitto" / "broker.key", *sorted((out / "members").glob("*.password"))]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (out, *secret))
    assert not any(path.read_text().strip() in ran.out for path in secret)


def test_its_certificate_is_for_the_broker_on_the_cards(at_broker, do, tmp_path) -> None:
    out = tmp_path / "broker"
    do("broker", at_broker.sealed, "--out", out)
    pem = (out / "mosquitto" / "broker.pem").read_bytes()
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["broker.example"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(out / "members" / "ca.pem"))
    assert context.cert_store_stats()["x509_ca"] == 1


def test_written_again_passwords_and_certificate_stay_and_rights_are_renewed(
    at_broker, do, tmp_path
) -> None:
    out = tmp_path / "broker"
    do("broker", at_broker.sealed, "--out", out)
    kept = {path: path.read_bytes() for path in out.rglob("*.*") if path.suffix != ".conf"}
    assert len(kept) == 6
    (out / "mosquitto" / "acl").write_text("old")
    do("broker", at_broker.sealed, "--out", out)
    assert {path: path.read_bytes() for path in kept} == kept
    assert "user clinic-a" in (out / "mosquitto" / "acl").read_text()


def test_another_broker_on_the_cards_gets_a_certificate_of_its_own(at_broker, do, tmp_path) -> None:
    out = tmp_path / "broker"
    do("broker", at_broker.sealed, "--out", out)
    before = (out / "members" / "ca.pem").read_bytes()
    made = certified("elsewhere.example", now=datetime.datetime.now(datetime.UTC))
    (out / "mosquitto" / "broker.pem").write_text(made.certificate)
    do("broker", at_broker.sealed, "--out", out)
    assert (out / "members" / "ca.pem").read_bytes() != before


@pytest.mark.parametrize(
    ("address", "lines", "absent"),
    [
        ("mqtt://broker.example:1884", ["listener 1884"], ["certfile"]),
        ("wss://broker.example", ["listener 443", "protocol websockets"], []),
    ],
)
def test_it_listens_as_the_cards_say(site, do, tmp_path, address, lines, absent) -> None:
    for name in site.names:
        words = ("--address", address, "--card", site.card(name))
        do("id", "--state", site.state(name), *words)
    out = tmp_path / "broker"
    made = do("broker", site.found(do).sealed, "--out", out, "--json").json
    said = [
        line
        for line in (out / "mosquitto" / "mosquitto.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in said if line.startswith(("listener", "protocol"))] == lines
    assert not [line for line in said if line.startswith(tuple(absent) or "no line")]
    assert (made["authority"] is None) == address.startswith("mqtt:")


def test_what_is_no_single_broker_is_refused(site, founded, refused, do, tmp_path) -> None:
    assert "the card of 'clinic-a' names no broker" in refused(
        "broker", founded.sealed, "--out", tmp_path / "b"
    )
    site.charter.write_text(site.charter.read_text().split("[[member]]")[0].split("[pins]")[0])
    for name, host in zip(site.names, ("one", "two"), strict=True):
        words = ("--address", f"mqtts://{host}.example", "--card", site.card(name))
        do("id", "--state", site.state(name), *words)
    said = refused("broker", site.found(do).sealed, "--out", tmp_path / "b")
    assert "'clinic-a' meets the others at mqtts://one.example:8883, 'clinic-b' at mqtts" in said


def test_a_place_that_cannot_be_written_is_said(at_broker, refused, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    said = refused("broker", at_broker.sealed, "--out", tmp_path / "file" / "below", code=4)
    assert "Not a directory" in said
