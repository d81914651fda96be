"""What a simulation remembers: one answer for equal bytes, and none for a damaged copy."""

from __future__ import annotations

import math

import pytest
import torch
from msgspec import structs
from sims import failed, quadratic

from crypto.hashing import leaf_digests, tree_digest
from crypto.identity import SigningKey
from node.errors import MalformedFrame, OutOfBounds, RemoteProtocolError
from node.learning.vector import as_bytes
from node.protocol.frames import encode, encode_header
from node.protocol.reading import Reader
from node.types.messages import PRESENCE, Have, Header, Heads, SignedHeader
from scenarios import memory as memory_module
from scenarios.memory import Memory, Recent
from scenarios.prepare import prepare
from scenarios.simulation import Simulation, simulate

KEY = SigningKey.from_seed(b"k" * 32)
HAVE = encode(Have(7, b"b" * 16, 3, True, ""))


def signed(version: int) -> SignedHeader:
    header = Header(
        consortium=b"c" * 32,
        epoch=0,
        training=b"t" * 32,
        sender=b"s" * 32,
        key_version=0,
        incarnation=7,
        boot_id=b"b" * 16,
        round=1,
        kind=PRESENCE,
        version=version,
        base=None,
        codec="",
        length=0,
        root=bytes(32),
        model=bytes(32),
        mixed_round=0,
        counted=(),
    )
    raw = encode_header(header)
    return SignedHeader(raw, KEY.sign("header", raw))


def flipped(data: bytes):
    for place in range(len(data)):
        for bit in (1, 128):
            yield data[:place] + bytes((data[place] ^ bit,)) + data[place + 1 :]


def test_a_frame_is_read_once_and_every_damaged_copy_is_refused() -> None:
    memory = Memory()
    said = memory.message(HAVE)
    assert said == Reader().message(HAVE)
    assert memory.message(bytes(bytearray(HAVE))) is said
    for bad in flipped(HAVE):
        for _ in range(2):
            with pytest.raises(MalformedFrame):
                memory.message(bad)
    assert memory.message(HAVE) is said


def test_equal_heads_in_different_frames_are_one_object() -> None:
    memory = Memory()
    ours, others = signed(1), signed(2)
    head = memory.head(ours)
    message = memory.message(encode(Heads((others, ours))))
    assert isinstance(message, Heads)
    assert message.heads == (others, ours)
    assert message.heads[1] is ours
    assert memory.head(message.heads[1]) is head
    assert head.header.version == 1
    assert memory.head(others).header.version == 2


def test_a_header_under_another_ones_signature_is_read_for_itself() -> None:
    memory = Memory()
    one, other = signed(1), signed(2)
    memory.head(one)
    mixed = SignedHeader(other.header, one.signature)
    assert memory.head(mixed).header.version == 2
    assert memory.head(mixed).signed == mixed
    message = memory.message(encode(Heads((SignedHeader(one.header, other.signature), mixed))))
    assert isinstance(message, Heads)
    assert message.heads[0] == SignedHeader(one.header, other.signature)
    public = KEY.public
    for good in (one, other):
        assert memory.verify(public, "header", good.header, good.signature)
    assert not memory.verify(public, "header", mixed.header, mixed.signature)
    with pytest.raises(MalformedFrame):
        memory.head(SignedHeader(one.header + b"\x00", one.signature))


def test_the_verifier_remembers_and_still_refuses() -> None:
    memory = Memory()
    signature = KEY.sign("header", b"message")
    for _ in range(2):
        assert memory.verify(KEY.public, "header", b"message", signature)
        for public, purpose, message, bad in (
            (SigningKey.from_seed(b"x" * 32).public, "header", b"message", signature),
            (KEY.public, "statement", b"message", signature),
            (KEY.public, "header", b"massage", signature),
            (KEY.public, "header", b"message", bytes(64)),
        ):
            assert not memory.verify(public, purpose, message, bad)


def test_digests_are_of_exactly_the_bytes_asked_about() -> None:
    memory = Memory()
    for size in (0, 1, 40, 65536, 65537):
        data = bytes(range(256)) * (size // 256 + 1)
        data = data[:size]
        for each in (data, data + b"!", memoryview(data), data):
            assert memory.leaves(each) == leaf_digests(each)
            assert memory.tree_digest(each) == tree_digest(each)


def test_a_model_that_passed_once_does_not_let_another_pass() -> None:
    founded = prepare(quadratic())
    learner = founded.learner("n0")
    memory = Memory()
    good = bytes(as_bytes(torch.ones(8)))
    vector = memory.checked(learner.read, memoryview(good))
    assert memory.checked(learner.read, memoryview(bytes(bytearray(good)))) is vector
    for bad, error in (
        (bytes(as_bytes(torch.tensor([1.0] * 7 + [math.nan]))), MalformedFrame),
        (bytes(as_bytes(torch.full((8,), 1e20))), OutOfBounds),
        (good[:-4], MalformedFrame),
    ):
        for _ in range(2):
            with pytest.raises(error):
                memory.checked(learner.read, memoryview(bad))
    # a part of what passed is not what passed
    with pytest.raises(RemoteProtocolError):
        memory.checked(learner.read, memoryview(good)[4:])


def test_receivers_of_a_payload_in_chunks_share_one_object() -> None:
    memory = Memory()
    one = memory.whole(b"r" * 32, bytearray(b"payload"))
    assert memory.whole(b"r" * 32, memoryview(b"payload")) is one
    assert memory.whole(b"r" * 32, bytearray(b"another")) == b"another"


def test_memory_is_bounded_and_what_is_asked_for_again_stays() -> None:
    recent: Recent[int, str] = Recent(10)
    recent.keep(-1, "held")
    for key in range(100):
        recent.keep(key, "x")
        assert (recent.young.get(-1) or recent.again(-1)) == "held"
        assert len(recent.young) <= 10
        assert len(recent._old) <= 10
    assert recent.young.get(0) is None
    assert recent.again(0) is None


def test_copies_that_the_network_damages_are_refused_one_by_one() -> None:
    """Each frame also arrives whole, and is remembered: its damaged copy still does not pass."""
    event = '[[event]]\nat = "0s"\nlink = { corrupt = 0.05, duplicate = 0.3 }\n'
    run = simulate(quadratic(event, rounds=30))
    assert not failed(run)
    refused = [node.rejections.get("malformed", 0) for node in run.nodes]
    assert sum(refused) > 20


@pytest.mark.parametrize("dimension", [8, 20_000], ids=["inline", "in chunks"])
def test_neighbours_hold_one_copy_of_a_model_and_verify_its_header_once(
    dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    verify = memory_module.verify
    monkeypatch.setattr(
        memory_module, "verify", lambda *args: asked.append(args[3]) or verify(*args)
    )
    source = quadratic(rounds=3, mixing=0, topology='kind = "complete", nodes = 5')
    task = structs.replace(source.settings.task, dimension=dimension)
    scenario = structs.replace(source, settings=structs.replace(source.settings, task=task))
    simulation = Simulation(prepare(scenario))
    simulation.run()
    assert [node.ended for node in simulation.nodes] == ["finished"] * 5
    for owner in simulation.nodes:
        held = [n.learner.replicas[owner.me] for n in simulation.nodes if n is not owner]
        assert {replica.round for replica in held} == {3}
        assert len({replica.vector.data_ptr() for replica in held}) == 1
    assert len(asked) == len(set(asked)), "no signature is verified twice"
    assert len(asked) >= 5 * 3
