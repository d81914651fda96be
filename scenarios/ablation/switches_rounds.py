"""How the safeguards of rounds and of crashes are taken out; as in switches, one function each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import structs

from node.protocol.peers import Peer
from node.types.events import Effect, Event, Send, Source
from scenarios.ablation.switches import patch

if TYPE_CHECKING:
    from scenarios.virtual_node import VirtualNode


# ── rounds ──


def deadline(node: VirtualNode) -> None:
    longest = 10 * node.core.context.policy.deadline_max_s
    patch(node.core.rounds.arrivals, "wait_s", lambda **_: longest)


def jump_limit(node: VirtualNode) -> None:
    """As if the last jump had been long ago."""
    catch_up = node.core.catch_up
    fell_behind: Callable[[], bool] = catch_up.fell_behind

    def again() -> bool:
        catch_up.jumped_at = -1000
        return fell_behind()

    patch(catch_up, "fell_behind", again)


def median_label(node: VirtualNode) -> None:
    """The furthest label that anybody signed is where the consortium is."""
    core = node.core

    def furthest(own: int) -> int:
        labels = [head.header.round for head in core.heads.newest.values()]
        return max(own, min(max(labels, default=own), core.context.policy.last_round))

    patch(core.catch_up, "frontier", furthest)


def three_starts(node: VirtualNode) -> None:
    catch_up, standing = node.core.catch_up, node.core.standing
    patch(catch_up, "_enough", lambda: len(catch_up.keyframes(standing.round + 1)) >= 1)


class _Trusting(Peer):
    """A neighbour that is believed to hold whatever we publish."""

    @property
    def have_version(self) -> int:
        return 2**53

    @have_version.setter
    def have_version(self, version: int) -> None:
        pass


def both_ends(node: VirtualNode) -> None:
    """An edge counts as soon as the neighbour's version is here."""
    for peer in node.core.links.peers.values():
        peer.__class__ = _Trusting


def in_hand(node: VirtualNode) -> None:
    core = node.core
    may_apply: Callable[..., bool] = core._may_apply

    def always(peer: Any, head: Any) -> bool:
        return may_apply(None, head)

    patch(core, "_may_apply", always)


def staleness(node: VirtualNode) -> None:
    context = node.core.context
    context.policy = structs.replace(context.policy, max_staleness=1000)


def weights(node: VirtualNode) -> None:
    """Every neighbour weighs as much as oneself."""
    rounds = node.core.rounds
    sources: Callable[[], tuple[Source, ...]] = rounds._sources
    patch(rounds, "_sources", lambda: tuple(structs.replace(s, weight=0.5) for s in sources()))


# ── disk ──


def version(node: VirtualNode) -> None:
    publisher = node.core.publisher
    publish: Callable[..., None] = publisher.publish

    def again(*arguments: Any, **named: Any) -> None:
        publisher.version = max(0, publisher.version - 1)
        publish(*arguments, **named)

    patch(publisher, "publish", again)


def incarnation(node: VirtualNode) -> None:
    """Said before it is written."""
    _effects(node, lambda effect: _said_at_once(effect, node.core.publisher.durable_after))


def _said_at_once(effect: Effect, incarnation: int) -> Effect:
    if isinstance(effect, Send) and effect.after == incarnation:
        return structs.replace(effect, after=None)
    return effect


def fsync(node: VirtualNode) -> None:
    """No frame waits for the disk but those that wait for the incarnation."""

    def sent(effect: Effect) -> Effect:
        if isinstance(effect, Send) and effect.after != node.core.publisher.durable_after:
            return structs.replace(effect, after=None)
        return effect

    _effects(node, sent)


def receipt(node: VirtualNode) -> None:
    reception = node.core.reception
    answer: Callable[..., None] = reception._answer

    def at_once(peer: Any, head: Any, *, ok: bool, why: str = "", after: int | None = None) -> None:
        answer(peer, head, ok=ok, why=why)

    patch(reception, "_answer", at_once)


def _effects(node: VirtualNode, change: Callable[[Effect], Effect]) -> None:
    core = node.core
    handle = core.handle

    def changed(event: Event, *, now: float) -> tuple[Effect, ...]:
        return tuple(change(effect) for effect in handle(event, now=now))

    patch(core, "handle", changed)


def later_boot(node: VirtualNode) -> None:
    patch(node.core.publisher, "outdated_by", lambda header: False)
