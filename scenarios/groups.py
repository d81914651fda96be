"""Who is meant by the names of an event: nodes by name or pattern, and the links between groups."""

from __future__ import annotations

from fnmatch import fnmatchcase

from node.errors import ConfigError
from node.strict import nearest
from scenarios.vocabulary import Names
from topology.graph import Graph


def nodes_named(names: Names, graph: Graph, where: str, key: str) -> tuple[str, ...]:
    """Nodes by name, or by a pattern such as ``n[0-3]`` or ``clinic-*``; each once, as written.

    Raises ConfigError for what names nobody, and for a name that stands twice.
    """
    listed = (names,) if isinstance(names, str) else names
    if not listed:
        raise ConfigError(f"{where}: key '{key}': names no node")
    found: dict[str, None] = {}
    for name in listed:
        if name in graph.nodes:
            matched = [name]
            if listed.count(name) > 1:
                raise ConfigError(f"{where}: key '{key}': '{name}' stands twice")
        elif any(sign in name for sign in "*?["):
            matched = [node for node in graph.nodes if fnmatchcase(node, name)]
        else:
            matched = []
        if not matched:
            raise ConfigError(f"{where}: key '{key}': no node '{name}'{nearest(name, graph.nodes)}")
        found.update(dict.fromkeys(matched))
    return tuple(found)


def edges_between(
    a: str | None, b: str | None, graph: Graph, where: str, key: str
) -> tuple[tuple[str, str], ...]:
    """The topology's edges between two groups; all of them where neither is given.

    Raises ConfigError where one is missing, names nobody, or no edge joins them.
    """
    if a is None and b is None:
        return graph.edges
    if a is None or b is None:
        raise ConfigError(f"{where}: key '{key}': needs both a and b, or neither for every link")
    ones = set(nodes_named(a, graph, where, f"{key}.a"))
    others = set(nodes_named(b, graph, where, f"{key}.b"))
    found = tuple(
        (x, y) for x, y in graph.edges if (x in ones and y in others) or (y in ones and x in others)
    )
    if not found:
        raise ConfigError(f"{where}: key '{key}': the topology has no edge {a}–{b}")
    return found
