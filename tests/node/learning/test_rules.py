"""Mixing rules: what they compute, what they bear, what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError, LocalProtocolError, TooFewPeers
from node.learning import rules

D = 7
ordinary = st.floats(-1e6, 1e6, width=32)
anything = st.floats(allow_nan=False, allow_infinity=False, width=32)


def model(values):
    return st.lists(values, min_size=D, max_size=D).map(
        lambda row: torch.tensor(row, dtype=torch.float32)
    )


def models(values, low, high):
    return st.lists(model(values), min_size=low, max_size=high)


@given(honest=models(ordinary, 3, 9), data=st.data())
def test_f_liars_cannot_leave_the_honest_range(honest, data):
    f = data.draw(st.integers(1, (len(honest) - 1)))
    liars = data.draw(models(anything, 0, f))
    everyone = data.draw(st.permutations([*honest, *liars]))
    low, high = torch.stack(honest).amin(0), torch.stack(honest).amax(0)
    for result in (rules.trimmed_mean(everyone, len(liars)), rules.median(everyone, len(liars))):
        assert torch.isfinite(result).all()
        assert (result >= low).all()
        assert (result <= high).all()


@pytest.mark.parametrize("n", range(3, 12))
def test_equal_models_come_out_as_they_went_in(n):
    one = torch.randn(3000, generator=torch.Generator().manual_seed(n))
    assert torch.equal(rules.trimmed_mean([one] * n, 1), one)
    assert torch.equal(rules.median([one] * n), one)


def test_without_trimming_one_liar_leaves_the_honest_range():
    honest = [torch.full((D,), float(value)) for value in range(4)]
    liar = torch.full((D,), 1e30)
    assert (rules.trimmed_mean([*honest, liar], 0) > 1e29).all()
    assert (rules.trimmed_mean([*honest, liar], 1) <= 3).all()


@given(everyone=models(ordinary, 1, 33), data=st.data())
@settings(max_examples=60)
def test_trimmed_mean_and_median_are_those_of_a_sort(everyone, data):
    n = len(everyone)
    f = data.draw(st.integers(0, (n - 1) // 2))
    ranked = np.sort(torch.stack(everyone).numpy().astype(np.float64), axis=0)
    expected = ranked[f : n - f].mean(0)
    np.testing.assert_allclose(rules.trimmed_mean(everyone, f), expected, rtol=1e-5, atol=0.2)
    np.testing.assert_allclose(rules.median(everyone), np.median(ranked, 0), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("n", range(1, 18))
def test_the_sorting_network_sorts(n):
    rows = np.random.default_rng(n).standard_normal((n, 500)).astype(np.float32)
    ranked = rules._sorted_rows(list(rows), 0, n)
    np.testing.assert_array_equal(np.stack(ranked), np.sort(rows, axis=0))


@given(everyone=models(ordinary, 3, 8), data=st.data())
def test_rules_do_not_depend_on_the_order_of_neighbours(everyone, data):
    own, others = everyone[0], everyone[1:]
    order = data.draw(st.permutations(range(len(others))))
    shuffled = [others[i] for i in order]
    weights = [1 / (k + len(everyone)) for k in range(len(others))]
    weights = [w / sum(weights) / 2 for w in weights]
    moved = [weights[i] for i in order]
    assert torch.equal(rules.median([own, *others]), rules.median([*shuffled, own]))
    np.testing.assert_allclose(
        rules.trimmed_mean(everyone, 1), rules.trimmed_mean([*shuffled, own], 1), rtol=1e-5, atol=1
    )
    for f in (0, 1):
        np.testing.assert_allclose(
            rules.clip(own, others, weights, f),
            rules.clip(own, shuffled, moved, f),
            rtol=1e-5,
            atol=1,
        )


@given(honest=models(ordinary, 3, 8), data=st.data())
def test_liars_move_clip_no_further_than_the_farthest_honest_model(honest, data):
    own, others = honest[0], honest[1:]
    f = data.draw(st.integers(1, max(1, len(others) // 2)))
    liars = data.draw(models(anything, f, f))
    replicas = [*others, *liars]
    if 1 + len(replicas) <= 2 * f:
        return
    weights = [1 / (len(replicas) + 1)] * len(replicas)
    result = rules.clip(own, replicas, weights, f)
    assert torch.isfinite(result).all()
    reach = max(rules.distance(other, own) for other in others)
    assert rules.distance(result, own) <= sum(weights) * reach * (1 + 1e-5) + 1e-3 * reach + 1e-6


def test_clip_scales_what_is_beyond_the_threshold():
    own = torch.zeros(2)
    others = [torch.tensor([float(value), 0.0]) for value in (1, 2, 3, 8)]
    # weights .2 each, f = 1: the farthest mass of 2·.2 begins at distance 3
    result = rules.clip(own, others, [0.2] * 4, 1)
    torch.testing.assert_close(result, torch.tensor([0.2 * (1 + 2 + 3 + 3), 0.0]))


def test_clip_with_one_heavy_neighbour_is_stricter_not_weaker():
    own = torch.zeros(1)
    near, far = torch.ones(1), torch.full((1,), 1e30)
    result = rules.clip(own, [near, far], [0.1, 0.5], 1)
    torch.testing.assert_close(result, torch.tensor([0.1 + 0.5]))


def test_clip_with_no_attacker_to_bear_is_the_mean():
    own, others = torch.zeros(3), [torch.ones(3), torch.full((3,), 5.0)]
    weights = [0.25, 0.5]
    torch.testing.assert_close(
        rules.clip(own, others, weights, 0), rules.mean(own, others, weights)
    )


def test_coordinates_of_1e30_neither_overflow_nor_become_nan():
    own = torch.zeros(5000)
    honest = [torch.full((5000,), value) for value in (0.1, 0.2, 0.3)]
    for extreme in (1e30, -3.4e38):
        liar = torch.full((5000,), extreme)
        clipped = rules.clip(own, [*honest, liar], [0.2] * 4, 1)
        assert torch.isfinite(clipped).all()
        assert rules.distance(clipped) <= 0.8 * rules.distance(honest[2]) * 1.0001
        for middle in (
            rules.median([own, *honest, liar]),
            rules.trimmed_mean([own, *honest, liar], 1),
        ):
            assert (middle >= -0.001).all()
            assert (middle <= 0.3).all()
        mean = rules.mean(own, [liar, liar], [0.5, 0.5])
        assert torch.isfinite(mean).all()


def test_blocks_leave_no_seam():
    size = 700_001
    generator = torch.Generator().manual_seed(3)
    everyone = [torch.randn(size, generator=generator) for _ in range(5)]
    weights = [0.2, 0.1, 0.3, 0.15]
    stack = torch.stack(everyone)
    expected = 0.25 * stack[0] + sum(w * m for w, m in zip(weights, stack[1:], strict=True))
    torch.testing.assert_close(rules.mean(everyone[0], everyone[1:], weights), expected)
    torch.testing.assert_close(rules.median(everyone), stack.median(0).values)
    assert math.isclose(rules.distance(everyone[0]), float(everyone[0].double().norm()))
    in_place = everyone[0].clone()
    rules.mean(in_place, everyone[1:], weights, out=in_place)
    torch.testing.assert_close(in_place, expected)


@pytest.mark.parametrize("f", [1, 2, 5])
def test_too_few_models_are_refused(f):
    own = torch.zeros(3)
    everyone = [own] * (2 * f)
    weights = [0.01] * (2 * f - 1)
    with pytest.raises(TooFewPeers, match=f"needs {2 * f + 1} models, found {2 * f}"):
        rules.trimmed_mean(everyone, f)
    with pytest.raises(TooFewPeers):
        rules.median(everyone, f)
    with pytest.raises(TooFewPeers):
        rules.clip(own, everyone[1:], weights, f)
    rules.trimmed_mean([*everyone, own], f)


@pytest.mark.parametrize("weights", [[0.6, 0.6], [-0.1, 0.5], [float("nan"), 0.1], [0.5]])
def test_weights_that_cannot_be_are_a_bug(weights):
    with pytest.raises(LocalProtocolError):
        rules.mean(torch.zeros(2), [torch.zeros(2)] * 2, weights)


def test_check_names_the_node_whose_neighbourhood_is_too_small():
    with pytest.raises(ConfigError, match=r"needs 5 models, but b and its neighbours have 3"):
        rules.check_rule("trimmed-mean", 2, {"a": 5, "b": 3})
    rules.check_rule("trimmed-mean", 1, {"a": 5, "b": 3})
    with pytest.raises(ConfigError, match="bears no attacker"):
        rules.check_rule("mean", 1, {"a": 5})
    for rule in ("trimmed-mean", "clip"):
        with pytest.raises(ConfigError, match="1 or more"):
            rules.check_rule(rule, 0, {"a": 5})
    rules.check_rule("median", 0, {"a": 1})
    rules.check_rule("mean", 0, {"a": 1})
    assert [rules.rule_needs(rule, 2) for rule in ("mean", "median", "clip")] == [1, 5, 5]
