"""Safeguards taken out of running nodes, one at a time: the evidence that the checkers see.

Nothing in node/ can be switched off. A simulated node is built as any other and then changed from
here, in every honest node of a run at each of its starts; the checker that must notice is named
beside the safeguard. ``SAFEGUARDS`` is the whole list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from node.errors import ConfigError
from node.strict import nearest
from scenarios.ablation import switches, switches_rounds
from scenarios.faults import Attack
from scenarios.settings import Scenario

if TYPE_CHECKING:
    from scenarios.simulation import Simulation
    from scenarios.virtual_node import VirtualNode

CHAOS: Final = "chaos"
LARGE: Final = "chaos-large"  # models of several chunks, on few nodes


class Safeguard(Struct, frozen=True, kw_only=True):
    """protects: what goes wrong without it. off: takes it out of a node that has just been built.

    caught_by: the key of the finding (scenarios.checkers.findings) that must notice. needs:
    attacks and kinds of faults of which a seed must draw one, or it shows nothing. scenario: the
    library's file whose seeds show it.
    """

    protects: str
    off: Callable[[VirtualNode], None]
    caught_by: str
    needs: tuple[str, ...] = ()
    scenario: str = CHAOS

    def shows(self, scenario: Scenario) -> bool:
        """Whether a scenario (its chaos drawn) has what it takes."""
        drawn = {f.what if isinstance(f, Attack) else f.kind for f in scenario.faults}
        return not self.needs or not drawn.isdisjoint(self.needs)


class Ablation:
    """One safeguard is off in a run, which ends where the safeguard's checker notices."""

    def __init__(self, run: Simulation, name: str) -> None:
        self._safeguard = safeguard(name)
        self._run = run
        run.checkers.findings[self._safeguard.caught_by].ends = True

    def boot(self, node: VirtualNode) -> None:
        """The node was built; nothing has happened to it yet."""
        if node.name not in self._run.attackers:
            self._safeguard.off(node)


def safeguard(name: str) -> Safeguard:
    """Raises ConfigError for a name that is not in the list."""
    if name not in SAFEGUARDS:
        raise ConfigError(f"no safeguard '{name}'{nearest(name, SAFEGUARDS)}")
    return SAFEGUARDS[name]


Switch = Callable[["VirtualNode"], None]


def _guard(protects: str, off: Switch, caught_by: str, *needs: str) -> Safeguard:
    return Safeguard(protects=protects, off=off, caught_by=caught_by, needs=needs)


_off, _rounds = switches, switches_rounds
SAFEGUARDS: Final[Mapping[str, Safeguard]] = {
    # whose word it is
    "signature": _guard(
        "anybody speaks for anybody", _off.signature, "signed", "forged", "foreign"
    ),
    "purpose": _guard(
        "a signature made for something else passes", _off.purpose, "signed", "foreign"
    ),
    "consortium": _guard(
        "models of another consortium are mixed", _off.blind_to("consortium"), "foreign", "foreign"
    ),
    "training": _guard(
        "models of another training are mixed", _off.blind_to("training"), "foreign", "foreign"
    ),
    "epoch": _guard(
        "models of another roster are mixed", _off.blind_to("epoch"), "foreign", "foreign"
    ),
    "key version": _guard(
        "a key that was replaced still signs", _off.blind_to("key_version"), "foreign", "foreign"
    ),
    "contradiction": _guard(
        "each neighbour is told another model", _off.contradiction, "proved", "equivocation"
    ),
    "quarantine": _guard(
        "who was proved a liar is mixed", _off.quarantine, "banned", "equivocation"
    ),
    # whether it is news
    "older boot": _guard("a member is two processes at once", _off.older_boot, "boots", "old-boot"),
    "replay floor": _guard("an old model comes back", _off.floor, "replayed", "replay"),
    "floors on disk": _guard(
        "an old model comes back after a restart", _off.floors_lost, "replayed", "replay"
    ),
    "round bound": _guard(
        "a label beyond the end stands for a version", _off.bounds, "labels", "jump"
    ),
    "asked for": _guard("anybody's model is taken from anybody", _off.unasked, "asked", "replay"),
    # what it is
    "payload digest": _guard(
        "other bytes than were signed are mixed", _off.payload_digest, "genuine", "wrong-digest"
    ),
    "chunk digest": Safeguard(
        protects="a payload is put together from damaged chunks",
        off=_off.chunk_digest,
        caught_by="genuine",
        needs=("wrong-digest",),
        scenario=LARGE,
    ),
    "digest list": _guard(
        "other digests than were signed are believed", _off.digest_list, "genuine", "wrong-digest"
    ),
    "model digest": _guard(
        "a version is not the model that its header names",
        _off.model_digest,
        "genuine",
        "wrong-digest",
    ),
    "shape": _guard(
        "a payload of another length passes for a model", _off.shape, "shape", "wrong-shape"
    ),
    "finite": _guard("one NaN spoils every model", _off.finite, "finite", "nan", "inf"),
    "norm bound": _guard("one huge model drowns all others", _off.norm, "bound", "huge"),
    # how much of it
    "rate": _guard("one link takes all of a node's time", _off.rate, "rate", "flood"),
    "credit": Safeguard(
        protects="what is on its way fills links and memory",
        off=_off.credit,
        caught_by="credit",
        scenario=LARGE,
    ),
    # rounds
    "start gate": _guard("a node trains alone and calls it a training", _off.start, "alone"),
    "deadline": _guard("one silent neighbour stops a round", _rounds.deadline, "deadline"),
    "jump limit": _guard("a node jumps and jumps and never mixes", _rounds.jump_limit, "jumps"),
    "median label": _guard(
        "one liar ends a training", _rounds.median_label, "ahead", "jump", "inflated-heads"
    ),
    "three starts": _guard("a newcomer starts from a liar's model", _rounds.three_starts, "starts"),
    "both ends": _guard("the weighted sum of all models drifts", _rounds.both_ends, "edges"),
    "round in hand": _guard("a round loses what it waited for", _rounds.in_hand, "in-hand"),
    "staleness": _guard("models of long ago are mixed", _rounds.staleness, "sources"),
    "weights": _guard("models grow without bound", _rounds.weights, "weights"),
    # crashes
    "version": _guard("one number stands for two models", _rounds.version, "grow"),
    "incarnation": _guard(
        "a crash makes two boots one", _rounds.incarnation, "incarnations", "clock_skew"
    ),
    "later boot": _guard(
        "a node that lost its disk is never heard", _rounds.later_boot, "heard", "clock_skew"
    ),
    "fsync before send": _guard(
        "a crash makes a node contradict itself", _rounds.fsync, "versions"
    ),
    "receipt": _guard("after a crash a replay passes for news", _rounds.receipt, "receipts"),
}
