"""The [topology] table: one schema for charter, training, scenario and topology files.

Plain data and the list of which kind takes which key. Light on purpose: the command's --help and
every node process import this file, so it imports neither numpy nor networkx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct

from node.errors import ConfigError
from node.strict import nearest

# kind -> keys that only it (and its like) takes; True means required. Every kind also takes
# nodes, names and edges; a key that stands in no row here is common.
PARAMETERS: Final[dict[str, dict[str, bool]]] = {
    "ring": {},
    "complete": {},
    "star": {},
    "path": {},
    "grid": {"rows": True, "columns": True},
    "torus": {"rows": True, "columns": True},
    "regular": {"degree": True, "seed": False},
    "erdos-renyi": {"probability": True, "seed": False},
    "small-world": {"degree": True, "probability": True, "seed": False},
    "dumbbell": {"bridges": False},
    "exponential": {},
    "hypercube": {},
    "explicit": {"edges": True},
}

# 100,000 nodes are ten times the largest scenario; a typo beyond that must not fill the memory.
Size = Annotated[int, Meta(ge=1, le=100_000)]

_LIBRARY = Path(__file__).parent / "library"


class TopologySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[topology]: a generator with its parameters, or the edges themselves, or a file with either.

    ``kind``: one of ``PARAMETERS``. ``edges``: the graph of kind explicit; for any other kind,
    edges added to it (chords). A key that the kind does not take is refused by ``check``.
    Raises ValueError for an unknown kind (ConfigError when read through ``node.strict``).
    """

    kind: str | None = None
    nodes: Size | None = None
    file: str | None = None  # a topology file, relative to the file that names it
    names: tuple[str, ...] | None = None  # in the order the generator uses; else n0, n1, …
    edges: tuple[tuple[str, str], ...] = ()
    degree: Size | None = None  # regular; small-world: of the ring lattice, even
    # erdos-renyi: of each edge; small-world: of moving an edge's far end
    probability: Annotated[float, Meta(ge=0, le=1)] | None = None
    rows: Size | None = None  # grid, torus
    columns: Size | None = None
    bridges: Size | None = None  # dumbbell: edges between the halves, 1 unless said
    seed: int = 0  # regular, erdos-renyi, small-world

    def __post_init__(self) -> None:
        # A Literal would refuse it too, but could not name the nearest valid kind.
        if self.kind is not None and self.kind not in PARAMETERS:
            raise ValueError(f"unknown kind '{self.kind}'{nearest(self.kind, PARAMETERS)}")


def check(settings: TopologySettings, *, source: str) -> None:
    """Refuse keys that the kind (or ``file``) does not take, and name those that are missing.

    Raises ConfigError naming source, key and kind.
    """
    given = _given(settings)
    if settings.file is not None:
        beside = sorted(given - {"file"})
        if beside:
            raise ConfigError(
                f"{source}: key '{beside[0]}' cannot stand beside key 'file'; write it into "
                f"{settings.file}"
            )
        return
    if settings.kind is None:
        raise ConfigError(
            f"{source}: key 'kind' or 'file' is missing; kinds are {', '.join(PARAMETERS)}"
        )
    takes = PARAMETERS[settings.kind]
    special = {key for keys in PARAMETERS.values() for key in keys} - {"edges"}
    for key in sorted(given & special - takes.keys()):
        users = ", ".join(kind for kind, keys in PARAMETERS.items() if key in keys)
        raise ConfigError(
            f"{source}: key '{key}' is not used by kind '{settings.kind}'; it belongs to {users}"
        )
    for key, required in takes.items():
        if required and key not in given:
            raise ConfigError(f"{source}: kind '{settings.kind}' needs key '{key}'")


def library_path(name: str) -> Path:
    """The path of a topology that comes with grapevine, such as ``ring-8`` or ``ring-8.toml``.

    Raises ConfigError naming the nearest valid one.
    """
    stems = [path.stem for path in _LIBRARY.glob("*.toml")]
    stem = name.removesuffix(".toml")
    if stem not in stems:
        raise ConfigError(f"no topology '{name}' in the library{nearest(stem, stems)}")
    return _LIBRARY / f"{stem}.toml"


def _given(settings: TopologySettings) -> set[str]:
    """The keys that differ from their default; writing out a default changes nothing."""
    defaults = TopologySettings()
    return {
        name
        for name in settings.__struct_fields__
        if getattr(settings, name) != getattr(defaults, name)
    }
