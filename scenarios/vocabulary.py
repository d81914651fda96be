"""The words of [[event]]: what may be written there, as plain data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from node.types.settings import NonNegative, Positive

# Names of nodes, or patterns of them: "n3", "n[0-3]", "clinic-*"
Names = str | tuple[str, ...]
Rate = Annotated[float, Meta(ge=0, lt=1)]


class LinkShape(Struct, frozen=True, kw_only=True):
    """How one link behaves; times one way. ``bandwidth_mbps`` None: only its ends limit it.

    duplicate, reorder, corrupt: the share of frames. TCP and TLS hide all three; a broker, or a
    transport with a bug, may not.
    """

    latency_ms: float
    jitter_ms: float
    loss: float
    bandwidth_mbps: float | None = None
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0

    def changed(self, by: Any) -> LinkShape:
        """This shape with what ``by`` (a [[link]] or a link fault) sets to something."""
        said = {key: getattr(by, key, None) for key in self.__struct_fields__}
        return structs.replace(self, **{k: value for k, value in said.items() if value is not None})


class SlowSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``slow = { nodes = ["n3"], factor = 10 }``: local steps take that much longer; 1 ends it."""

    nodes: Names
    factor: Annotated[float, Meta(gt=0, le=1e6)]


class LinkFaultSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``link = { a = "n0", b = "n[12]", latency_ms = 300 }``; without a and b: every link.

    Every link between a node of ``a`` and one of ``b``. What is left out stays as it is.
    """

    a: str | None = None
    b: str | None = None
    latency_ms: NonNegative | None = None
    jitter_ms: NonNegative | None = None
    bandwidth_mbps: Positive | None = None
    loss: Rate | None = None
    duplicate: Rate | None = None
    reorder: Rate | None = None
    corrupt: Rate | None = None


class BetweenSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``clog = { a = "n0", b = "*" }``: links between the two groups; without both: every link."""

    a: str | None = None
    b: str | None = None


class SkewSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``clock_skew = { nodes = "n3", offset_s = -3600 }``: what their wall clocks are off by."""

    nodes: Names
    offset_s: Annotated[float, Meta(ge=-1e9, le=1e9)]


class EventSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[event]]: when, and exactly one fault. ``name`` is for people and for sweeps."""

    at: str  # "3s", "250ms", "round 10"
    name: str | None = None
    # sides, by names or patterns; who stands in none keeps all links
    partition: tuple[tuple[str, ...], ...] | None = None
    one_way: bool | None = None  # with partition: earlier sides do not reach later ones
    heal: bool | None = None
    crash: Names | None = None
    restart: Names | None = None
    disk: Literal["own", "backup", "none"] | None = None  # with restart; none: but the key
    pause: Names | None = None
    resume: Names | None = None
    slow: SlowSettings | None = None
    link: LinkFaultSettings | None = None
    clog: BetweenSettings | None = None
    unclog: BetweenSettings | None = None
    reset: BetweenSettings | None = None
    clock_skew: SkewSettings | None = None
    disk_full: Names | None = None
    attack: str | None = None  # a name of scenarios.attacks, "file.py:function", or "none"
    nodes: Names | None = None  # with attack: who attacks
    scale: Annotated[float, Meta(gt=0, le=1e38)] | None = None  # with attack: its strength


FAULTS = (
    "partition",
    "heal",
    "crash",
    "restart",
    "pause",
    "resume",
    "slow",
    "link",
    "clog",
    "unclog",
    "reset",
    "clock_skew",
    "disk_full",
    "attack",
)
