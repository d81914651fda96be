"""Addresses as people write them."""

from __future__ import annotations

import pytest

from node.errors import ConfigError
from node.transport.addresses import is_loopback, leads_elsewhere, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://gv.a.example:7400", "gv.a.example", 7400),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:7400", "::1", 7400),
        ("tcp://[fe80::1]:1", "fe80::1", 1),
    ],
)
def test_good_ones(text, host, port):
    address = parse_address(text)
    assert address == (host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("udp://a:1", "scheme 'udp'"),
        ("a", "expected host:port"),
        (":7400", "expected host:port"),
        ("a:", "expected host:port"),
        ("a:b", "expected host:port"),
        ("::1:7400", "expected host:port"),
        ("a:-1", "expected host:port"),
        ("a:٣", "expected host:port"),
        ("a:65536", "at most 65535"),
    ],
)
def test_bad_ones_are_one_line(text, what):
    with pytest.raises(ConfigError, match=what) as caught:
        parse_address(text, key="listen")
    assert str(caught.value).startswith("listen '") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "loopback", "elsewhere"),
    [
        ("gv.a.example:1", False, True),
        ("10.1.2.3:1", False, True),
        ("[2001:db8::1]:1", False, True),
        ("127.0.0.1:1", True, False),
        ("127.9.9.9:1", True, False),
        ("[::1]:1", True, False),
        ("[::ffff:127.0.0.1]:1", True, False),
        ("LocalHost.:1", True, False),
        ("0.0.0.0:1", False, False),
        ("169.254.169.254:1", False, False),
        ("[fe80::1]:1", False, False),
        ("224.0.0.1:1", False, False),
    ],
)
def test_which_machine_an_address_can_mean(text, loopback, elsewhere):
    address = parse_address(text)
    assert (is_loopback(address), leads_elsewhere(address)) == (loopback, elsewhere)
