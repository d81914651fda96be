"""The scenario file: a consortium, its data, faults in time, and what must hold at the end.

Plain data, read strictly; [topology], [task], [learning] and [start] are the charter's own tables.
What an event means and when it is impossible stands in faults; the engines carry it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from blake3 import blake3
from msgspec import Meta, Struct, structs

from node.errors import ConfigError
from node.strict import from_toml, nearest
from node.types.settings import (
    LearningSettings,
    NonNegative,
    Positive,
    StartSettings,
    TaskSettings,
)
from scenarios.chaos import ChaosSettings, check_chaos, draw
from scenarios.events import compile_events
from scenarios.expected import ExpectSettings, check_expect
from scenarios.faults import Fault, Partition, attackers
from scenarios.groups import nodes_named
from scenarios.vocabulary import EventSettings, LinkShape, Names
from topology.generate import build
from topology.graph import Graph
from topology.settings import TopologySettings

LIBRARY: Final = Path(__file__).parent / "library"
Seed = Annotated[int, Meta(ge=0, lt=2**53)]


class ComputeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[compute]: what work costs in virtual time; real nodes of a scenario pad to it."""

    step_ms: NonNegative = 10.0  # one local step; a [[node]] table may say another
    persist_ms: NonNegative = 0.0  # one commit to disk


class NetworkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[network]: the defaults of every link. Bandwidth is each node's uplink and its downlink.

    transport: over "tcp" loss is of a packet of 1,460 bytes, and delays what it meets by
    max(200 ms, 2 RTT); over "mqtt" it is of a chunk of a model as well, and that chunk is gone.
    """

    transport: Literal["tcp", "mqtt"] = "tcp"
    latency_ms: NonNegative = 20.0  # one way
    jitter_ms: NonNegative = 0.0  # uniform in 0 … jitter, on top of the latency
    bandwidth_mbps: Positive | None = None  # None: not a limit
    loss: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class LinkSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[link]]: one edge that differs from [network]; what is left out stays the default."""

    a: str
    b: str
    latency_ms: NonNegative | None = None
    jitter_ms: NonNegative | None = None
    bandwidth_mbps: Positive | None = None  # of this link alone, within its ends' own
    loss: Annotated[float, Meta(ge=0, lt=1)] | None = None


class NodeTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[node]]: nodes that differ from [compute], by name or pattern; each may be named once."""

    name: Names
    step_ms: NonNegative


class ScenarioSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A scenario file as written."""

    name: str
    topology: TopologySettings
    task: TaskSettings
    seed: Seed = 0
    learning: LearningSettings = LearningSettings()
    start: StartSettings = StartSettings()
    compute: ComputeSettings = ComputeSettings()
    network: NetworkSettings = NetworkSettings()
    link: tuple[LinkSettings, ...] = ()
    node: tuple[NodeTable, ...] = ()
    event: tuple[EventSettings, ...] = ()
    chaos: ChaosSettings | None = None
    expect: ExpectSettings = ExpectSettings()


class Scenario(Struct, frozen=True, kw_only=True):
    """A scenario that was checked: what the engines take. ``source``: what errors call it.

    step_ms: by node, what one local step takes.
    """

    settings: ScenarioSettings
    graph: Graph
    step_ms: Mapping[str, float]
    faults: tuple[Fault, ...]
    source: str

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def partitions(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """The sides of every partition, in order."""
        return tuple(fault.sides for fault in self.faults if isinstance(fault, Partition))

    @property
    def attackers(self) -> tuple[str, ...]:
        """Nodes that attack at any time; what is expected is expected of the others."""
        return attackers(self.faults)

    def with_seed(self, seed: int | None) -> Scenario:
        """The same scenario under another seed; None leaves it as it is."""
        if seed is None:
            return self
        return structs.replace(self, settings=structs.replace(self.settings, seed=seed))

    def without_faults(self) -> Scenario:
        """What a run is compared with: the same seed, and nothing goes wrong."""
        return structs.replace(self, faults=())

    def with_chaos(self) -> Scenario:
        """With the faults that [chaos] draws from the seed, where there is such a table."""
        chaos = self.settings.chaos
        if chaos is None:
            return self
        faults = draw(
            chaos,
            self.graph,
            self.link_shape,
            duration_s=shortest_s(self, self.settings.learning.local_steps or 1),
            seed=derive(self.seed, "chaos"),
        )
        return structs.replace(self, faults=faults)

    def training(self) -> LearningSettings:
        """[learning] with the seed that fixes the initial model: the scenario's varies it too."""
        learning = self.settings.learning
        return structs.replace(learning, seed=(learning.seed + self.seed) % 2**53)

    def link_shape(self, a: str, b: str) -> LinkShape:
        """How the link between two nodes behaves before any fault."""
        network = self.settings.network
        shape = LinkShape(
            latency_ms=network.latency_ms, jitter_ms=network.jitter_ms, loss=network.loss
        )
        for link in self.settings.link:
            if {link.a, link.b} == {a, b}:
                shape = shape.changed(link)
        return shape


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed for one purpose: streams named differently are unrelated."""
    text = "\x00".join((str(seed), *purpose))
    return int.from_bytes(blake3(b"grapevine scenario " + text.encode()).digest()[:8], "big") >> 1


def data_seed(scenario: Scenario) -> int:
    """The seed of the split: the same on every engine."""
    return derive(scenario.seed, "data")


def node_seed(scenario: Scenario, name: str) -> int:
    """The seed of a node's batches: the same on every engine."""
    return derive(scenario.seed, "batches", name)


def load_scenario(path: Path | str) -> Scenario:
    """Read and check a scenario file, or one of the library by its name.

    Raises ConfigError in one line: file, key, what was found, what would be right.
    """
    found = _locate(Path(path))
    try:
        text = found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{found}: cannot be read: {error}") from None
    return parse_scenario(text, source=str(found), base=found.parent)


def parse_scenario(text: str, *, source: str, base: Path | None = None) -> Scenario:
    """As ``load_scenario``, from TOML text. ``base``: where topology files are looked for."""
    settings = from_toml(text, ScenarioSettings, source=source)
    return check_scenario(settings, source=source, base=base)


def check_scenario(
    settings: ScenarioSettings, *, source: str, base: Path | None = None
) -> Scenario:
    """Compile settings. Raises ConfigError for whatever cannot be, before anything starts."""
    graph = build(settings.topology, base=base, source=source)
    _check_links(settings, graph, source)
    _check_start(settings, graph, source)
    faults = compile_events(settings.event, graph, source=source, base=base)
    scenario = Scenario(
        settings=settings,
        graph=graph,
        step_ms=_step_ms(settings, graph, source),
        faults=faults,
        source=source,
    )
    learning = settings.learning
    if learning.local_steps is not None:
        check_duration(scenario, steps=learning.local_steps)
    _check_chaos(scenario)
    mends = settings.chaos is not None or any(fault.mends for fault in faults)
    check_expect(settings.expect, settings.task, nodes=len(graph.nodes), mends=mends, source=source)
    return scenario


def check_duration(scenario: Scenario, *, steps: int) -> None:
    """Refuse events beyond the run's shortest duration; ``steps``: fewest local steps a round."""
    settings = scenario.settings
    shortest = shortest_s(scenario, steps)
    for fault in scenario.faults:
        where = f"{scenario.source}: event {fault.label}"
        if fault.at.round is not None and fault.at.round >= settings.learning.rounds:
            raise ConfigError(
                f"{where}: at round {fault.at.round}, but the training's last round is "
                f"{settings.learning.rounds}; it must come before that"
            )
        if fault.at.seconds is not None and fault.at.seconds >= shortest:
            raise ConfigError(
                f"{where}: at {fault.at.seconds:g} s, but the run may be over after "
                f"{shortest:g} s ({settings.learning.rounds} rounds × {steps} steps × "
                f"{min(scenario.step_ms.values()):g} ms)"
            )


def shortest_s(scenario: Scenario, steps: int) -> float:
    """Seconds that the training takes the quickest node, with ``steps`` local steps a round."""
    rounds = scenario.settings.learning.rounds
    return rounds * steps * min(scenario.step_ms.values()) / 1000


def library_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in LIBRARY.glob("*.toml")))


def _locate(path: Path) -> Path:
    if path.exists() or path.name != str(path):
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, expected a scenario file")
        if not path.exists():
            raise ConfigError(f"{path}: no such file")
        return path
    stem = path.name.removesuffix(".toml")
    if stem not in library_names():
        raise ConfigError(
            f"{path}: no such file, and no scenario of that name in the library"
            f"{nearest(stem, library_names())}"
        )
    return LIBRARY / f"{stem}.toml"


def _step_ms(settings: ScenarioSettings, graph: Graph, source: str) -> dict[str, float]:
    """By node: [compute], and what [[node]] tables say instead."""
    said: dict[str, float] = {}
    for number, table in enumerate(settings.node, 1):
        where = f"{source}: [[node]] {number}"
        for name in nodes_named(table.name, graph, where, "name"):
            if name in said:
                raise ConfigError(f"{where}: key 'name': '{name}' is in an earlier [[node]]")
            said[name] = table.step_ms
    return {name: said.get(name, settings.compute.step_ms) for name in graph.nodes}


def _check_chaos(scenario: Scenario) -> None:
    """[chaos] draws faults into the shortest time that the training may take."""
    settings, source = scenario.settings, scenario.source
    if settings.chaos is None:
        return
    if settings.event:
        raise ConfigError(f"{source}: [chaos] draws its own events; write [[event]] or [chaos]")
    if settings.learning.local_steps is None:
        raise ConfigError(
            f"{source}: [chaos] needs 'learning.local_steps': with local_epochs nobody knows how "
            "long a round takes"
        )
    duration_s = shortest_s(scenario, settings.learning.local_steps)
    check_chaos(settings.chaos, duration_s=duration_s, source=source)


def _check_links(settings: ScenarioSettings, graph: Graph, source: str) -> None:
    seen: set[frozenset[str]] = set()
    for number, link in enumerate(settings.link, 1):
        where = f"{source}: [[link]] {number}"
        for name in (link.a, link.b):
            if name not in graph.nodes:
                raise ConfigError(f"{where}: no node '{name}'{nearest(name, graph.nodes)}")
        if link.b not in graph.neighbours(link.a):
            raise ConfigError(f"{where}: the topology has no edge {link.a}–{link.b}")
        if frozenset((link.a, link.b)) in seen:
            raise ConfigError(f"{where}: the link {link.a}–{link.b} stands twice")
        seen.add(frozenset((link.a, link.b)))


def _check_start(settings: ScenarioSettings, graph: Graph, source: str) -> None:
    start = settings.start
    if start.at_latest is not None:
        raise ConfigError(
            f"{source}: key 'start.at_latest': a scenario has no calendar; say after_s, in "
            "seconds from the engine's start"
        )
    for key, value in (("members", start.members), ("at_least", start.at_least)):
        if value is not None and value > len(graph.nodes):
            raise ConfigError(
                f"{source}: key 'start.{key}': {value}, but there are {len(graph.nodes)} nodes"
            )
