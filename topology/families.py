"""The graph families over nodes 0 … n-1, as lists of edges.

Random ones use nothing but ``random.Random.random``, the one method whose sequence Python promises
to keep: members with different library versions must draw the same graph from the charter's seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from node.errors import ConfigError
from topology.settings import TopologySettings

Edge = tuple[int, int]

# Each draw of a d-regular graph fails, or is disconnected, with a probability below a half.
_ATTEMPTS = 200
# Ten mix well in practice; 20,000 edges then take a fraction of a second.
_SWITCHES_PER_EDGE = 10


def draw(settings: TopologySettings, n: int) -> list[Edge]:
    """The edges of ``settings.kind`` over n nodes; each at most once, in no promised order.

    Raises ConfigError where the family has no member of this size (key and reason named).
    """
    assert settings.kind is not None
    return _FAMILIES[settings.kind](settings, n)


def _generator(settings: TopologySettings) -> random.Random:
    # A text seed is hashed with SHA-512; an integer one would make -1 and 1 the same.
    return random.Random(f"{settings.kind} {settings.seed}")


def _shuffle(items: list[int], rng: random.Random) -> None:
    for last in range(len(items) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def _path(_: TopologySettings, n: int) -> list[Edge]:
    return [(i, i + 1) for i in range(n - 1)]


def _ring(settings: TopologySettings, n: int) -> list[Edge]:
    # Two nodes in a ring are one edge, so that a consortium can shrink without a new kind.
    return _path(settings, n) + ([(n - 1, 0)] if n > 2 else [])


def _complete(_: TopologySettings, n: int) -> list[Edge]:
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def _star(_: TopologySettings, n: int) -> list[Edge]:
    return [(0, i) for i in range(1, n)]


def _grid(settings: TopologySettings, n: int) -> list[Edge]:
    columns = settings.columns or 0
    right = [(i, i + 1) for i in range(n) if (i + 1) % columns]
    return right + [(i, i + columns) for i in range(n - columns)]


def _torus(settings: TopologySettings, n: int) -> list[Edge]:
    rows, columns = settings.rows or 0, settings.columns or 0
    for key, value in (("rows", rows), ("columns", columns)):
        if value < 3:
            raise ConfigError(f"key '{key}': a torus needs at least 3, found {value}; or use grid")
    across = [(r * columns + columns - 1, r * columns) for r in range(rows)]
    return _grid(settings, n) + across + [(n - columns + c, c) for c in range(columns)]


def _dumbbell(settings: TopologySettings, n: int) -> list[Edge]:
    """Two cliques (the first takes the odd node), their i-th nodes joined for i < bridges."""
    left, right, bridges = n - n // 2, n // 2, settings.bridges or 1
    if bridges > right:
        raise ConfigError(f"key 'bridges': at most {right} for {n} nodes, found {bridges}")
    cliques = _complete(settings, left)
    cliques += [(left + i, left + j) for i, j in _complete(settings, right)]
    return cliques + [(i, left + i) for i in range(bridges)]


def _exponential(_: TopologySettings, n: int) -> list[Edge]:
    """The static exponential graph without directions: i is joined with i ± 2^k (mod n)."""
    edges: set[Edge] = set()
    step = 1
    while step < n:
        for i in range(n):
            j = (i + step) % n
            edges.add((min(i, j), max(i, j)))
        step *= 2
    return sorted(edges)


def _hypercube(_: TopologySettings, n: int) -> list[Edge]:
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        raise ConfigError(
            f"key 'nodes': a hypercube needs a power of two, found {n}; "
            f"nearest are {below} and {2 * below}"
        )
    return [
        (i, i | bit)
        for bit in (1 << k for k in range(n.bit_length() - 1))
        for i in range(n)
        if not i & bit
    ]


def _erdos_renyi(settings: TopologySettings, n: int) -> list[Edge]:
    """G(n, p) (Gilbert 1959): each pair is an edge with probability p, on its own."""
    p = _probability(settings)
    chance = _generator(settings).random
    return [(i, j) for i in range(n) for j in range(i + 1, n) if chance() < p]


def _small_world(settings: TopologySettings, n: int) -> list[Edge]:
    """Watts & Strogatz 1998: a ring lattice of even degree k, far ends moved with probability p."""
    k, p = settings.degree or 0, _probability(settings)
    if k % 2 or k >= n:
        raise ConfigError(
            f"key 'degree': a small world of {n} nodes needs an even degree below {n}, found {k}"
        )
    rng = _generator(settings)
    adjacent: list[set[int]] = [set() for _ in range(n)]
    for i in range(n):
        for step in range(1, k // 2 + 1):
            adjacent[i].add((i + step) % n)
            adjacent[(i + step) % n].add(i)
    for step in range(1, k // 2 + 1):
        for i in range(n):
            j = (i + step) % n
            if rng.random() >= p or len(adjacent[i]) >= n - 1:
                continue
            far = int(rng.random() * n)
            while far == i or far in adjacent[i]:
                far = int(rng.random() * n)
            adjacent[i].remove(j)
            adjacent[j].remove(i)
            adjacent[i].add(far)
            adjacent[far].add(i)
    return [(i, j) for i in range(n) for j in sorted(adjacent[i]) if i < j]


def _probability(settings: TopologySettings) -> float:
    p = settings.probability
    if p is None or not 0 <= p <= 1:  # also refuses nan, which passes two one-sided bounds
        raise ConfigError(f"key 'probability': a number from 0 to 1, found {p}")
    return p


def _regular(settings: TopologySettings, n: int) -> list[Edge]:
    """A connected random d-regular graph, close to uniform, and fast for any d.

    Stubs are paired at random (Bollobás 1980) and clashes switched away; that alone is far from
    uniform for few nodes, so random switches follow, whose chain has the uniform distribution
    (Milo et al. 2003). Degree 2 is a random ring: nearly all other draws are disconnected.
    """
    d = settings.degree or 0
    if d >= n or (n * d) % 2:
        raise ConfigError(
            f"key 'degree': a regular graph of {n} nodes needs a degree below {n} with "
            f"nodes × degree even, found {d}"
        )
    if d == 1 and n > 2:
        raise ConfigError(f"key 'degree': {n} nodes of degree 1 are never connected; use 2 or more")
    rng = _generator(settings)
    if d == 2:
        order = list(range(n))
        _shuffle(order, rng)
        return [(order[i - 1], order[i]) for i in range(n)]
    # Above half, draw what is left out: then it is the sparse one that has room to switch.
    sparse = d if 2 * d < n else n - 1 - d
    for _ in range(_ATTEMPTS):
        edges = _pair_stubs(n, sparse, rng)
        if edges is None:
            continue
        if sparse != d:
            edges = set(_complete(settings, n)) - edges
        if _connected(n, edges):
            return sorted(edges)
    raise ConfigError(
        f"key 'seed': {settings.seed} gave no connected {d}-regular graph of {n} nodes in "
        f"{_ATTEMPTS} draws; name another"
    )


def _pair_stubs(n: int, d: int, rng: random.Random) -> set[Edge] | None:
    stubs = [i for i in range(n) for _ in range(d)]
    _shuffle(stubs, rng)
    edges: set[Edge] = set()
    listed: list[Edge] = []  # a set has no order that a seed could pick from
    clashes: list[Edge] = []
    for a, b in zip(stubs[::2], stubs[1::2], strict=True):
        edge = (a, b) if a < b else (b, a)
        if a == b or edge in edges:
            clashes.append(edge)
        else:
            edges.add(edge)
            listed.append(edge)
    for _ in range(100 * (len(clashes) + 1)):
        if not clashes:
            _switch(edges, listed, rng)
            return edges
        if not listed:
            return None
        at = int(rng.random() * len(listed))
        (a, b), (c, e) = clashes[-1], listed[at]
        if rng.random() < 0.5:
            c, e = e, c
        one, two = (min(a, c), max(a, c)), (min(b, e), max(b, e))
        if a == c or b == e or one == two or one in edges or two in edges:
            continue
        clashes.pop()
        edges.remove(listed[at])
        edges.update((one, two))
        listed[at] = one
        listed.append(two)
    return None


def _switch(edges: set[Edge], listed: list[Edge], rng: random.Random) -> None:
    """Exchange the ends of two random edges, ten times per edge; degrees stay as they are."""
    for _ in range(_SWITCHES_PER_EDGE * len(listed)):
        p, q = int(rng.random() * len(listed)), int(rng.random() * len(listed))
        (a, b), (c, e) = listed[p], listed[q]
        if rng.random() < 0.5:
            c, e = e, c
        one, two = (min(a, c), max(a, c)), (min(b, e), max(b, e))
        # Staying put where the result would clash is what makes every graph equally likely.
        if p == q or a == c or b == e or one in edges or two in edges:
            continue
        edges -= {listed[p], listed[q]}
        edges |= {one, two}
        listed[p], listed[q] = one, two


def _connected(n: int, edges: set[Edge]) -> bool:
    root = list(range(n))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    parts = n
    for a, b in edges:
        one, other = find(a), find(b)
        if one != other:
            root[one] = other
            parts -= 1
    return parts == 1


_FAMILIES: dict[str, Callable[[TopologySettings, int], list[Edge]]] = {
    "ring": _ring,
    "complete": _complete,
    "star": _star,
    "path": _path,
    "grid": _grid,
    "torus": _torus,
    "regular": _regular,
    "erdos-renyi": _erdos_renyi,
    "small-world": _small_world,
    "dumbbell": _dumbbell,
    "exponential": _exponential,
    "hypercube": _hypercube,
    "explicit": lambda _settings, _n: [],
}
