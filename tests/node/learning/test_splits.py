"""Splits: whole, deterministic, skewed as asked; the common test rows out of their reach."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError
from node.learning.data import parts, table
from node.learning.splits import LEAST_ROWS, apportion, split, stratified
from node.types.settings import SplitSettings, TaskSettings

NAMES = tuple(f"n{index}" for index in range(5))
KINDS = [
    SplitSettings(),
    SplitSettings(kind="dirichlet", alpha=0.5),
    SplitSettings(kind="dirichlet", alpha=1e-6),
    SplitSettings(kind="size", sizes=(1, 1, 2, 3, 9)),
    SplitSettings(kind="column", column=2),
    SplitSettings(kind="hospitals"),
    SplitSettings(kind="dirichlet", alpha=0.5, only={"1": ("n1", "n4")}),
]


def settings_of(name="breast-cancer", kind=None, **more):
    return TaskSettings(name=name, split=kind or SplitSettings(), **more)


def all_rows(part):
    return torch.cat([part.train.x, part.validation.x, part.own_test.x])


def fingerprint(x):
    """Rows of these data sets are distinct: a row's bytes identify it."""
    return sorted(row.numpy().tobytes() for row in x)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}-{kind.alpha}")
@pytest.mark.parametrize("name", ["breast-cancer", "digits"])
def test_every_row_goes_to_exactly_one_place(name, kind):
    made = parts(settings_of(name, kind), NAMES, seed=3)
    features, _ = table(name)
    placed = [all_rows(made[member]) for member in NAMES] + [made["n0"].test.x]
    assert fingerprint(torch.cat(placed)) == fingerprint(torch.from_numpy(features.copy()))
    assert all(len(made[member].train) >= 1 for member in NAMES)
    assert all(made[member].samples == len(made[member].train) for member in NAMES)


def test_the_common_holdout_is_stratified_and_untouched_by_the_split():
    tests = [parts(settings_of(kind=kind), NAMES, seed=1)["n3"].test for kind in KINDS]
    for test in tests[1:]:
        assert torch.equal(test.x, tests[0].x)
    assert len(tests[0]) == round(0.2 * 569)
    share = float(tests[0].y.float().mean())
    assert abs(share - 212 / 569) < 0.01
    made = parts(settings_of(), NAMES, seed=1)
    assert all(made[name].test is made["n0"].test for name in NAMES)


def test_malignant_is_the_positive_class_and_features_stay_in_the_published_ranges():
    features, labels = table("breast-cancer")
    assert labels.sum() == 212
    assert features.shape == (569, 30)
    assert features.min() >= -1.02
    assert features.max() <= 1.02


@pytest.mark.parametrize("name", ["breast-cancer", "digits"])
@pytest.mark.parametrize("seed", range(4))
def test_hospitals_differ_in_size_and_in_case_mix(name, seed):
    made = parts(settings_of(name, SplitSettings(kind="hospitals")), NAMES, seed=seed)
    labels = [torch.cat([made[n].train.y, made[n].validation.y, made[n].own_test.y]) for n in NAMES]
    sizes = [len(y) for y in labels]
    assert max(sizes) >= 3 * min(sizes)
    shares = [float((y == 1).float().mean()) for y in labels]
    assert max(shares) >= 1.5 * min(shares)


def test_size_and_column_do_what_they_say():
    sized = parts(settings_of(kind=KINDS[3]), NAMES, seed=0)
    sizes = [len(all_rows(sized[n])) for n in NAMES]
    assert sizes == apportion(569 - 114, np.array([1.0, 1, 2, 3, 9])).tolist()
    cut = parts(settings_of(kind=KINDS[4]), NAMES, seed=0)
    ranges = [
        (float(x[:, 2].min()), float(x[:, 2].max())) for x in (all_rows(cut[n]) for n in NAMES)
    ]
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))


def test_resample_draws_with_replacement_and_keeps_copies_on_one_side():
    kind = SplitSettings(kind="resample", per_node=300)
    made = parts(settings_of("breast-cancer", kind), NAMES, seed=0)
    for name in NAMES:
        part = made[name]
        train = set(fingerprint(part.train.x))
        assert len(train) < len(part.train)
        assert not train & set(fingerprint(part.own_test.x))
        assert not train & set(fingerprint(part.validation.x))
        assert not train & set(fingerprint(part.test.x))


def test_own_holdout_and_validation_are_stratified():
    part = parts(settings_of(), ("a", "b"), seed=0)["a"]
    shares = [float(t.y.float().mean()) for t in (part.train, part.validation, part.own_test)]
    assert max(shares) - min(shares) < 0.06
    rows = len(all_rows(part))
    assert (len(part.own_test), len(part.validation)) == (round(0.2 * rows), round(0.1 * rows))


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_stratified_keeps_class_shares_within_a_row(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = stratified(labels, share, np.random.default_rng(seed))
    assert len(chosen) == round(len(labels) * share)
    assert len(np.unique(chosen)) == len(chosen)
    for label, count in enumerate(counts):
        assert abs((labels[chosen] == label).sum() - count * share) < 2


@pytest.mark.parametrize(
    "kind", [{"kind": "iid"}, {"kind": "resample", "per_node": 50}, {"kind": "column", "column": 5}]
)
def test_a_class_goes_to_its_holders_alone_in_equal_parts(kind):
    chosen = SplitSettings(**kind, only={"9": ("n4", "n1"), "0": ("n1",)})
    made = parts(settings_of("digits", chosen), NAMES, seed=3)
    counts = {
        name: [
            sum(int((rows.y == label).sum()) for rows in (p.train, p.validation, p.own_test))
            for label in (0, 9)
        ]
        for name, p in made.items()
    }
    labels = table("digits")[1]
    zeros, nines = (int((labels == label).sum()) for label in (0, 9))
    tested = made["n0"].test.y
    zeros, nines = zeros - int((tested == 0).sum()), nines - int((tested == 9).sum())
    assert counts["n0"] == counts["n2"] == counts["n3"] == [0, 0]
    assert counts["n1"][0] == zeros
    assert counts["n1"][1] + counts["n4"][1] == nines
    assert abs(counts["n1"][1] - counts["n4"][1]) <= 1
    assert counts["n4"][0] == 0
    assert int((tested == 9).sum()) > 0, "all are asked about it"


@given(
    members=st.integers(1, 12),
    alpha=st.sampled_from([1e-6, 0.1, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_no_member_is_left_without_rows(members, alpha, seed):
    labels = np.repeat(np.arange(3), 20)
    names = [f"m{i}" for i in range(members)]
    kind = SplitSettings(kind="dirichlet", alpha=alpha)
    found = split(kind, np.zeros((60, 1), np.float32), labels, names, np.random.default_rng(seed))
    assert min(map(len, found)) >= LEAST_ROWS
    assert sorted(np.concatenate(found)) == list(range(60))


@pytest.mark.parametrize(
    ("chosen", "names", "match"),
    [
        (settings_of("digitz"), NAMES, "did you mean 'digits'"),
        (settings_of(), ("a", "a"), "doubled"),
        (settings_of(), (), "no names"),
        (settings_of(kind=SplitSettings(kind="size")), NAMES, "needs key 'sizes'"),
        (settings_of(kind=SplitSettings(kind="size", sizes=(1, 2))), NAMES, "2 sizes for 5"),
        (settings_of(kind=SplitSettings(kind="column", column=30)), NAMES, "columns 0 to 29"),
        (settings_of(kind=SplitSettings(kind="resample")), NAMES, "needs key 'per_node'"),
        (settings_of(kind=SplitSettings(alpha=1)), NAMES, "belongs to kind 'dirichlet'"),
        (settings_of(own_holdout=0.9, validation=0.5), NAMES, "member 'n0' has"),
        (settings_of(holdout=1.0), NAMES, "leaves no rows"),
        (settings_of(), tuple(f"m{i}" for i in range(200)), "member 'm113'"),
        (settings_of("quadratic", SplitSettings(kind="size", sizes=(1,))), NAMES, "1 sizes for 5"),
        (settings_of("digits", SplitSettings(only={"10": ("n0",)})), NAMES, "no class '10'"),
        (settings_of("digits", SplitSettings(only={"9": ("m0",)})), NAMES, "did you mean 'n0'"),
        (settings_of("digits", SplitSettings(only={"9": ()})), NAMES, "names nobody"),
        (settings_of("digits", SplitSettings(only={"9": ("n0", "n0")})), NAMES, "a member twice"),
        (settings_of("quadratic", SplitSettings(only={"9": ("n0",)})), NAMES, "has no classes"),
    ],
)
def test_what_cannot_be_split_is_refused(chosen, names, match):
    with pytest.raises(ConfigError, match=match):
        parts(chosen, names, seed=0)


PROGRAM = """
import hashlib
from node.learning.data import parts
from node.types.settings import SplitSettings, TaskSettings
digest = hashlib.sha256()
for kind in (SplitSettings(kind="hospitals"), SplitSettings(kind="dirichlet", alpha=0.3)):
    for name, part in parts(TaskSettings(name="breast-cancer", split=kind), "abc", seed=5).items():
        for tensor in (part.train.x, part.validation.y, part.own_test.x, part.test.y):
            digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""


def test_the_same_rows_in_any_process():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    found = [process.communicate()[0] for process in processes]
    assert len(found[0]) == 65
    assert found[0] == found[1]


def test_another_seed_gives_other_rows():
    one, other = (parts(settings_of(), NAMES, seed=seed)["n0"].train.x for seed in (1, 2))
    assert one.shape == other.shape
    assert not torch.equal(one, other)
