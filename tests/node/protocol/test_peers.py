"""Backoff between dials: capped, jittered, and counted from where a dial began."""

from __future__ import annotations

from itertools import pairwise

import pytest

from crypto.identity import NodeId
from node.protocol.peers import DIAL_MAX_S, DIAL_SOON_S, DIAL_SOON_TRIES, Peer


def failing(took_s: float, dials: int, jitter: float = 1.0) -> list[float]:
    """The times at which a peer that never answers is dialled."""
    peer, now, begun = Peer(NodeId(b"p" * 32), "p"), 0.0, []
    peer.link_down(now, "gone", jitter)
    for _ in range(dials):
        assert peer.dial_at is not None
        now = max(now, peer.dial_at)
        begun.append(now)
        peer.dialling, peer.dialled_at = True, now
        now += took_s
        peer.retry(now, jitter)
    return begun


@pytest.mark.parametrize("took_s", [0.0, 0.3])
def test_dials_begin_at_most_every_half_second_then_every_ten(took_s: float) -> None:
    begun = failing(took_s, DIAL_SOON_TRIES + 20)
    gaps = [b - a for a, b in pairwise(begun)]
    assert gaps[5] == pytest.approx(DIAL_SOON_S)
    assert gaps[-1] == pytest.approx(DIAL_MAX_S)
    assert min(gaps) > 0.0


def test_a_dial_that_took_longer_than_the_backoff_is_repeated_at_once() -> None:
    begun = failing(1.0, 10)
    assert begun[-1] - begun[-2] == pytest.approx(1.0)


def test_jitter_spreads_the_upper_half() -> None:
    early, late = failing(0.0, 8, jitter=0.0), failing(0.0, 8, jitter=1.0)
    assert early[-1] - early[-2] == pytest.approx(0.5 * (late[-1] - late[-2]))
