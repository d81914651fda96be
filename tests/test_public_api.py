"""What ``from grapevine import …`` offers works as its docstring says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import grapevine

SCENARIO = """
name = "small"
topology = { kind = "ring", nodes = 3 }
[task]
name = "quadratic"
[learning]
rounds = 2
local_steps = 1
final_mixing = 2
"""


def test_a_scenario_runs_by_seed(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    first, again, other = (grapevine.run(path, seed=seed) for seed in (1, 1, 2))
    assert first.ok
    assert first.trace_hash == again.trace_hash != other.trace_hash
    loaded = grapevine.load_scenario(path)
    assert grapevine.run(loaded.with_seed(1)).trace_hash == first.trace_hash


def test_every_name_is_there_and_no_other():
    assert all(getattr(grapevine, name) is not None for name in grapevine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'simulate'"):
        grapevine.simulate  # noqa: B018


def test_task_code_needs_no_scenarios():
    code = "import sys; from grapevine import Silo, Task; print('scenarios' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_an_unknown_engine_is_refused():
    with pytest.raises(grapevine.ConfigError, match="did you mean 'simulation'"):
        grapevine.run("wan-partition", on="simulatoin")


def test_a_model_is_read_back(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = torch.arange(6.0).reshape(2, 3)
    save_file({"vector": weight.flatten().clone(), "0.weight": weight}, path)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    model.load_state_dict(grapevine.load_model(path))
    assert torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("content", [None, b"", b"x" * 40])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(grapevine.ConfigError, match=r"model\.safetensors"):
        grapevine.load_model(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(grapevine.ConfigError, match="no tensor 'vector'"):
        grapevine.load_model(path)
