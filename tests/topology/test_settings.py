"""The [topology] table refuses what it does not know, and says what would be right."""

from __future__ import annotations

import subprocess
import sys

import pytest

from node.errors import ConfigError
from node.strict import from_toml
from topology.generate import build
from topology.settings import PARAMETERS, TopologySettings, check, library_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('kind = "ring"\nnoods = 8', "unknown key 'noods'; did you mean 'nodes'?"),
        ('kind = "rnig"\nnodes = 8', "unknown kind 'rnig'; did you mean 'ring'?"),
        ('kind = "ring"\nnodes = 0', "key 'nodes'"),
        ('kind = "ring"\nnodes = "8"', "key 'nodes'"),
        ('kind = "explicit"\nedges = [["a", "b", "c"]]', "key 'edges"),
        ('kind = "erdos-renyi"\nprobability = 1.5', "key 'probability'"),
    ],
)
def test_a_typo_is_named_with_the_nearest_valid_word(text, expected):
    with pytest.raises(ConfigError) as caught:
        from_toml(text, TopologySettings, source="t.toml")
    assert str(caught.value).startswith("t.toml: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


VALUES = {
    "degree": 2,
    "probability": 0.5,
    "rows": 3,
    "columns": 3,
    "bridges": 1,
    "seed": 7,
    "edges": (("n0", "n2"),),
}


def takes(kind):
    return {key: VALUES[key] for key, required in PARAMETERS[kind].items() if required}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_key_that_the_kind_does_not_use_is_refused(kind):
    for key in VALUES.keys() - PARAMETERS[kind].keys() - {"edges"}:
        settings = TopologySettings(kind=kind, nodes=9, **takes(kind), **{key: VALUES[key]})
        with pytest.raises(ConfigError, match=f"^t: key '{key}' is not used by kind '{kind}'"):
            check(settings, source="t")


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_missing_key_is_named(kind):
    needed = takes(kind)
    for key in needed:
        fewer = {k: v for k, v in needed.items() if k != key}
        with pytest.raises(ConfigError, match=f"^t: kind '{kind}' needs key '{key}'"):
            check(TopologySettings(kind=kind, nodes=9, **fewer), source="t")
    if not {"rows"} & needed.keys():
        with pytest.raises(ConfigError, match=f"kind '{kind}' needs key 'nodes' or 'names'"):
            build(TopologySettings(kind=kind, **needed), source="t")


def test_a_table_without_kind_or_file_is_refused():
    with pytest.raises(ConfigError, match=r"key 'kind' or 'file' is missing; kinds are ring"):
        build(TopologySettings(nodes=4), source="t")


def test_nothing_stands_beside_file():
    with pytest.raises(ConfigError, match="key 'nodes' cannot stand beside key 'file'"):
        build(TopologySettings(file="x.toml", nodes=4), source="t")


def test_the_library_names_the_nearest():
    assert library_path("ring-8") == library_path("ring-8.toml")
    with pytest.raises(ConfigError, match="did you mean 'hospitals-5'"):
        library_path("hospital-5")


@pytest.mark.parametrize(
    "module", ["settings", "graph", "generate", "families", "weigh", "measure", "draw"]
)
def test_importing_stays_light(module):
    code = (
        f"import sys, topology.{module}; "
        "print([m for m in ('numpy', 'scipy', 'networkx', 'torch', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
