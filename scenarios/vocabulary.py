"""The words of [[event]]: what may be written there, as plain data."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from node.types.settings import NonNegative, Positive

Names = str | tuple[str, ...]


class LinkShape(Struct, frozen=True, kw_only=True):
    """How one link behaves; times one way. ``bandwidth_mbps`` None: only its ends limit it."""

    latency_ms: float
    jitter_ms: float
    loss: float
    bandwidth_mbps: float | None = None

    def changed(self, by: Any) -> LinkShape:
        """This shape with what ``by`` (a [[link]] or a link fault) sets to something."""
        return LinkShape(
            latency_ms=self.latency_ms if by.latency_ms is None else by.latency_ms,
            jitter_ms=self.jitter_ms if by.jitter_ms is None else by.jitter_ms,
            loss=self.loss if by.loss is None else by.loss,
            bandwidth_mbps=self.bandwidth_mbps if by.bandwidth_mbps is None else by.bandwidth_mbps,
        )


class SlowSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``slow = { nodes = ["n3"], factor = 10 }``: local steps take that much longer; 1 ends it."""

    nodes: Names
    factor: Annotated[float, Meta(gt=0, le=1e6)]


class LinkFaultSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``link = { a = "n0", b = "n1", latency_ms = 300 }``; without a and b: every link.

    What is left out stays as it is.
    """

    a: str | None = None
    b: str | None = None
    latency_ms: NonNegative | None = None
    jitter_ms: NonNegative | None = None
    bandwidth_mbps: Positive | None = None
    loss: Annotated[float, Meta(ge=0, lt=1)] | None = None


class EventSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[event]]: when, and exactly one fault. ``name`` is for people and for sweeps."""

    at: str  # "3s", "250ms", "round 10"
    name: str | None = None
    partition: tuple[tuple[str, ...], ...] | None = (
        None  # sides; who stands in none keeps all links
    )
    heal: bool | None = None
    crash: Names | None = None
    restart: Names | None = None  # with its disk as it was
    slow: SlowSettings | None = None
    link: LinkFaultSettings | None = None


FAULTS = ("partition", "heal", "crash", "restart", "slow", "link")
