"""The learner: effects in, answers out; what it refuses, and exact resume."""

from __future__ import annotations

import json
import mmap

import numpy as np
import pytest
import safetensors.torch as safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from crypto.hashing import leaf_digests, root, tree_digest
from node.errors import ConfigError, LocalProtocolError, StorageError
from node.learning.anchor import Anchor
from node.learning.codecs import CODECS
from node.learning.learner import Learner
from node.learning.sampling import batches, padded_width
from node.learning.task import Table, Task
from node.learning.vector import as_bytes, squares
from node.types.events import Apply, Choose, Encode, Finalise, Mix, Rebase, Source
from node.types.messages import INLINE_BYTES
from node.types.settings import LearningSettings, SplitSettings

STEPS = LearningSettings(local_steps=3)


def publish(learner, round_=1):
    return learner.encode(Encode(round=round_, version=round_, keyframe=True)).payload


def give(receiver, sender, header, data=None, **changes):
    payload = publish(sender)
    effect = Apply(sender.me, payload.root, header(payload, **changes))
    return receiver.apply(effect, payload.inline if data is None else data)


def rng_table(rows, columns, classes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    return Table(x, torch.randint(classes, (rows,), generator=generator))


def own_task(model, **more):
    rows = rng_table(40, 6)
    return Task(
        model, rows, functional.cross_entropy, test=rows, own_test=rows, validation=rows, **more
    )


# ── publishing and applying ─────────────────────────────────────────────────────────────────


def test_encode_publishes_the_models_own_bytes(learners):
    (node,) = learners("digits", 1)
    node.train(1)
    payload = publish(node)
    data = node.x.numpy().astype("<f4").tobytes()
    assert payload.inline == data
    assert payload.length == node.payload_bytes == 4 * 2410
    assert payload.leaves == leaf_digests(data)
    assert payload.root == payload.model == root(payload.leaves, len(data))
    assert payload.keyframe
    assert torch.equal(node.public, node.x)


def test_a_large_model_is_not_inlined_and_its_chunks_are_not_copied(learners, header):
    one, other = learners("quadratic", 2, dimension=40_000)
    one.x.uniform_()
    payload = publish(one)
    assert payload.length == 160_000 > INLINE_BYTES
    assert payload.inline is None
    chunk = one.chunk(payload.root, 65536, 65536)
    assert np.frombuffer(chunk, "<f4").ctypes.data == one.public.data_ptr() + 65536
    data = bytes(one.chunk(payload.root, 0, payload.length))
    assert other.apply(Apply(one.me, payload.root, header(payload)), data).ok
    # a neighbour's model is relayed out of the very bytes that came in
    relayed = other.chunk(payload.root, 8, 16)
    assert np.frombuffer(relayed, "u1").ctypes.data == np.frombuffer(data, "u1").ctypes.data + 8
    assert one.chunk(b"?" * 32, 0, 8) is None


def test_a_replica_refers_to_a_mapped_file(learners, header, tmp_path):
    one, other = learners("digits", 2)
    payload = publish(one)
    path = tmp_path / "payload"
    path.write_bytes(payload.inline)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert other.apply(Apply(one.me, payload.root, header(payload)), mapped).ok
    address = np.frombuffer(mapped, "u1").ctypes.data
    assert other.replicas[one.me].vector.data_ptr() == address
    assert torch.equal(other.replicas[one.me].vector, one.x)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda v: v[:-1], "bytes"),
        (lambda v: np.append(v, v[:1]), "bytes"),
        (lambda v: v[:0], "bytes"),
        (lambda v: np.where(np.arange(v.size) == 2409, np.nan, v), "finite"),
        (lambda v: np.where(np.arange(v.size) == 0, np.inf, v), "finite"),
        (lambda v: np.where(np.arange(v.size) == 7, -np.inf, v), "finite"),
        (lambda v: v + 1e4, "norm bound"),
        (lambda v: np.where(np.arange(v.size) == 1, 3e38, v), "norm bound"),
    ],
)
def test_a_bad_payload_drops_the_replica_and_says_why(learners, header, spoil, why):
    one, other = learners("digits", 2)
    assert give(other, one, header).ok
    bad = spoil(one.x.numpy()).astype("<f4").tobytes()
    applied = give(other, one, header, data=bad)
    assert not applied.ok
    assert why in applied.why
    assert one.me not in other.replicas


def test_a_payload_cut_within_a_float_is_refused(learners, header):
    one, other = learners("digits", 2)
    for cut in range(1, 9):
        assert not give(other, one, header, data=publish(one).inline[:-cut]).ok


@pytest.mark.parametrize("dtype", ["<f2", "<f8", "<i8", "bool"])
def test_a_payload_of_another_dtype_is_refused(learners, header, dtype):
    one, other = learners("digits", 2)
    applied = give(other, one, header, data=one.x.numpy().astype(dtype).tobytes())
    assert not applied.ok
    assert "bytes" in applied.why
    assert one.me not in other.replicas


def test_norm_bound_zero_lets_any_finite_model_in(learners, header):
    one, other = learners("digits", 2, LearningSettings(norm_bound=0))
    huge = np.full(2410, 1e30, "<f4").tobytes()
    assert give(other, one, header, data=huge).ok
    assert not give(other, one, header, data=np.full(2410, np.nan, "<f4").tobytes()).ok


def test_a_header_that_contradicts_itself_is_refused(learners, header):
    one, other = learners("digits", 2)
    assert not give(other, one, header, model=b"m" * 32).ok
    assert not give(other, one, header, codec="top-k").ok
    assert give(other, one, header).ok


def test_a_model_that_is_not_finite_is_never_published(learners):
    (node,) = learners("digits", 1)
    node.x[5] = float("nan")
    with pytest.raises(ConfigError, match=r"round 4: .* not finite; lower"):
        publish(node, 4)


# ── mixing ──────────────────────────────────────────────────────────────────────────────────


def test_too_few_models_keep_the_own_one_and_say_so(learners, header):
    nodes = learners("digits", 3, LearningSettings(rule="trimmed-mean", f=1, local_steps=1))
    nodes[0].train(1)
    publish(nodes[0])
    assert give(nodes[0], nodes[1], header).ok
    before = nodes[0].x.clone()
    mixed = nodes[0].mix(Mix(1, (Source(nodes[1].me, 0.3, 0),), True))
    assert mixed.kept_own == "trimmed-mean with f = 1 needs 3 models, found 2"
    assert torch.equal(nodes[0].x, before)
    assert give(nodes[0], nodes[2], header).ok
    both = tuple(Source(node.me, 0.3, 0) for node in nodes[1:])
    assert nodes[0].mix(Mix(1, both, True)).kept_own == ""
    assert not torch.equal(nodes[0].x, before)


def test_mixing_with_nobody_changes_nothing(learners):
    (node,) = learners("digits", 1)
    node.train(1)
    publish(node)
    before = node.x.clone()
    assert node.mix(Mix(1, (), True)).kept_own == ""
    assert torch.equal(node.x, before)


def test_a_source_without_a_replica_is_a_bug(learners):
    one, other = learners("digits", 2)
    with pytest.raises(LocalProtocolError, match="no replica"):
        one.mix(Mix(1, (Source(other.me, 0.5, 0),), True))
    with pytest.raises(LocalProtocolError, match="no replica"):
        one.rebase(Rebase(1, (other.me,)))


def test_qgm_keeps_the_differences_of_mixed_models_as_momentum(learners, header):
    one, other = learners("digits", 2, LearningSettings(local_steps=3, learning_rate=0.05))
    before = one.x.clone()
    one.train(1)
    publish(one)
    other.train(1)
    assert give(one, other, header).ok
    source = (Source(other.me, 0.5, 0),)
    one.mix(Mix(1, source, True))
    expected = 0.1 * (before - one.x) / (0.05 * 3)
    momentum = one.optimizer.vectors["momentum"]
    torch.testing.assert_close(momentum, expected)
    kept, before = momentum.clone(), one.x.clone()
    one.train(2)
    one.mix(Mix(2, (), True))
    torch.testing.assert_close(momentum, 0.9 * kept + 0.1 * (before - one.x) / (0.05 * 3))
    kept = momentum.clone()
    publish(one)
    one.mix(Mix(3, source, False))  # final mixing: frozen
    assert torch.equal(momentum, kept)
    # the next local step is x − η (β m̂ + g)
    start, momentum_before = one.x.clone(), momentum.clone()
    x, y = (t[one.plan(4)[0]] for t in (one.task.train.x, one.task.train.y))
    loss = functional.cross_entropy(one.vector.model(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, one.vector.parameters)])
    one.settings = LearningSettings(local_steps=1)
    one.train(4)
    torch.testing.assert_close(one.x, start - 0.05 * (0.9 * momentum_before + gradient))


def test_rebase_takes_the_median_or_the_initial_model_and_forgets_momentum(learners, header):
    nodes = learners("digits", 4, STEPS)
    initial = nodes[0].x.clone()
    for node in nodes:
        node.train(1)
        node.mix(Mix(1, (), True))
    for node in nodes[1:]:
        assert give(nodes[0], node, header).ok
    rebased = nodes[0].rebase(Rebase(5, tuple(node.me for node in nodes[1:])))
    assert (rebased.round, rebased.start) == (5, "median of 3")
    assert torch.equal(nodes[0].x, torch.stack([node.x for node in nodes[1:]]).median(0).values)
    assert not nodes[0].optimizer.vectors["momentum"].any()
    assert nodes[0].rebase(Rebase(6, ())).start == "x0"
    assert torch.equal(nodes[0].x, initial)


@pytest.mark.parametrize("spooled", [False, True])
def test_a_large_anchor_lies_in_a_file(tmp_path, spooled):
    vector = torch.randn(5_000_000 if spooled else 5000, generator=torch.Generator().manual_seed(1))
    anchor = Anchor(vector, tmp_path)
    assert (anchor._vector is None) == spooled
    assert anchor.norm == pytest.approx(float(vector.double().norm()))
    moved = vector + 0.5
    assert anchor.distance(moved) == pytest.approx(0.5 * vector.numel() ** 0.5, rel=1e-6)
    anchor.copy_to(moved)
    assert torch.equal(moved, vector)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scale", "reach", "near"),
    [(0.5, 2.0, True), (0.5, 0.4, False), (1.5, 0.9, True), (1e30, 1e3, False), (1e30, 1e32, True)],
)
def test_nearness_is_the_exact_distance_s_whatever_the_shortcut(scale, reach, near):
    start = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    start /= start.norm()
    anchor = Anchor(start)
    assert anchor.within(start * scale, reach) is near
    assert (anchor.distance(start * scale) <= reach) is near


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_near_nothing(value):
    anchor = Anchor(torch.zeros(200_000))
    moved = torch.zeros(200_000)
    moved[150_000] = value
    assert not anchor.within(moved, 1e30)


@pytest.mark.parametrize("size", [1, 16_384, 131_072, 300_001, 2_200_001])
def test_a_payload_s_digests_are_those_of_the_whole_whatever_the_blocks(size):
    source = torch.randn(size, generator=torch.Generator().manual_seed(2))
    public = torch.zeros(size)
    payload = CODECS["full"].encode(public, keyframe=True, source=source)
    assert torch.equal(public, source)
    assert payload.leaves == leaf_digests(as_bytes(source))
    assert payload.root == tree_digest(as_bytes(source))
    assert CODECS["full"].encode(public, keyframe=True) == payload
    public[-1] = float("inf")
    with pytest.raises(OverflowError):
        CODECS["full"].encode(public, keyframe=True)


@pytest.mark.parametrize("at", [0, 131_071, 1_100_000, 2_200_000])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_found_in_whichever_block(at, value):
    source = torch.zeros(2_200_001)
    source[at] = value
    with pytest.raises(OverflowError):
        CODECS["full"].encode(torch.zeros(2_200_001), keyframe=True, source=source)


def test_finite_values_whose_squares_are_not_can_be_published():
    source = torch.full((300_000,), 1e30)
    payload = CODECS["full"].encode(torch.zeros(300_000), keyframe=True, source=source)
    assert payload.leaves == leaf_digests(as_bytes(source))


def test_squares_are_those_of_the_vector_to_a_hundredth():
    vector = torch.randn(400_001, generator=torch.Generator().manual_seed(4))
    exact = float(vector.double().square().sum())
    assert squares(vector) == pytest.approx(exact, rel=0.01)
    assert squares(as_bytes(vector)) == squares(vector)
    assert squares(torch.full((4,), 1e30)) == float("inf")


def apply_known(learner, effect, payload, rough):
    return learner.apply(effect, payload, lambda data: learner.read(data, rough))


def test_known_squares_decide_only_what_they_can(learners, header):
    one, other = learners("digits", 2)
    one.x.add_(1e4)  # beyond the bound
    payload = publish(one)
    data = bytearray(one.chunk(payload.root, 0, payload.length))
    effect = Apply(one.me, payload.root, header(payload))
    for rough in (None, squares(data), float("inf"), float("nan")):
        assert "norm bound" in apply_known(other, effect, data, rough).why
    values = torch.frombuffer(data, dtype=torch.float32)
    values[3] = float("nan")
    for rough in (None, squares(values), float("inf")):
        assert "finite" in apply_known(other, effect, as_bytes(values), rough).why


# ── resume ──────────────────────────────────────────────────────────────────────────────────


def rounds(node, first, last):
    for round_ in range(first, last + 1):
        node.train(round_)
        publish(node, round_)
        node.mix(Mix(round_, (), True))


@pytest.mark.parametrize(
    "optimizer", ["sgd", "momentum", "adam", "qgm", "AdamW", "NAdam", "RMSprop"]
)
def test_resume_is_exact(learners, optimizer):
    policy = LearningSettings(local_steps=3, optimizer=optimizer, learning_rate=0.01, keep="best")
    (through,) = learners("digits", 1, policy)
    rounds(through, 1, 6)
    (killed,) = learners("digits", 1, policy)
    rounds(killed, 1, 2)
    killed.train(3)  # killed between training and mixing
    tensors, meta = killed.state()
    rounds(killed, 5, 9)  # what state() gave is not touched by going on
    (resumed,) = learners("digits", 1, policy)
    # by way of the disk's formats
    resumed.load_state(safetensors.load(safetensors.save(tensors)), json.loads(json.dumps(meta)))
    publish(resumed, 3)
    resumed.mix(Mix(3, (), True))
    rounds(resumed, 4, 6)
    assert torch.equal(resumed.x, through.x)
    assert torch.equal(resumed.public, through.public)
    assert resumed._best[:2] == through._best[:2]
    assert resumed.chunk(publish(through).root, 0, 8) is not None


def test_resume_serves_what_was_published(learners):
    one, other = learners("digits", 2)
    one.train(1)
    payload = publish(one)
    other.load_state(*one.state())
    assert bytes(other.chunk(payload.root, 0, payload.length)) == payload.inline


def test_a_checkpoint_of_another_training_is_refused(learners):
    (digits,), (cancer,) = learners("digits", 1), learners("breast-cancer", 1)
    with pytest.raises(StorageError, match="not of this training"):
        digits.load_state(*cancer.state())
    tensors, meta = digits.state()
    for broken in (({}, meta), (tensors, {}), (tensors, meta | {"optimizer": None})):
        with pytest.raises(StorageError, match="not of this training"):
            learners("digits", 1)[0].load_state(*broken)


class Noisy(nn.Sequential):
    """Batch norm and dropout: what the fast paths cannot take."""

    def __init__(self):
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(0)
        super().__init__(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        torch.random.set_rng_state(generator_state)


def test_dropout_and_batch_norm_resume_exactly_and_leave_the_global_generator_alone():
    through = Learner(own_task(Noisy()), STEPS, me=b"a" * 32, seed=3)
    rounds(through, 1, 5)
    killed = Learner(own_task(Noisy()), STEPS, me=b"a" * 32, seed=3)
    rounds(killed, 1, 2)
    resumed = Learner(own_task(Noisy()), STEPS, me=b"a" * 32, seed=3)
    resumed.load_state(*killed.state())
    torch.rand(3)
    before = torch.random.get_rng_state()
    rounds(resumed, 3, 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(resumed.x, through.x)
    for name, buffer in through.vector.model.named_buffers():
        assert torch.equal(dict(resumed.vector.model.named_buffers())[name], buffer)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_models_with_dropout_train_in_training_mode_whatever_the_metric(metric):
    node = Learner(own_task(Noisy(), metric=metric), STEPS, me=b"a" * 32, seed=3)
    seen = []
    node.vector.model[3].register_forward_hook(lambda module, *_: seen.append(module.training))
    node.train(1)
    node.evaluate()
    assert seen == [True] * 3 + [False] * 2


def test_finalise_recomputes_batch_norm_statistics():
    node = Learner(own_task(Noisy()), STEPS, me=b"a" * 32, seed=3)
    rounds(node, 1, 2)
    node.finalise(Finalise(2))
    model = node.vector.model
    hidden = model[0](node.task.train.x).detach()
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[1].running_var, hidden.var(0))
    assert not model.training
    assert model[1].momentum == 0.1


# ── keep ────────────────────────────────────────────────────────────────────────────────────


def test_keep_best_ends_with_the_best_validated_model(learners):
    (node,) = learners("digits", 1, LearningSettings(local_steps=8, keep="best"))
    rounds(node, 1, 6)
    good, value = node.x.clone(), node.inference.validate()
    node.x.zero_()
    publish(node, 7)
    node.mix(Mix(7, (), False))
    assert node.inference.validate() < value
    node.finalise(Finalise(7))
    assert node.inference.validate() == node._best[1] >= value
    assert not torch.equal(node.x, torch.zeros_like(good))


def test_keep_agreed_scores_candidates_and_takes_the_chosen_one(learners):
    (node,) = learners("digits", 1, LearningSettings(local_steps=8, keep="agreed"))
    rounds(node, 1, 2)
    node.keep_candidate(2)
    second = node.x.clone()
    rounds(node, 3, 6)
    last = node.x.clone()
    scores = node.finalise(Finalise(6)).scores
    assert [score.round for score in scores] == [2, 0]
    assert all(score.rows == len(node.task.validation) > 0 for score in scores)
    assert torch.equal(node.x, last)
    assert node.choose(Choose(0, 1))
    assert torch.equal(node.x, last)
    assert node.choose(Choose(2, 1))
    assert torch.equal(node.x, second)
    assert not node.choose(Choose(4, 1))
    assert torch.equal(node.x, second)


def test_candidates_go_through_the_given_store(learners):
    (plain,) = learners("digits", 1)
    disk = {}
    policy = LearningSettings(local_steps=1, keep="agreed")
    node = Learner(
        plain.task,
        policy,
        me=plain.me,
        seed=1,
        store=lambda round_, data: disk.update({round_: bytes(data)}),
        fetch=disk.get,
    )
    node.keep_candidate(3)
    assert disk[3] == node.x.numpy().tobytes()
    disk[3] = disk[3][:-4]
    for damaged in (disk[3], np.full(2410, np.nan, "<f4").tobytes()):
        disk[3] = damaged
        with pytest.raises(StorageError, match="round 3 is damaged"):
            node.choose(Choose(3, 1))


@pytest.mark.parametrize("keep", ["best", "agreed"])
def test_keep_without_validation_rows_is_refused(learners, keep):
    with pytest.raises(ConfigError, match="needs validation rows"):
        learners("digits", 2, LearningSettings(keep=keep), validation=0.0)


# ── batches and figures ─────────────────────────────────────────────────────────────────────


def test_training_depends_on_seed_and_round_alone(learners):
    one, again = learners("digits", 1, STEPS)[0], learners("digits", 1, STEPS)[0]
    one.train(1)
    torch.rand(10)
    first = again.train(1)
    assert torch.equal(one.x, again.x)
    assert first.steps == 3
    assert first.loss > 0
    assert not torch.equal(torch.cat(one.plan(1)), torch.cat(one.plan(2)))
    again.seed += 1
    assert not torch.equal(torch.cat(one.plan(1)), torch.cat(again.plan(1)))


@given(rows=st.integers(0, 50), steps=st.integers(0, 9), size=st.integers(1, 60))
@settings(max_examples=60)
def test_steps_and_epochs_are_what_was_asked_for(rows, steps, size):
    policy = LearningSettings(local_steps=steps, batch_size=size)
    plan = batches(rows, policy, seed=1, round_=2)
    assert len(plan) == (steps if rows else 0)
    assert all(len(batch) == min(size, rows) <= padded_width(rows, policy) for batch in plan)
    policy = LearningSettings(local_epochs=2, batch_size=size)
    plan = batches(rows, policy, seed=1, round_=2)
    assert sorted(torch.cat(plan).tolist() if plan else []) == sorted([*range(rows)] * 2)


def test_no_rows_or_no_steps_train_nothing(learners):
    (node,) = learners("digits", 1, LearningSettings(local_steps=0))
    before = node.x.clone()
    trained = node.train(1)
    assert (trained.loss, trained.steps) == (None, 0)
    assert torch.equal(node.x, before)


def test_figures_of_the_common_and_the_own_rows(learners):
    one, other = learners("breast-cancer", 2, split=SplitSettings(kind="hospitals"))
    found = one.evaluate()
    assert (found.rows, found.own_rows) == (len(one.task.test), len(one.task.own_test))
    assert found.accuracy == found.correct / found.rows
    assert 0 <= found.auroc <= 1
    for figure in ("accuracy", "auroc", "own_accuracy", "own_auroc"):
        low, high = one.interval(figure)
        assert low <= getattr(found, figure) <= high
    assert other.evaluate().accuracy == found.accuracy  # one initial model for all
    (quadratic,) = learners("quadratic", 1)
    assert quadratic.interval("accuracy") is None


def test_the_exported_model_shares_no_memory(learners):
    (node,) = learners("digits", 1, STEPS)
    exported = node.model_state_dict()
    assert set(exported) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    before = exported["0.weight"].clone()
    node.train(1)
    assert torch.equal(exported["0.weight"], before)


def test_any_map_style_data_set_and_loss_object_will_do():
    rows = rng_table(30, 6)
    items = [(rows.x[i], rows.y[i]) for i in range(30)]
    results = []
    for train in (items, rows, torch.utils.data.TensorDataset(rows.x, rows.y)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 2))
        node = Learner(
            Task(model, train, nn.CrossEntropyLoss(), test=train), STEPS, me=b"a", seed=1
        )
        node.train(1)
        results.append((node.x.clone(), node.evaluate()))
    for x, found in results[1:]:
        assert torch.equal(x, results[0][0])
        assert found == results[0][1]
