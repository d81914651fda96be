"""From a [topology] table to a Graph: names, file, generator, chords, and the connected check.

The generators themselves are in families; nothing here imports numpy or networkx.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from node.errors import ConfigError
from node.strict import load_toml, nearest
from topology import families
from topology.graph import Graph
from topology.settings import PARAMETERS, TopologySettings, check, library_path

# How much of a disconnected graph an error shows before it abbreviates.
_NAMES_SHOWN = 6
_PARTS_SHOWN = 6


def build(
    settings: TopologySettings,
    *,
    names: Sequence[str] | None = None,
    base: Path | None = None,
    source: str,
) -> Graph:
    """The connected graph that ``settings`` describe.

    names: the members (or a scenario's nodes) that the graph must cover exactly; without them the
    settings' own names, or n0 … n{k-1}. base: the folder to which ``file`` is relative (default:
    the current one; a bare name that is not there is looked for in topology/library). source: what
    errors call the place where ``settings`` were read.

    The same settings and names give the same graph in every process and on every machine.
    Raises ConfigError naming source, key and what would be right; also when the graph is not
    connected, with its components named.
    """
    check(settings, source=source)
    if settings.file is not None:
        path = _locate(settings.file, base)
        inner = load_toml(path, TopologySettings)
        if inner.file is not None:
            raise ConfigError(f"{path}: key 'file': a topology file cannot name another one")
        return build(inner, names=names, base=path.parent, source=str(path))
    assert settings.kind is not None
    order = _order(settings, names, source)
    try:
        pairs = families.draw(settings, len(order))
        drawn = [(order[a], order[b]) for a, b in pairs]
        graph = Graph(names if names is not None else order, [*drawn, *settings.edges])
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    _refuse_disconnected(graph, settings, source)
    return graph


def load(path: Path, *, names: Sequence[str] | None = None) -> Graph:
    """The graph of a topology file. Raises ConfigError as ``build`` does."""
    return build(TopologySettings(file=str(path)), names=names, source=str(path))


def _locate(file: str, base: Path | None) -> Path:
    path = (base or Path()) / file
    if path.exists() or Path(file).name != file:
        return path
    try:
        return library_path(file)
    except ConfigError:
        return path  # reading it reports the path that was meant


def _order(settings: TopologySettings, names: Sequence[str] | None, source: str) -> list[str]:
    """Node names in the order the generator uses, after all counts were found to agree."""
    order = list(settings.names if settings.names is not None else names or ())
    if settings.names is not None and names is not None:
        for name in settings.names:
            if name not in names:
                raise ConfigError(
                    f"{source}: key 'names': '{name}' is not among the members"
                    f"{nearest(name, names)}"
                )
        left_out = [name for name in names if name not in settings.names]
        if left_out:
            raise ConfigError(f"{source}: key 'names' leaves out {_abbreviated(left_out)}")
    count = settings.nodes
    if settings.rows is not None and settings.columns is not None:
        count = settings.rows * settings.columns
        if settings.nodes not in (None, count):
            raise ConfigError(
                f"{source}: key 'nodes': {settings.nodes}, but {settings.rows} rows of "
                f"{settings.columns} are {count}"
            )
    if order or names is not None:
        if count not in (None, len(order)):
            key = "nodes" if settings.nodes is not None else "rows"
            raise ConfigError(
                f"{source}: key '{key}' asks for {count} nodes, but {len(order)} are named: "
                f"{_abbreviated(order)}"
            )
        return order
    if count is None:
        raise ConfigError(f"{source}: kind '{settings.kind}' needs key 'nodes' or 'names'")
    return [f"n{index}" for index in range(count)]


def _refuse_disconnected(graph: Graph, settings: TopologySettings, source: str) -> None:
    parts = graph.components()
    if len(parts) == 1:
        return
    shown = "; ".join(_abbreviated(part) for part in parts[:_PARTS_SHOWN])
    if len(parts) > _PARTS_SHOWN:
        shown += f"; and {len(parts) - _PARTS_SHOWN} more"
    remedy = "add edges between them"
    if "seed" in PARAMETERS[settings.kind or ""]:
        # Drawing again in silence would condition the ensemble that was asked for.
        remedy = f"kind '{settings.kind}' drew it with seed {settings.seed}: name another seed"
    raise ConfigError(
        f"{source}: the graph is not connected, it has {len(parts)} components: {shown}; {remedy}"
    )


def _abbreviated(names: Sequence[str]) -> str:
    if len(names) <= _NAMES_SHOWN:
        return "{" + ", ".join(names) + "}"
    return "{" + ", ".join(names[: _NAMES_SHOWN - 1]) + f", … {len(names)} nodes in all}}"
