"""Learners that gossip without a network: what the core would ask for, in plain loops."""

from __future__ import annotations

import pytest
import torch

from node.learning.batch import mix_batch, train_batch
from node.learning.data import parts
from node.learning.learner import Learner
from node.learning.task import Silo
from node.learning.tasks import build_task
from node.types.events import Apply, Encode, Mix, Source
from node.types.messages import Header
from node.types.settings import LearningSettings, SplitSettings, TaskSettings
from topology.generate import build
from topology.settings import TopologySettings
from topology.weigh import mixing_matrix


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def member(index):
    return index.to_bytes(32, "big")


def header_of(payload, round_=1, **changes):
    fields = {
        "consortium": b"c" * 32,
        "epoch": 0,
        "training": b"t" * 32,
        "sender": b"s" * 32,
        "key_version": 0,
        "incarnation": 1,
        "boot_id": b"b" * 16,
        "round": round_,
        "kind": 0,
        "version": round_,
        "base": None,
        "codec": payload.codec,
        "length": payload.length,
        "root": payload.root,
        "model": payload.model,
        "mixed_round": 0,
        "counted": (),
    }
    return Header(**(fields | changes))


def make_learners(task, count, learning=None, split=None, seed=0, **settings):
    learning = learning or LearningSettings()
    chosen = TaskSettings(name=task, split=split or SplitSettings(), **settings)
    names = [f"n{index}" for index in range(count)]
    made = parts(chosen, names, seed=seed)
    return [
        Learner(
            build_task(Silo(name, {}, "cpu", learning.seed, chosen, made[name])),
            learning,
            me=member(index),
            seed=1000 * seed + index,
        )
        for index, name in enumerate(names)
    ]


class Gossip:
    """Rounds over a graph; ``tamper(index, payload bytes)`` may replace what a node sends."""

    def __init__(self, learners, topology="ring"):
        self.learners = learners
        names = tuple(f"n{index}" for index in range(len(learners)))
        kind = topology if isinstance(topology, TopologySettings) else None
        self.graph = build(
            kind or TopologySettings(kind=topology, nodes=len(names)), source="the test"
        )
        samples = {name: one.samples for name, one in zip(names, learners, strict=True)}
        self.weights = mixing_matrix(self.graph, samples)

    def exchange(self, round_, training=True, tamper=None):
        payloads = [
            one.encode(Encode(round=round_, version=round_, keyframe=True)).payload
            for one in self.learners
        ]
        jobs = []
        for i, one in enumerate(self.learners):
            sources = []
            for j, other in enumerate(self.learners):
                if i == j or not self.weights[i, j]:
                    continue
                payload = payloads[j]
                data = payload.inline if tamper is None else tamper(j, payload.inline)
                effect = Apply(other.me, payload.root, header_of(payload, round_))
                applied = one.apply(effect, data)
                assert applied.ok, applied.why
                sources.append(Source(other.me, float(self.weights[i, j]), 0))
            jobs.append((one, Mix(round_, tuple(sources), training)))
        return mix_batch(jobs)

    def run(self, rounds, final=0, tamper=None):
        for round_ in range(1, rounds + final + 1):
            if round_ <= rounds:
                train_batch([(one, round_) for one in self.learners])
            self.exchange(round_, round_ <= rounds, tamper)
        return self


@pytest.fixture(scope="session")
def learners():
    return make_learners


@pytest.fixture(scope="session")
def gossip():
    return Gossip


@pytest.fixture(scope="session")
def header():
    return header_of
