"""What a run has before its clock starts: rows, keys, roster, policy, pins, learners.

Everything follows from the scenario and its seed. Keys are real Ed25519 keys, made from the seed
so that a run can be repeated; no node outside a simulation may have such a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from blake3 import blake3
from msgspec import Struct

from crypto.identity import NodeId, SigningKey, node_id
from node.consortium import policy
from node.errors import ConfigError
from node.learning.data import parts
from node.learning.learner import Learner
from node.learning.rules import check_rule
from node.learning.task import Part, Silo
from node.learning.tasks import build_task
from node.types.roster import Member, Pins, Policy, Roster
from node.types.settings import LearningSettings
from scenarios.expected import check_own_rows
from scenarios.settings import Scenario, check_duration, data_seed, derive, node_seed


class Prepared(Struct, frozen=True, kw_only=True, eq=False):
    """A consortium that exists in memory alone. Names are in the topology's order."""

    scenario: Scenario
    learning: LearningSettings
    names: tuple[str, ...]
    ids: Mapping[str, NodeId]
    keys: Mapping[str, SigningKey]
    parts: Mapping[str, Part]
    roster: Roster
    policy: Policy
    steps: Mapping[str, int]  # local steps of one round

    def learner(self, name: str) -> Learner:
        """A new learner of this member, at the initial model."""
        settings = self.scenario.settings
        silo = Silo(name, {}, "cpu", self.learning.seed, settings.task, self.parts[name])
        with _named(self.scenario):
            return Learner(
                build_task(silo),
                self.learning,
                me=self.ids[name],
                seed=node_seed(self.scenario, name),
            )

    def pins(self, learner: Learner) -> Pins:
        """What all members must agree on, as ``learner``'s task has it."""
        return Pins(
            training=_digest(self.scenario, "training"),
            schema=learner.schema_digest,
            initial=learner.initial_digest,
            code=learner.code_digest,
            payload_bytes=learner.payload_bytes,
        )


def prepare(scenario: Scenario) -> Prepared:
    """Make everything that does not depend on time. Raises ConfigError for what cannot be."""
    settings, graph = scenario.settings, scenario.graph
    learning = scenario.training()
    with _named(scenario):
        rows = parts(settings.task, graph.nodes, seed=data_seed(scenario))
    own_rows = {name: len(part.own_test) for name, part in rows.items()}
    check_own_rows(settings.expect, own_rows, source=scenario.source)
    steps = {name: steps_of(learning, len(part.train)) for name, part in rows.items()}
    check_duration(scenario, steps=min(steps.values()))
    sizes = {name: 1 + graph.degree(name) for name in graph.nodes}
    with _named(scenario):
        check_rule(learning.rule, learning.f, sizes)
    samples = {name: part.samples for name, part in rows.items()}
    keys = {name: SigningKey.from_seed(_digest(scenario, "key", name)) for name in graph.nodes}
    ids = {name: node_id(key.public) for name, key in keys.items()}
    members = [
        Member(
            id=ids[name],
            name=name,
            node_key=keys[name].public,
            samples=samples[name],
            neighbours=tuple(sorted(ids[peer] for peer in graph.neighbours(name))),
        )
        for name in graph.nodes
    ]
    return Prepared(
        scenario=scenario,
        learning=learning,
        names=graph.nodes,
        ids=ids,
        keys=keys,
        parts=rows,
        roster=Roster(
            consortium=_digest(scenario, "consortium"),
            epoch=0,
            members={m.id: m for m in sorted(members, key=lambda member: member.id)},
        ),
        policy=policy(settings, graph, samples, source=scenario.source),
        steps=steps,
    )


@contextmanager
def _named(scenario: Scenario) -> Iterator[None]:
    """What the learning layer refuses it refuses by key; people need the file as well."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{scenario.source}: {error}") from None


def steps_of(learning: LearningSettings, rows: int) -> int:
    """Local steps of one round on ``rows`` training rows, as node.learning.sampling makes them."""
    if rows == 0:
        return 0
    if learning.local_steps is not None:
        return learning.local_steps
    return (learning.local_epochs or 1) * -(-rows // min(learning.batch_size, rows))


def _digest(scenario: Scenario, *purpose: str) -> bytes:
    return blake3(f"{scenario.name}\x00{derive(scenario.seed, *purpose)}".encode()).digest()
