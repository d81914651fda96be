"""From charter to roster and policy: what each field becomes, and that nothing slips through."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crypto.card import make_card, read_card
from crypto.identity import NodeId
from crypto.keys import Keys, create_keys
from crypto.sealed import consortium_id, seal, sign_charter, unseal
from crypto.sealed import read_signature as read
from node.consortium import (
    MailedCard,
    default_final_mixing,
    fill_members,
    load_consortium,
    policy,
    read_charter,
    set_pins,
    topology_digest,
    training_id,
)
from node.errors import ConfigError
from node.types.settings import (
    CharterSettings,
    LearningSettings,
    PinSettings,
    StartSettings,
    TaskSettings,
)
from scenarios.founding import Founded, found
from topology.graph import Graph
from topology.settings import TopologySettings

PATH = Graph(("a", "b", "c"), [("a", "b"), ("b", "c")])
EQUAL = {"a": 1, "b": 1, "c": 1}


def charter(**fields: Any) -> CharterSettings:
    return CharterSettings(
        name="x",
        topology=TopologySettings(kind="path"),
        task=TaskSettings(name="quadratic"),
        **fields,
    )


def learning(**fields: Any) -> CharterSettings:
    return charter(learning=LearningSettings(**fields))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Founded:
    return found(
        tmp_path_factory.mktemp("site"),
        ("c", "a", "b"),
        name="tiny",
        topology=TopologySettings(kind="path"),
        task=TaskSettings(name="quadratic", dimension=4),
        learning=LearningSettings(rounds=3),
    )


def test_the_roster_is_sorted_and_has_the_graphs_edges(site: Founded) -> None:
    roster = site.consortium.roster
    assert list(roster.members) == sorted(roster.members)
    by_name = {member.name: member for member in roster.members.values()}
    assert {roster.name(n) for n in by_name["a"].neighbours} == {"c", "b"}
    assert {roster.name(n) for n in by_name["c"].neighbours} == {"a"}
    for member in by_name.values():
        assert list(member.neighbours) == sorted(member.neighbours)
        assert member.samples == site.seats[member.name].samples
        assert member.certificate
        assert member.addresses == (f"tcp://127.0.0.1:{site.seats[member.name].port}",)
    assert roster.consortium == site.consortium.id == consortium_id(site.consortium.sealed.body)


def test_one_changed_signature_is_found(site: Founded, tmp_path: Path) -> None:
    sealed = unseal(site.consortium.path.read_text(), source="x")
    signer = sorted(sealed.signatures)[0]
    wrong = bytes([sealed.signatures[signer][0] ^ 1]) + sealed.signatures[signer][1:]
    path = tmp_path / "x.consortium"
    path.write_text(seal(sealed.body, {**sealed.signatures, signer: wrong}))
    with pytest.raises(ConfigError, match="is not over these bytes"):
        load_consortium(path)


def test_a_charter_changed_after_sealing_is_found(site: Founded, tmp_path: Path) -> None:
    sealed = unseal(site.consortium.path.read_text(), source="x")
    path = tmp_path / "x.consortium"
    body = sealed.body.replace(b"rounds = 3", b"rounds = 4")
    assert body != sealed.body
    path.write_text(seal(body, sealed.signatures))
    with pytest.raises(ConfigError, match="is not over these bytes"):
        load_consortium(path)


def test_a_stranger_may_not_add_itself_nor_replace_a_card(site: Founded, tmp_path: Path) -> None:
    """Somebody writes its own card under a member's name; the member's old id no longer fits."""
    sealed = unseal(site.consortium.path.read_text(), source="x")
    mallory = create_keys(tmp_path / "m", "a")
    card = read_card(make_card(mallory, addresses=(), samples=100), source="m")
    text = fill_members(sealed.body.decode(), [MailedCard(*card, "m")], source="x")
    pins = site.consortium.settings.pins
    assert pins is not None
    body = set_pins(text, pins, source="x").encode()
    path = tmp_path / "x.consortium"
    path.write_text(seal(body, sealed.signatures))
    with pytest.raises(ConfigError, match="who is no founder"):
        load_consortium(path)


def test_two_members_with_one_node_key(site: Founded, tmp_path: Path) -> None:
    """A thief of a node key founds a second member on it."""
    one = create_keys(tmp_path / "one", "one")
    two = create_keys(tmp_path / "two", "two")
    twin = Keys("two", two.node_id, two.member, one.node)
    cards = []
    for keys in (one, twin):
        made = make_card(keys, addresses=["tcp://h:1"], samples=10)
        cards.append(MailedCard(*read_card(made, source=keys.name), keys.name))
    draft = 'name = "x"\ntopology = { kind = "path" }\n[task]\nname = "quadratic"\n'
    text = fill_members(draft, cards, source="x")
    zeros = "0" * 64
    body = set_pins(
        text, PinSettings(topology=zeros, schema=zeros, initial=zeros, code=zeros), source="x"
    ).encode()
    signatures: dict[NodeId, bytes] = {}
    for keys in (one, twin):
        assert keys.member is not None
        signer, signature = read(sign_charter(keys.member, keys.node_id, body), body, source="x")
        signatures[signer] = signature
    path = tmp_path / "x.consortium"
    path.write_text(seal(body, signatures))
    with pytest.raises(ConfigError, match="same node key"):
        load_consortium(path)


def test_pins_are_compared_with_what_this_machine_makes(site: Founded) -> None:
    pinned = site.consortium.settings.pins
    assert pinned is not None
    own = {key: bytes.fromhex(getattr(pinned, key)) for key in ("schema", "initial", "code")}
    pins = site.consortium.pins_for(**own, payload_bytes=16)
    assert (pins.training, pins.payload_bytes) == (site.consortium.training, 16)
    for key, word in (("schema", "schema"), ("initial", "initial"), ("code", "task code")):
        with pytest.raises(ConfigError, match=word):
            site.consortium.pins_for(**{**own, key: bytes(32)}, payload_bytes=16)


def test_the_training_id_is_of_what_is_learned_and_how() -> None:
    base = training_id(b"c" * 32, learning(rounds=60))
    # a default written out is the same training; the consortium's name and start are not part
    assert base == training_id(b"c" * 32, charter())
    assert base == training_id(b"c" * 32, charter(start=StartSettings(members=2)))
    assert base != training_id(b"d" * 32, charter())
    assert base != training_id(b"c" * 32, learning(rounds=61))


def test_the_topology_digest_does_not_depend_on_order() -> None:
    one = Graph(("a", "b", "c"), [("a", "b"), ("b", "c")])
    other = Graph(("c", "b", "a"), [("c", "b"), ("b", "a")])
    assert topology_digest(one) == topology_digest(other)
    assert topology_digest(one) != topology_digest(Graph(("a", "b", "c"), [("a", "b"), ("a", "c")]))


def test_the_policy_is_what_the_charter_says() -> None:
    start = StartSettings(
        members=3, at_least=2, at_latest=datetime.datetime(2027, 3, 2, 8, tzinfo=datetime.UTC)
    )
    settings = LearningSettings(
        rounds=7, final_mixing=4, rule="median", f=1, wait="none", deadline_min_s=0.1, linger_s=1.5
    )
    made = policy(charter(learning=settings, start=start), PATH, EQUAL)
    assert (made.rounds, made.final_mixing, made.last_round) == (7, 4, 11)
    assert (made.rule, made.f, made.wait, made.deadline_min_s) == ("median", 1, "none", 0.1)
    assert (made.start_members, made.start_at_least) == (3, 2)
    assert made.start_by_ms == 1803974400000
    assert made.candidates == ()


def test_final_mixing_follows_the_graph() -> None:
    complete = Graph(("a", "b", "c"), [("a", "b"), ("b", "c"), ("a", "c")])
    names = tuple(f"n{i:02d}" for i in range(40))
    ring = Graph(names, list(zip(names, names[1:] + names[:1], strict=True)))
    assert default_final_mixing(complete, EQUAL) == 5
    assert default_final_mixing(ring, dict.fromkeys(names, 1)) == 50
    assert policy(charter(), PATH, EQUAL).final_mixing == default_final_mixing(PATH, EQUAL)
    assert policy(learning(final_mixing=0), PATH, EQUAL).final_mixing == 0


@pytest.mark.parametrize(("rounds", "kept"), [(80, (10, 20, 30, 40, 50, 60, 70, 80)), (2, (1, 2))])
def test_candidates_spread_over_the_training(rounds: int, kept: tuple[int, ...]) -> None:
    assert policy(learning(rounds=rounds, keep="agreed"), PATH, EQUAL).candidates == kept


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (StartSettings(members=4), "start.members"),
        (StartSettings(at_least=4), "start.at_least"),
        (StartSettings(members=2, at_least=3), "more than start.members"),
        (StartSettings(at_latest=datetime.datetime(2027, 3, 2)), "offset"),
    ],
)
def test_a_start_that_cannot_be(start: StartSettings, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        policy(charter(start=start), PATH, EQUAL)


def test_fill_members_keeps_what_people_wrote(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "a", "a")
    card = read_card(make_card(keys, addresses=["tcp://h:1"], samples=12), source="a")
    draft = (
        '# top\nname = "x"  # why x\n\n[task]\nname = "quadratic" # t\n\n'
        '[[member]]\nname = "a"  # our own\ncard = "a.card"\n'
    )
    text = fill_members(draft, [MailedCard(*card, "a")], source="x")
    for remark in ("# top", "# why x", "# t", "# our own"):
        assert remark in text
    filled = msgspec.toml.decode(text)
    assert filled["member"][0]["samples"] == 12
    assert "card" not in filled["member"][0]
    again = fill_members(text, [MailedCard(*card, "a")], source="x")
    assert again == text


@pytest.mark.parametrize(
    "draft", ['member = 3\nname = "x"', 'member = [{ name = "a" }]\nname = "x"', "= 3"]
)
def test_fill_members_refuses_other_shapes(draft: str) -> None:
    with pytest.raises(ConfigError):
        fill_members(draft, [], source="x")


def test_a_charter_that_is_no_text() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_charter(b"\xff\xfe", source="x")
