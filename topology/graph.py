"""The consortium graph as plain data: who may exchange deltas with whom.

Pure Python and immutable; what builds one lives in generate, what judges one in measure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from node.errors import ConfigError
from node.strict import nearest


@dataclass(frozen=True)
class Graph:
    """An undirected simple graph with named nodes; it may be disconnected.

    ``nodes`` keep the order given; ``edges`` are stored with the smaller name first, sorted.
    Raises ConfigError for a repeated or empty node name, and for an edge that is a self loop, a
    repetition, or names an unknown node (the nearest valid name is suggested).
    """

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    _adjacent: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __init__(self, nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> None:
        ordered = tuple(nodes)
        adjacent = _empty_adjacency(ordered)
        kept: list[tuple[str, str]] = []
        for a, b in edges:
            for name in (a, b):
                if name not in adjacent:
                    raise ConfigError(f"edge {a}–{b} names no node: '{name}'{_near(name, ordered)}")
            if a == b:
                raise ConfigError(f"edge {a}–{b} joins a node with itself")
            if b in adjacent[a]:
                raise ConfigError(f"edge {a}–{b} stands twice (an edge has no direction)")
            adjacent[a].add(b)
            adjacent[b].add(a)
            kept.append((a, b) if a < b else (b, a))
        object.__setattr__(self, "nodes", ordered)
        object.__setattr__(self, "edges", tuple(sorted(kept)))
        object.__setattr__(self, "_adjacent", {n: tuple(sorted(s)) for n, s in adjacent.items()})

    def neighbours(self, name: str) -> tuple[str, ...]:
        """The neighbours of ``name``, sorted. Raises ConfigError for an unknown name."""
        try:
            return self._adjacent[name]
        except KeyError:
            raise ConfigError(
                f"no node '{name}' in the topology{_near(name, self.nodes)}"
            ) from None

    def degree(self, name: str) -> int:
        """How many neighbours ``name`` has. Raises ConfigError for an unknown name."""
        return len(self.neighbours(name))

    def components(self) -> tuple[tuple[str, ...], ...]:
        """The connected components, the largest first, each in node order."""
        place = {name: index for index, name in enumerate(self.nodes)}
        seen: set[str] = set()
        found: list[tuple[str, ...]] = []
        for start in self.nodes:
            if start in seen:
                continue
            seen.add(start)
            reached = [start]
            for name in reached:  # grows while it is walked: breadth first
                fresh = [peer for peer in self._adjacent[name] if peer not in seen]
                seen.update(fresh)
                reached.extend(fresh)
            found.append(tuple(sorted(reached, key=place.__getitem__)))
        return tuple(sorted(found, key=lambda part: (-len(part), place[part[0]])))


def _empty_adjacency(nodes: tuple[str, ...]) -> dict[str, set[str]]:
    if not nodes:
        raise ConfigError("a topology needs at least one node")
    adjacent: dict[str, set[str]] = {}
    for name in nodes:
        if not name:
            raise ConfigError("a node's name is empty")
        if name in adjacent:
            raise ConfigError(f"node name '{name}' stands twice")
        adjacent[name] = set()
    return adjacent


def _near(name: str, nodes: tuple[str, ...]) -> str:
    # Beyond a few dozen names a list of all of them is no longer one line.
    hint = nearest(name, nodes)
    return hint if "did you mean" in hint or len(nodes) <= 24 else ""
