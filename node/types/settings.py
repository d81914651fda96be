"""What people write: the tables that charter, training and scenario share, and NODE.toml.

Plain data, bounded by types; what a rule or task can bear is checked where it is implemented.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from topology.settings import TopologySettings

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
CountOrNone = Annotated[int, Meta(ge=0, le=10_000_000)]

Wait = Literal["adaptive", "all", "none"]
Rule = Literal["mean", "trimmed-mean", "median", "clip"]
Keep = Literal["last", "best", "agreed"]


class SplitSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one data set becomes the members' own parts (demonstrations and scenarios only).

    only: ``{ 9 = ["n3", "n12"] }``, the rows of class 9 go to these members alone, in equal parts;
    ``kind`` divides the others among all.
    """

    kind: Literal["iid", "dirichlet", "size", "column", "resample", "hospitals"] = "iid"
    alpha: Positive | None = None  # dirichlet: concentration of label shares; smaller, more skew
    sizes: tuple[Positive, ...] | None = None  # size: relative sizes, one per node
    column: Annotated[int, Meta(ge=0)] | None = None  # column: sort by this feature, cut in order
    per_node: Count | None = None  # resample: rows each node draws with replacement
    only: dict[str, tuple[str, ...]] | None = None  # by class number


class TaskSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[task]: what is learned, and from which data."""

    name: str
    split: SplitSettings = SplitSettings()
    holdout: Share = 0.2  # taken out before the split, the same rows for all
    own_holdout: Share = 0.2  # of each member's part: own_accuracy is measured on it
    validation: Share = 0.1  # of each member's part: for keep = "best" and "agreed"
    dimension: Annotated[int, Meta(ge=1, le=10_000_000)] = 32  # quadratic only


class LearningSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[learning]: the policy all members share. None means the default named beside it."""

    rounds: Annotated[int, Meta(ge=1, le=1_000_000)] = 60
    local_steps: Annotated[int, Meta(ge=0, le=100_000)] | None = None  # else local_epochs
    local_epochs: Annotated[int, Meta(ge=1, le=1000)] | None = None  # both absent: 1 epoch
    batch_size: Count = 16
    optimizer: str | None = None  # qgm (rule = mean), else momentum; sgd, adam, any torch.optim
    learning_rate: Positive | None = None  # None: the task's own
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 0.0
    rule: Rule = "mean"
    f: Annotated[int, Meta(ge=0, le=10_000)] = 0  # how many attackers a neighbourhood must bear
    gamma: Annotated[float, Meta(gt=0, le=1)] = 1.0
    codec: Literal["full"] = "full"
    final_mixing: Annotated[int, Meta(ge=0, le=10_000)] | None = None  # None: from λ₂, 5 to 50
    keep: Keep = "last"
    evaluate_every: Count = 1
    seed: int = 0
    # waiting, in seconds; the adaptive deadline stays between deadline_min_s and deadline_max_s
    wait: Wait = "adaptive"
    deadline_min_s: Positive = 0.5
    deadline_max_s: Positive = 30.0
    deadline_mads: Positive = 6.0  # k of median + k·MAD
    max_staleness: Annotated[int, Meta(ge=0, le=1000)] = 4
    linger_s: NonNegative = 10.0
    # ‖x̂ − x₀‖ may be at most this many times (‖x₀‖ + √P); 0 switches the bound off
    norm_bound: NonNegative = 100.0
    checkpoint_every: Count = 1


class StartSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a training may begin. Absent members: all own neighbours must be linked."""

    members: Count | None = None
    at_least: Count | None = None
    at_latest: datetime.datetime | None = None
    after_s: NonNegative | None = None  # scenarios: at_latest in seconds from the engine's start


class LimitSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a member may at most claim or send."""

    samples_max: Count = 10_000_000
    model_mb_max: Annotated[int, Meta(ge=1, le=2000)] = 2000


class MemberDraft(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[member]] in a charter: before filling in only name and card, then all of it."""

    name: str
    card: str | None = None  # path of a card file, before `consortium new`
    id: str | None = None
    samples: CountOrNone | None = None
    addresses: tuple[str, ...] = ()
    signed_card: str | None = None  # base64 of the card's exact bytes and signature


class PinSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Digests (hex) that every member must reproduce before its link counts."""

    topology: str
    schema: str
    initial: str
    code: str


class CharterSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The charter: what the founders sign."""

    name: str
    topology: TopologySettings
    task: TaskSettings
    learning: LearningSettings = LearningSettings()
    start: StartSettings = StartSettings()
    limits: LimitSettings = LimitSettings()
    member: tuple[MemberDraft, ...] = ()
    pins: PinSettings | None = None


class MqttSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[mqtt]: the broker through which this node also meets its neighbours."""

    broker: str  # mqtt://, mqtts:// or wss://
    user: str | None = None
    password_file: str | None = None  # else the environment's GRAPEVINE_MQTT_PASSWORD
    ca_file: str | None = None  # PEM; absent: the system's own
    certificate_file: str | None = None  # PEM, with key_file: where the broker asks for one
    key_file: str | None = None
    proxy: str | None = None  # http://host:port, for CONNECT; password in GRAPEVINE_PROXY_PASSWORD
    client_id: str | None = None  # for brokers that bind rights to it; absent: a random one
    prefix: str = "gv1"  # of all topics, the same at all members
    version: Literal["auto", "5", "3.1.1"] = "auto"
    packet_bytes_max: Annotated[int, Meta(ge=1024, le=1024 * 1024)] | None = None


class NodeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """NODE.toml: one member's own machine. Nothing shared, nothing secret."""

    state: str
    consortium: str
    listen: str | None = None  # "host:port"; absent: dials out only
    # tcp:// addresses that it is reached at now, said at the broker; absent: those of its card
    advertise: tuple[str, ...] | None = None
    device: str = "cpu"
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    passphrase_file: str | None = None
    mqtt: MqttSettings | None = None
    data: dict[str, Any] = {}
