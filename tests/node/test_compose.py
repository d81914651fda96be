"""What `grapevine compose` writes, read back as YAML: who can reach whom, and nobody else."""

from __future__ import annotations

import ipaddress
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs

from node import compose
from node import compose_parts as parts
from node.errors import ConfigError
from node.strict import from_toml
from node.types.settings import (
    CharterSettings,
    MemberDraft,
    MqttSettings,
    NodeSettings,
    TaskSettings,
)
from topology.generate import build
from topology.graph import Graph
from topology.settings import TopologySettings

ROOT = Path(__file__).parents[2]
RING = build(TopologySettings(kind="ring", nodes=5), source="ring")
OPTIONS = parts.Options(command="grapevine compose heart.consortium")


def charter(addresses: dict[str, tuple[str, ...]]) -> CharterSettings:
    members = tuple(MemberDraft(name=name, addresses=at) for name, at in addresses.items())
    ring = TopologySettings(kind="ring")
    return CharterSettings(
        name="heart", topology=ring, task=TaskSettings(name="digits"), member=members
    )


def sites(**addresses: str | tuple[str, ...]) -> dict[str, compose.Site]:
    listed = {k: (v,) if isinstance(v, str) else v for k, v in addresses.items()}
    return compose.sites(charter(listed), source="heart.toml")


def whole(graph: Graph = RING, options: parts.Options = OPTIONS) -> dict[str, Any]:
    where = sites(**{name: f"tcp://gv.{name}.example:7411" for name in graph.nodes})
    text = compose.whole("heart", graph, where, options, sealed="heart.consortium")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_neighbours_share_a_network_and_others_none() -> None:
    made = whole()
    assert list(made["services"]) == list(RING.nodes)
    for a, b in itertools.combinations(RING.nodes, 2):
        shared = made["services"][a]["networks"].keys() & made["services"][b]["networks"].keys()
        assert len(shared) == ((a, b) in RING.edges)
    # each under the name on its card, in every network that it is in
    for name in RING.nodes:
        entries = made["services"][name]["networks"].values()
        assert [entry["aliases"] for entry in entries] == [[f"gv.{name}.example"]] * 2
    assert all(network["internal"] is True for network in made["networks"].values())


def test_networks_are_small_and_apart() -> None:
    dense = build(TopologySettings(kind="complete", nodes=12), source="complete")
    networks = whole(dense)["networks"]
    assert len(networks) == 66  # twice what the engine's own pools would make
    found = [ipaddress.ip_network(n["ipam"]["config"][0]["subnet"]) for n in networks.values()]
    pool = ipaddress.ip_network(parts.SUBNETS)
    assert all(one.prefixlen == 29 and one.subnet_of(pool) for one in found)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(found, 2))


def test_a_range_too_small_for_the_edges_is_refused() -> None:
    pool = parts.read_pool("10.9.0.0/27")
    assert len(parts.edge_subnets(pool, 4)) == 4
    with pytest.raises(ConfigError, match=r"room for 4 networks.*there are 5 edges"):
        parts.edge_subnets(pool, 5)
    assert [str(one) for one in parts.edge_subnets(parts.read_pool("10.9.0.8/29"), 1)] == [
        "10.9.0.8/29"
    ]
    with pytest.raises(ConfigError, match="room for 0 networks"):
        parts.edge_subnets(parts.read_pool("10.9.0.0/30"), 1)


@pytest.mark.parametrize("text", ["8.8.0.0/16", "fd00::/64", "10.0.0.1/8", "large", ""])
def test_a_range_that_is_not_private_addresses_is_refused(text) -> None:
    with pytest.raises(ConfigError, match=r"--subnets .*such as 10\.203\.0\.0/16"):
        parts.read_pool(text)


def test_every_node_is_locked_down_and_keeps_one_volume() -> None:
    made = whole()
    for name, service in made["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service
        assert "privileged" not in service
        assert service["volumes"][0] == f"{name}:/var/lib/grapevine"
        assert made["volumes"][name] == {"name": f"heart-{name}", "external": True}


def test_keys_in_folders_are_used_by_their_owner() -> None:
    states = {name: parts.State(f"../states/{name}", 1000, 1001) for name in RING.nodes}
    options = parts.Options(command="grapevine compose x", states=states)
    made = whole(options=options)
    assert made["services"]["n3"]["volumes"][0] == "../states/n3:/var/lib/grapevine"
    assert made["services"]["n3"]["user"] == "1000:1001"
    assert "volumes" not in made


@pytest.mark.parametrize(
    ("addresses", "wrong"),
    [
        ({"a": "mqtts://b.example"}, "'a': it is reached through a broker alone, mqtts://b.exampl"),
        ({"a": "tcp://127.0.0.1:7400"}, r"member 'a': its address tcp://127.0.0.1:7400 names no"),
        ({"a": "tcp://[fd00::1]:7400"}, "names no host"),
        ({"a": "tcp://localhost:7400"}, "names no host"),
        ({"a": "tcp://x.example:1", "b": "tcp://X.example:2"}, "'a' and 'b' are both reached at"),
        ({"a": ("tcp://x.example:1", "tcp://y.example:2")}, "ports 1 and 2"),
    ],
)
def test_members_that_no_container_can_be_are_refused(addresses, wrong) -> None:
    with pytest.raises(ConfigError, match=wrong):
        sites(**addresses)


def test_who_only_dials_out_gets_no_name_and_does_not_listen() -> None:
    made = sites(a=(), b="tcp://b.example:7400")
    assert made["a"] == compose.Site("a", (), None)
    assert "listen" not in parts.node_toml("heart.consortium", made["a"].port)
    assert 'listen = "0.0.0.0:7400"' in parts.node_toml("heart.consortium", made["b"].port)


def test_one_member_alone_publishes_the_ports_of_its_card() -> None:
    at = ("tcp://gv.a.example:7400", "tcp://10.1.2.3:9000")
    text = compose.alone("heart", "clinic-a", at, OPTIONS, sealed="heart.consortium")
    made = yaml.safe_load(text)
    assert list(made["services"]) == ["clinic-a"]
    assert made["services"]["clinic-a"]["ports"] == ["7400:7400", "9000:7400"]
    assert made["volumes"] == {"clinic-a": {"name": "heart-clinic-a", "external": True}}
    assert "networks" not in made
    inward = yaml.safe_load(compose.alone("heart", "clinic-b", (), OPTIONS, sealed="h"))
    assert "ports" not in inward["services"]["clinic-b"]


def test_a_demonstration_waits_for_its_keys_and_says_what_it_is() -> None:
    text = compose.demonstration("heart", RING, OPTIONS, charter="./heart.toml")
    made = yaml.safe_load(text)
    assert "FOR DEMONSTRATION" in text.split("x-node")[0]
    init = made["services"].pop("init")
    assert init["network_mode"] == "none"
    assert {volume.split(":")[0] for volume in init["volumes"]} == {*RING.nodes, "./heart.toml"}
    for name in RING.nodes:
        waits = made["services"][name]["depends_on"]
        assert waits == {"init": {"condition": "service_completed_successfully"}}
    compile(init["entrypoint"][2], "init", "exec")
    assert "$" not in init["entrypoint"][2]  # Compose would read it as a variable


@pytest.mark.parametrize("name", ["init", "results"])
def test_a_member_called_like_another_service_is_refused(name: str) -> None:
    graph = Graph([name, "b"], [(name, "b")])
    with pytest.raises(ConfigError, match=f"a member is called '{name}'"):
        compose.demonstration("heart", graph, OPTIONS, charter="./heart.toml")


# ── at a broker ─────────────────────────────────────────────────────────────────────────────────

SITE = parts.BrokerSite(
    host="broker.example",
    port=8883,
    config="./broker/mosquitto",
    user="1000:1001",
    authority="./broker/members/ca.pem",
    passwords={name: f"./broker/members/{name}.password" for name in RING.nodes},
)
AT_BROKER = parts.Options(command="grapevine compose heart.consortium --broker", broker=SITE)


def test_at_a_broker_nobody_shares_a_network_with_anybody_else() -> None:
    text = compose.whole("heart", RING, {}, AT_BROKER, sealed="heart.consortium")
    made = yaml.safe_load(text)
    broker = made["services"].pop("broker")
    assert list(made["services"]) == list(RING.nodes)
    for a, b in itertools.combinations(RING.nodes, 2):
        assert not made["services"][a]["networks"].keys() & made["services"][b]["networks"].keys()
    for service in made["services"].values():
        (network,) = service["networks"]
        assert broker["networks"][network] == {"aliases": ["broker.example"]}
    assert len(made["networks"]) == 5
    assert all(network["internal"] is True for network in made["networks"].values())


def test_the_broker_is_locked_down_and_members_wait_for_it() -> None:
    made = yaml.safe_load(compose.whole("heart", RING, {}, AT_BROKER, sealed="heart.consortium"))
    broker = made["services"].pop("broker")
    assert broker["read_only"] is True
    assert broker["cap_drop"] == ["ALL"]
    assert broker["user"] == "1000:1001"
    assert broker["volumes"] == ["./broker/mosquitto:/mosquitto/config:ro"]
    assert "22B3" in broker["healthcheck"]["test"][3]  # 8883
    for service in made["services"].values():
        assert service["depends_on"] == {"broker": {"condition": "service_healthy"}}


def test_each_member_is_given_its_own_password_as_a_secret() -> None:
    made = yaml.safe_load(compose.whole("heart", RING, {}, AT_BROKER, sealed="heart.consortium"))
    for name in RING.nodes:
        service = made["services"][name]
        assert service["secrets"] == [{"source": name, "target": "mqtt"}]
        assert made["secrets"][name] == {"file": f"./broker/members/{name}.password"}
        assert "./broker/members/ca.pem:/etc/grapevine/ca.pem:ro" in service["volumes"]
        assert "environment" not in service
    text = parts.node_toml(
        "heart.consortium", None, compose.at_broker("n0", "mqtts://b.example", authority="ca.pem")
    )
    settings = parse_settings(text)
    assert settings.listen is None
    assert settings.mqtt == MqttSettings(
        broker="mqtts://b.example",
        user="n0",
        password_file="/run/secrets/mqtt",
        ca_file="ca.pem",
    )


def test_a_demonstration_makes_the_brokers_settings_too() -> None:
    options = structs.replace(AT_BROKER, broker=compose.demonstration_broker())
    text = compose.demonstration("heart", RING, options, charter="./heart.toml")
    made = yaml.safe_load(text)
    init = made["services"].pop("init")
    compile(init["entrypoint"][2], "init", "exec")
    assert "$" not in init["entrypoint"][2]
    assert "broker:/broker" in init["volumes"]
    broker = made["services"].pop("broker")
    assert broker["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
    assert broker["volumes"] == ["broker:/mosquitto/config:ro"]
    results = made["services"].pop("results")
    assert "broker:/broker" in results["volumes"]
    for service in made["services"].values():
        assert sorted(service["depends_on"]) == ["broker", "init"]
        assert not [one for one in service["volumes"] if one.startswith("broker")]


def test_a_demonstration_ends_when_all_have_finished() -> None:
    at_broker = structs.replace(AT_BROKER, broker=compose.demonstration_broker())
    for options in (OPTIONS, at_broker):
        text = compose.demonstration("heart", RING, options, charter="./heart.toml")
        services = yaml.safe_load(text)["services"]
        results = services["results"]
        compile(results["entrypoint"][2], "results", "exec")
        assert "$" not in results["entrypoint"][2]
        assert results["network_mode"] == "none" and "restart" not in results
        assert results["depends_on"] == {n: {"condition": "service_started"} for n in RING.nodes}
        members = [f"{n}:/members/{n}:ro" for n in RING.nodes]
        assert [one for one in results["volumes"] if not one.startswith("broker")] == members
    # both look at the same file, and `init` takes it away before the next time
    assert "/broker/finished" in results["entrypoint"][2]
    assert "[ -e /mosquitto/config/finished ]" in services["broker"]["command"][2]
    assert 'Path("/broker/finished").unlink' in services["init"]["entrypoint"][2]
    kept = compose.whole("heart", RING, {}, AT_BROKER, sealed="heart.consortium")
    assert "command" not in yaml.safe_load(kept)["services"]["broker"], "a real one stays"


def test_who_has_not_finished_is_named_while_results_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = compose.demonstration("heart", RING, OPTIONS, charter="./heart.toml")
    script = yaml.safe_load(text)["services"]["results"]["entrypoint"][2]
    script = script.replace("/members", str(tmp_path))
    slept: list[float] = []

    def leave(member: str, ended: str) -> None:
        result = {"ended": ended, "accuracy": 0.95, "auroc": None, "sent_bytes": 2_000_000}
        (tmp_path / member).mkdir(exist_ok=True)
        (tmp_path / member / "result.json").write_text(json.dumps(result))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 70:
            leave(late, "finished")

    late, *others = RING.nodes
    for member in others:
        leave(member, "finished")
    leave(late, "stopped")  # it has a result, but goes on when it is started again
    monkeypatch.setattr("time.sleep", sleep)
    exec(compile(script, "results", "exec"), {})
    waiting = [f"after {at} s not finished yet: {late}" for at in (30, 60)]
    head, figures = "all have finished; ", "accuracy 0.950, auroc -; sent 2.00 MB"
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == waiting and lines[2].startswith(head)
    assert lines[3:] == [f"{member:12} {figures}" for member in RING.nodes]


def test_a_member_called_broker_is_refused_where_there_is_one() -> None:
    graph = Graph(["broker", "b"], [("broker", "b")])
    compose.demonstration("heart", graph, OPTIONS, charter="./heart.toml")
    options = structs.replace(OPTIONS, broker=compose.demonstration_broker())
    with pytest.raises(ConfigError, match="a member is called 'broker'"):
        compose.demonstration("heart", graph, options, charter="./heart.toml")
    with pytest.raises(ConfigError, match="a member is called 'broker'"):
        compose.whole("heart", graph, {}, options, sealed="heart.consortium")


def test_a_range_too_small_for_all_members_is_refused() -> None:
    options = structs.replace(AT_BROKER, subnets=parts.read_pool("10.9.0.0/27"))
    with pytest.raises(ConfigError, match=r"room for 4 networks.*there are 5 members"):
        compose.whole("heart", RING, {}, options, sealed="heart.consortium")


def test_one_member_at_a_broker_expects_its_password_beside_it() -> None:
    at = ("tcp://gv.a.example:7400", "mqtts://broker.example")
    made = yaml.safe_load(compose.alone("heart", "clinic-a", at, OPTIONS, sealed="h"))
    assert made["services"]["clinic-a"]["ports"] == ["7400:7400"]
    assert made["services"]["clinic-a"]["secrets"] == ["mqtt"]
    assert made["secrets"] == {"mqtt": {"file": "./clinic-a.password"}}
    settings = parse_settings(compose.settings_alone("clinic-a", at, sealed="h"))
    assert settings.listen == "0.0.0.0:7400"
    assert settings.mqtt is not None
    assert settings.mqtt.broker == "mqtts://broker.example"
    inward = parse_settings(compose.settings_alone("clinic-a", at[1:], sealed="h"))
    assert inward.listen is None
    made = yaml.safe_load(compose.alone("heart", "clinic-a", at[1:], OPTIONS, sealed="h"))
    assert "ports" not in made["services"]["clinic-a"]


def parse_settings(text: str) -> NodeSettings:
    return from_toml(text, NodeSettings, source="node.toml")
