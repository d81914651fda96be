"""Addresses as people write them."""

from __future__ import annotations

import pytest

from node.errors import ConfigError
from node.transport.addresses import parse_address


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
