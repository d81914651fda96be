"""The one-shot service of a demonstration: one person with all keys founds the consortium.

It does so by the commands that members use, and never where volumes hold a consortium already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from node.compose_parts import PORT, SETTINGS, Options, node_toml, quoted
from node.compose_results import FINISHED
from node.types.settings import MqttSettings

INIT: Final = "init"
# Files of the broker in each member's volume, as node.toml there names them.
PASSWORD: Final = "mqtt.password"  # noqa: S105 - a file's name
AUTHORITY: Final = "ca.pem"
NODE_USER: Final = 10001  # of the node image


def founding(name: str, members: Sequence[str], options: Options, charter: str) -> list[str]:
    """Its lines. With ``options.broker`` it makes the broker's settings and passwords as well."""
    build = []
    if options.build is not None:
        build = [
            "    build:",
            f"      context: {quoted(options.build)}",
            "      target: node",
            "      args: { TORCH_INDEX: '${TORCH_INDEX:-}' }",
        ]
    volumes = [f"{charter}:{SETTINGS}/{name}.toml:ro"]
    volumes += [f"{member}:/members/{member}" for member in members]
    sealed, broker = f"{name}.consortium", options.broker
    if broker is None:
        address, settings = f"tcp://NAME:{PORT}", node_toml(sealed, PORT)
    else:
        address = f"mqtts://{broker.host}:{broker.port}"
        mqtt = MqttSettings(broker=address, user="NAME", password_file=PASSWORD, ca_file=AUTHORITY)
        settings = node_toml(sealed, None, mqtt)
        volumes.append(f"{broker.config}:/broker")
    script = _SCRIPT.format(
        members=" ".join(members),
        name=name,
        sealed=sealed,
        charter=f"{SETTINGS}/{name}.toml",
        address=address,
        settings=settings,
        user=NODE_USER,
        again="" if broker is None else _AGAIN,
        made="" if broker is None else _MADE.format(sealed=sealed),
        kept="" if broker is None else _KEPT.format(user=broker.user.partition(":")[0]),
        given="" if broker is None else _GIVEN.format(password=PASSWORD),
    )
    return [
        f"  {INIT}:                      # for demonstration: one person with all the keys",
        f"    image: {quoted(options.image)}",
        *build,
        '    user: "0:0"              # gives each volume to the user that nodes run as',
        "    network_mode: none",
        "    read_only: true",
        "    tmpfs: [/tmp]",
        "    healthcheck: { disable: true }",
        "    volumes:",
        *(f"      - {volume}" for volume in volumes),
        "    entrypoint:",
        "      - python",
        "      - -c",
        "      - |",
        *(f"        {line}".rstrip() for line in script.splitlines()),
    ]


_SCRIPT: Final = """\
import contextlib, io, os, shutil
from pathlib import Path
from node.cli.main import main

def grapevine(*words):
    if code := main([str(word) for word in words]):
        raise SystemExit(code)

def give(folder, user):
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)

members = "{members}".split()
seats = [Path("/members", member) for member in members]
{again}if (seats[-1] / "{sealed}").exists():
    print("init: founded before; the nodes go on from their volumes")
    raise SystemExit
print("init: FOR DEMONSTRATION: makes the keys of all members, signs for each", flush=True)
os.umask(0o077)
os.chdir("/tmp")
shutil.copy("{charter}", "{name}.toml")
with contextlib.redirect_stdout(io.StringIO()):
    for member in members:
        grapevine("keygen", "--name", member, "--state", member)
        address = "{address}".replace("NAME", member)
        grapevine("id", "--state", member, "--address", address, "--card", f"{{member}}.card")
    cards = [word for member in members for word in ("--card", f"{{member}}.card")]
    grapevine("consortium", "new", "{name}.toml", *cards)
    for member in members:
        words = ("--state", member, "--out", f"{{member}}.sig")
        grapevine("consortium", "sign", "{name}.toml", *words)
    signed = [f"{{member}}.sig" for member in members]
    grapevine("consortium", "seal", "{name}.toml", *signed, "--out", "{sealed}")
{made}{kept}for member, seat in zip(members, seats):
    Path(member, "node.toml").write_text({settings!r}.replace("NAME", member))
    shutil.copy("{sealed}", member)
{given}    shutil.copytree(member, seat, dirs_exist_ok=True)
    give(seat, {user})
grapevine("consortium", "verify", "{sealed}")
print("init: done; the members' keys lie in their volumes")"""

_AGAIN: Final = f"""\
Path("/broker/{FINISHED}").unlink(missing_ok=True)
"""
_MADE: Final = """\
    grapevine("broker", "{sealed}", "--out", "broker")
"""
_KEPT: Final = """\
shutil.copytree("broker/mosquitto", "/broker", dirs_exist_ok=True)
give(Path("/broker"), {user})
"""
_GIVEN: Final = """\
    shutil.copy(f"broker/members/{{member}}.password", Path(member, "{password}"))
    shutil.copy("broker/members/ca.pem", member)
"""
