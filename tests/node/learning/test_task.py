"""Tasks, parts as files, what is shared, and the digests that members must agree on."""

from __future__ import annotations

import pytest
import torch
from msgspec import structs
from torch import nn
from torch.nn import functional

from crypto.hashing import tree_digest
from node.errors import ConfigError, StorageError
from node.learning.baselines import local_only, pool, pooled
from node.learning.data import parts
from node.learning.learner import Learner
from node.learning.task import Silo, Table, Task, load_part, save_part
from node.learning.tasks import bare_task, build_task
from node.learning.vector import FlatModel, code_digest, initial_digest, schema_digest
from node.types.settings import LearningSettings, SplitSettings, TaskSettings

NAMES = ("a", "b", "c")


def part_of(name="breast-cancer", **more):
    return parts(TaskSettings(name=name, **more), NAMES, seed=0)["a"]


def silo(settings, **more):
    return Silo("a", more.pop("data", {}), "cpu", more.pop("seed", 0), settings, **more)


@pytest.mark.parametrize("name", ["breast-cancer", "digits", "quadratic"])
def test_a_part_survives_its_file(tmp_path, name):
    path = tmp_path / "a.part"
    part = part_of(name)
    save_part(path, part)
    settings = TaskSettings(name=name)
    task = build_task(silo(settings, data={"part": str(path)}))
    for which in ("train", "validation", "own_test", "test"):
        assert torch.equal(getattr(task, which).x, getattr(part, which).x)
        assert torch.equal(getattr(task, which).y, getattr(part, which).y)
    assert task.weight == part.samples
    direct = Learner(build_task(silo(settings, part=part)), LearningSettings(), me=b"a", seed=1)
    stored = Learner(task, LearningSettings(), me=b"a", seed=1)
    assert direct.train(1) == stored.train(1)


def test_a_part_cut_at_any_place_or_foreign_is_refused(tmp_path):
    path = tmp_path / "a.part"
    save_part(path, part_of())
    data = path.read_bytes()
    for keep in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(ConfigError, match=r"a\.part: not a safetensors file, or cut short"):
            load_part(path)
    path.write_bytes(b"\x80\x04" + data)
    with pytest.raises(ConfigError, match=r"a\.part"):
        load_part(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="another kind of safetensors"):
        load_part(path)
    with pytest.raises(ConfigError, match="no such file"):
        load_part(tmp_path / "b.part")
    with pytest.raises(StorageError, match="cannot be written"):
        save_part(tmp_path / "no" / "a.part", part_of())


def test_rows_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.part"
    part = part_of()
    broken = {
        "other labels": structs.replace(part, test=Table(part.test.x, part.test.y[:-1])),
        "not finite": structs.replace(part, train=Table(part.train.x / 0, part.train.y)),
    }
    for match, spoilt in broken.items():
        save_part(path, spoilt)
        with pytest.raises(ConfigError, match=match):
            load_part(path)
    settings = TaskSettings(name="breast-cancer")
    unfit = {
        "of task 'digits', not 'breast-cancer'": part_of("digits"),
        "expected \\(rows, 30\\)": structs.replace(
            part, train=Table(part.train.x[:, 1:], part.train.y)
        ),
        "labels of 'test' are not": structs.replace(
            part, test=Table(part.test.x, part.test.y.float())
        ),
        "labels of no class": structs.replace(part, train=Table(part.train.x, part.train.y + 1)),
    }
    for match, spoilt in unfit.items():
        with pytest.raises(ConfigError, match=match):
            build_task(silo(settings, part=spoilt))
    for device in ("cdua", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device of a: '{device}'"):
            build_task(Silo("a", {}, device, 0, settings, part))
    with pytest.raises(ConfigError, match="key 'part' is missing"):
        build_task(silo(settings))
    with pytest.raises(ConfigError, match="did you mean 'breast-cancer'"):
        build_task(silo(TaskSettings(name="breast_cancer"), part=part))


@pytest.mark.parametrize("name", ["breast-cancer", "digits", "quadratic"])
def test_digests_are_the_same_for_all_members_and_without_rows(name):
    settings = TaskSettings(name=name)
    bare = bare_task(settings, seed=7)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    for part in parts(settings, NAMES, seed=1).values():
        node = Learner(
            build_task(silo(settings, part=part, seed=7)), LearningSettings(), me=b"", seed=1
        )
        assert node.schema_digest == schema_digest(bare)
        assert node.initial_digest == initial_digest(bare) == tree_digest(node.x.numpy().tobytes())
        assert node.code_digest == code_digest(bare)
    assert torch.equal(before, torch.random.get_rng_state())


def test_digests_tell_tasks_seeds_and_shapes_apart():
    digits, cancer = TaskSettings(name="digits"), TaskSettings(name="breast-cancer")
    assert initial_digest(bare_task(digits, seed=1)) != initial_digest(bare_task(digits, seed=2))
    for digest in (schema_digest, code_digest, initial_digest):
        assert digest(bare_task(digits, seed=1)) != digest(bare_task(cancer, seed=1))
    quadratic = [TaskSettings(name="quadratic", dimension=d) for d in (3, 4)]
    one, other = (schema_digest(bare_task(settings, seed=0)) for settings in quadratic)
    assert one != other


def model_task(**more):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model = nn.Sequential()
    model.add_module("body", body)
    model.add_module("head", nn.Linear(3, 2))
    return Task(model, None, functional.cross_entropy, **more)


def test_personal_and_shared_globs_decide_what_travels():
    every = FlatModel(model_task())
    assert every.shared_names == [
        *("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"),
        *("head.weight", "head.bias"),
    ]
    part = FlatModel(model_task(personal=["head.*"]))
    assert part.shared_names == every.shared_names[:4]
    assert part.size == 12 + 3 + 6
    assert part.flat.numel() == every.size
    only = FlatModel(model_task(shared=["*.weight"]))
    assert only.shared_names == ["body.0.weight", "body.1.weight", "head.weight"]
    # parameters are views: writing the vector changes the model, and back
    part.flat.zero_()
    assert not any(p.any() for p in part.model.parameters())
    with torch.no_grad():
        part.model.body[0].weight.fill_(2)
    assert float(part.shared.sum()) == 24
    # buffers stay out of it
    assert "body.1.running_mean" in part.state_dict()


def frozen(task):
    task.model.body[0].weight.requires_grad_(False)
    return task


def test_frozen_parameters_are_not_flattened():
    task = frozen(model_task(shared="trainable"))
    weight = task.model.body[0].weight
    vector = FlatModel(task)
    assert "body.0.weight" not in vector.shared_names
    assert task.model.body[0].weight is weight


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: frozen(model_task()), "say shared = 'trainable'"),
        (lambda: model_task(shared=["tail.*"]), "'tail.\\*' matches no parameter"),
        (lambda: model_task(personal=["tail.*"]), "personal: 'tail.\\*' matches"),
        (lambda: model_task(personal=["*"]), "nothing to send"),
        (lambda: Task(nn.ReLU(), None, functional.cross_entropy), "no parameter to train"),
        (
            lambda: Task(nn.Linear(2, 2).double(), None, functional.cross_entropy),
            "must be torch.float32",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        Learner(make(), LearningSettings(), me=b"a", seed=1)


def test_personal_parameters_learn_but_do_not_mix():
    torch.manual_seed(0)
    rows = Table(torch.randn(20, 4), torch.randint(2, (20,)))
    task = model_task(personal=["head.*"])
    task.train = rows
    node = Learner(task, LearningSettings(local_steps=2), me=b"a", seed=1)
    head = node.vector.flat[node.vector.size :].clone()
    node.train(1)
    moved = node.vector.flat[node.vector.size :].clone()
    assert not torch.equal(head, moved)
    assert node.payload_bytes == 4 * 21
    assert node.public.numel() == 21


def test_baselines_of_hospitals(learners):
    chosen = TaskSettings(name="breast-cancer", split=SplitSettings(kind="hospitals"))
    made = parts(chosen, NAMES, seed=2)
    policy = LearningSettings(rounds=8, keep="agreed")
    alone = local_only(chosen, policy, made, seeds={name: i for i, name in enumerate(NAMES)})
    everything = pooled(chosen, policy, made, seed=0)
    assert list(alone) == list(NAMES)
    for baseline in (*alone.values(), everything):
        assert baseline.metrics.auroc > 0.9
        assert baseline.metrics.rows == 114
        assert set(baseline.intervals) == {"accuracy", "auroc", "own_accuracy", "own_auroc"}
    joined = pool(made)
    assert len(joined.train) == joined.samples == sum(len(p.train) for p in made.values())
    assert everything.metrics.own_rows == sum(len(p.own_test) for p in made.values())


def test_the_pooled_quadratic_finds_the_optimum():
    chosen = TaskSettings(name="quadratic", split=SplitSettings(kind="hospitals"))
    made = parts(chosen, NAMES, seed=2)
    policy = LearningSettings(rounds=200, local_steps=1, optimizer="sgd")
    assert pooled(chosen, policy, made, seed=0).metrics.loss < 1e-9
    alone = local_only(chosen, policy, made, seeds=dict.fromkeys(NAMES, 1))
    assert min(baseline.metrics.loss for baseline in alone.values()) > 0.1
