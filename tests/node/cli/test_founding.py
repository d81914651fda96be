"""Founding by files: the flow of the README, and everything that can be wrong on the way."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from node.cli.main import main

Refused = Callable[..., str]


def test_the_whole_flow(founded, do) -> None:
    verified = do("consortium", "verify", founded.sealed, "--json").json
    assert verified["name"] == "heart"
    assert len(verified["words"]) == 6
    shown = do("consortium", "show", founded.sealed, "--json").json
    assert shown["words"] == verified["words"]
    assert [m["neighbours"] for m in shown["members"]] == [["clinic-b"], ["clinic-a"]]
    assert all(m["samples"] == 100 for m in shown["members"])  # from the task's own split
    assert "clinic-a: 100 samples" in do("consortium", "show", founded.sealed).out
    text = do("consortium", "show", founded.sealed, "--charter").out
    assert text == founded.charter.read_text()
    assert "# who talks to whom" in text


def test_new_can_be_run_again(site, do) -> None:
    first = do("consortium", "new", site.charter, *site.cards, "--json").json
    again = do("consortium", "new", site.charter, *site.cards, "--json").json
    assert first == again


def test_members_of_the_draft_name_their_cards(site, do) -> None:
    with site.charter.open("a") as file:
        for name in site.names:
            file.write(f'[[member]]\nname = "{name}"  # ours\ncard = "{name}.card"\n')
    made = do("consortium", "new", site.charter, "--json").json
    assert made["members"] == list(site.names)
    assert "# ours" in site.charter.read_text()


def test_keys_are_for_the_owner_alone_and_never_replaced(site, refused) -> None:
    for file in ("member.key", "node.key"):
        assert stat.S_IMODE((site.state("clinic-a") / file).stat().st_mode) == 0o600
    why = refused("keygen", "--name", "clinic-a", "--state", site.state("clinic-a"))
    assert "never replaced" in why


def test_a_key_that_others_can_read_is_refused(site, refused) -> None:
    (site.state("clinic-a") / "node.key").chmod(0o644)
    assert "chmod 600" in refused("id", "--state", site.state("clinic-a"))


def test_a_passphrase_comes_from_a_file(tmp_path: Path, do, refused, monkeypatch) -> None:
    word, wrong, state = tmp_path / "word", tmp_path / "wrong", tmp_path / "state"
    word.write_text("open sesame\nsecond line\n")
    wrong.write_text("open barley\n")
    do("keygen", "--name", "a", "--state", state, "--passphrase-file", word)
    assert "passphrase" in refused("id", "--state", state)
    assert "not the right one" in refused("id", "--state", state, "--passphrase-file", wrong)
    assert "cannot be read" in refused("id", "--state", state, "--passphrase-file", tmp_path / "x")
    monkeypatch.setenv("GRAPEVINE_PASSPHRASE_FILE", str(word))
    do("id", "--state", state)
    wrong.write_text("\n")
    assert "is empty" in refused("id", "--state", state, "--passphrase-file", wrong)


@pytest.mark.parametrize("name", ["Clinic A", "-a", "a" * 41, "", "ä", "a/b"])
def test_bad_names(tmp_path: Path, refused, name: str) -> None:
    assert "name" in refused("keygen", f"--name={name}", "--state", tmp_path / "s")


@pytest.mark.parametrize("address", ["host:7400", "tcp://host", "tcp://host:99999", "http://h:1"])
def test_bad_addresses(site, refused, address: str) -> None:
    state, card = site.state("clinic-a"), site.card("clinic-a")
    assert "address" in refused("id", "--state", state, "--address", address, "--card", card)


def test_an_address_without_a_card_is_a_mistake(site, refused) -> None:
    why = refused("id", "--state", site.state("clinic-a"), "--address", "tcp://h:1")
    assert "--card" in why


def new(site, refused: Refused, *more: object) -> str:
    before = site.charter.read_bytes()
    why = refused("consortium", "new", site.charter, *site.cards, *more)
    assert site.charter.read_bytes() == before
    return why


def test_a_card_listed_twice(site, refused) -> None:
    assert "listed twice" in new(site, refused, "--card", site.card("clinic-a"))


def test_two_cards_of_one_member(site, refused) -> None:
    other = site.path / "other.card"
    other.write_text(site.card("clinic-a").read_text())
    assert "has a card already" in new(site, refused, "--card", other)


def test_a_card_of_one_member_under_anothers_name(site, do, refused) -> None:
    site.charter.write_text(
        site.charter.read_text() + '[[member]]\nname = "clinic-a"\ncard = "clinic-b.card"\n'
    )
    why = refused("consortium", "new", site.charter)
    assert "is the card of 'clinic-b'" in why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("name =", "nane ="), "did you mean 'name'"),
        (("rounds = 3", "roundz = 3"), "did you mean 'rounds'"),
        (('"path"', '"paht"'), "did you mean 'path'"),
        (('"quadratic"', '"quadratc"'), "did you mean 'quadratic'"),
        (("rounds = 3", "rounds = 0"), "rounds"),
        (("rounds = 3", 'rounds = 3\nrule = "median"\nf = 1'), "needs 3 models"),
        (("rounds = 3", 'rounds = 3\noptimizer = "sdg"'), "sgd"),
        (("rounds = 3", "rounds = 3\ndeadline_min_s = 60.0"), "deadline_min_s"),
        (('name = "heart"', 'name = "heart"\nstart = { members = 3 }'), "there are 2 members"),
        (('name = "heart"', 'name = "heart"\nstart = { at_latest = 2027-01-01T00:00:00 }'), "Z"),
        (('name = "heart"', 'name = "heart"\nstart = { at_least = 2 }'), "there is none"),
        (("rounds = 3", "rounds = 3\nlocal_steps = 2\nlocal_epochs = 2"), "keep one"),
        (('name = "heart"', 'name = "heart"\nstart = { after_s = 1.0 }'), "for scenarios"),
        (('name = "heart"', 'name = "heart"\nshare_metrics = ["auroc"]'), "unknown key"),
        (('name = "heart"', 'name = "heart"\nlimits = { samples_max = 99 }'), "1 to 99"),
        (('{ kind = "path" }', '{ kind = "path", names = ["clinic-a", "x"] }'), "'x'"),
        (("rounds = 3", "rounds = = 3"), "not valid TOML"),
    ],
)
def test_a_draft_with_a_mistake(site, refused, change: tuple[str, str], why: str) -> None:
    text = site.charter.read_text()
    assert change[0] in text
    site.charter.write_text(text.replace(*change))
    assert why in new(site, refused)


def test_one_member_is_no_consortium(site, refused) -> None:
    why = refused("consortium", "new", site.charter, "--card", site.card("clinic-a"))
    assert "at least 2" in why


def test_neighbours_that_cannot_reach_each_other(site, do, refused) -> None:
    for name in site.names:
        do("id", "--state", site.state(name), "--card", site.card(name))
    assert "both only dial out" in new(site, refused)


@pytest.mark.parametrize("met", [True, False])
def test_members_that_meet_at_a_broker_need_no_port(site, do, refused, met) -> None:
    at = ["--address", "mqtts://broker.example"]
    for name in site.names:
        there = at if met or name != "clinic-b" else []
        do("id", "--state", site.state(name), "--card", site.card(name), *there)
    if met:
        do("consortium", "new", site.charter, *site.cards)
    else:
        assert "or both a broker" in new(site, refused)


@pytest.mark.parametrize("what", ["key", "toml", "nothing", "binary", "cut", "folder"])
def test_a_card_of_the_wrong_kind(site, refused, what: str) -> None:
    wrong = site.path / "wrong.card"
    text = site.card("clinic-b").read_text()
    match what:
        case "key":
            wrong.write_text((site.state("clinic-a") / "node.key").read_text())
        case "toml":
            wrong.write_text(site.charter.read_text())
        case "binary":
            wrong.write_bytes(bytes(range(256)) * 10)
        case "cut":
            wrong.write_text(text[: len(text) // 2])
        case "folder":
            wrong.mkdir()
    assert "wrong.card" in new(site, refused, "--card", wrong)


def test_a_card_changed_by_a_letter(site, refused) -> None:
    card = site.card("clinic-a")
    lines = card.read_text().splitlines()
    lines[2] = ("B" if lines[2][0] != "B" else "C") + lines[2][1:]
    card.write_text("\n".join(lines))
    assert "clinic-a.card" in new(site, refused)


def sign(site, name: str) -> list[object]:
    out = site.signature(name)
    return ["consortium", "sign", site.charter, "--state", site.state(name), "--out", out]


def test_a_charter_changed_after_signing(site, do, refused) -> None:
    do("consortium", "new", site.charter, *site.cards)
    for name in site.names:
        do(*sign(site, name))
    site.charter.write_text(site.charter.read_text() + "\n# a harmless remark\n")
    signatures = [site.signature(name) for name in site.names]
    why = refused("consortium", "seal", site.charter, *signatures, "--out", site.sealed)
    assert "changed after signing" in why
    assert not site.sealed.exists()


def test_missing_doubled_and_foreign_signatures(site, do, refused, tmp_path: Path) -> None:
    do("consortium", "new", site.charter, *site.cards)
    for name in site.names:
        do(*sign(site, name))
    a, b = (site.signature(name) for name in site.names)

    def seal(*files: object) -> str:
        return refused("consortium", "seal", site.charter, *files, "--out", site.sealed)

    assert "not signed by clinic-b" in seal(a)
    assert "given already" in seal(a, a)
    assert "a card where a signature is expected" in seal(a, site.card("clinic-b"))
    assert "no such file" in seal(a, b, tmp_path / "absent.sig")
    do("keygen", "--name", "mallory", "--state", tmp_path / "m")
    why = refused(
        "consortium", "sign", site.charter, "--state", tmp_path / "m", "--out", tmp_path / "m.sig"
    )
    assert "is not a member" in why


def test_sign_refuses_what_it_should_not_vouch_for(site, do, refused) -> None:
    assert "at least 2" in refused(*sign(site, "clinic-a"))  # the draft before `new`
    do("consortium", "new", site.charter, *site.cards)
    text = site.charter.read_text()
    for old, new_, why in [
        ("samples = 100", "samples = 0", "1 to"),
        ("127.0.0.1:7400", "127.0.0.1:7409", "the signed card says"),
        ('name = "clinic-a"', 'name = "clinic-b"', "clinic-b"),
        ('"path"', '"star"', None),
        ("[pins]", "[pinz]", "did you mean 'pins'"),
    ]:
        site.charter.write_text(text.replace(old, new_, 1))
        if why is None:  # a path of two and a star of two are the same graph
            do(*sign(site, "clinic-a"))
        else:
            assert why in refused(*sign(site, "clinic-a"))
    site.charter.write_text(text[: text.index("[pins]")])
    assert "no [pins]" in refused(*sign(site, "clinic-a"))
    site.charter.write_text(text)
    (site.state("clinic-a") / "member.key").unlink()
    assert "member key is not here" in refused(*sign(site, "clinic-a"))


@pytest.mark.parametrize("key", ["schema", "initial", "code"])
def test_a_pin_that_this_machine_cannot_reproduce_is_not_signed(site, do, refused, key) -> None:
    do("consortium", "new", site.charter, *site.cards)
    text = site.charter.read_text()
    start = text.index(f'{key} = "') + len(key) + 4
    site.charter.write_text(text[:start] + "0123456789abcdef" + text[start + 16 :])
    why = refused(*sign(site, "clinic-a"))
    assert f"pins.{key}" in why
    assert "the charter pins 0123456789abcdef" in why


def test_a_topology_file_changed_after_new(site, do, refused) -> None:
    graph = site.path / "graph.toml"
    graph.write_text('kind = "path"\n')
    site.charter.write_text(
        site.charter.read_text().replace('{ kind = "path" }', '{ file = "graph.toml" }')
    )
    third = site.path / "clinic-c"
    do("keygen", "--name", "clinic-c", "--state", third)
    card = site.card("clinic-c")
    do("id", "--state", third, "--address", "tcp://127.0.0.1:7405", "--card", card)
    do("consortium", "new", site.charter, *site.cards, "--card", card)
    graph.write_text('kind = "complete"\n')
    assert "pins.topology" in refused(*sign(site, "clinic-a"))


@pytest.mark.parametrize("what", ["card", "charter", "cut", "nothing"])
def test_verify_of_the_wrong_thing(founded, refused, what: str) -> None:
    path = founded.path / "x.consortium"
    match what:
        case "card":
            path.write_text(founded.card("clinic-a").read_text())
        case "charter":
            path.write_text(founded.charter.read_text())
        case "cut":
            path.write_text(founded.sealed.read_text()[:2000])
    assert "x.consortium" in refused("consortium", "verify", path)


def test_an_armoured_file_is_no_charter(founded, refused) -> None:
    assert "armoured" in refused("consortium", "new", founded.sealed)


def test_every_command_teaches_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        *(["keygen"], ["id"], ["consortium"], ["start"], ["stop"], ["status"], ["topology"]),
        *(["version"], ["consortium", "new"], ["consortium", "sign"], ["consortium", "seal"]),
        *(["consortium", "show"], ["consortium", "verify"]),
    ):
        assert main([*words, "--help"]) == 0
        assert "Example: grapevine " + words[0] in capsys.readouterr().out
