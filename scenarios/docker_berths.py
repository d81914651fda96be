"""Containers, networks and volumes of one run on Docker: made, joined, cut, and all taken away.

A life of a node has a berth, a container; its disk is a volume, an edge a network of its own, small
and closed, so that who is not a neighbour cannot be reached. All are called grapevine-RUN-… and
carry the label grapevine.run=RUN: by these alone they are found again, and nothing else is touched.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import itertools
import json
import secrets
import signal
import tarfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from node.compose_parts import EDGE_PREFIX, edge_network
from node.errors import ConfigError, GrapevineError
from scenarios.docker_attached import Attached
from scenarios.docker_broker import BROKER, BROKER_IMAGE
from scenarios.docker_command import docker, names, together
from scenarios.nursery import Child

HOME: Final = "/var/lib/grapevine"  # where a container has its volume
USER: Final = 10001  # whom the image runs as
CHILD: Final = "scenarios.docker_child"  # what python runs in a container
LABEL: Final = "grapevine.run"
# Apart from the range that compose files take, and tried in parts: several runs may go on at once.
POOL: Final = ipaddress.IPv4Network("10.204.0.0/14")
CLEAN_S: Final = 60.0
_KILLED: Final = 137  # how the docker command says that a container died of SIGKILL
_VERBS: Final = {
    signal.SIGKILL: "kill",
    signal.SIGSTOP: "pause",
    signal.SIGCONT: "unpause",
}

_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)

Edge = tuple[str, str]


class Berth(Struct, frozen=True, eq=False):
    """A container for one life of a node. ``go``: the file in its volume for which it waits."""

    node: str
    container: str
    volume: str
    go: str


class Berths:
    """What a run has on the engine. ``close`` takes all of it away, whatever state it is in."""

    def __init__(self, image: str, edges: Sequence[Edge]) -> None:
        self.image, self.edges = image, tuple(edges)
        self.run = f"grapevine-{secrets.token_hex(4)}"
        self._label = f"{LABEL}={self.run}"
        self._subnets: dict[Edge, ipaddress.IPv4Network] = {}
        self._at: dict[str, Berth] = {}  # node -> its berth that is in its networks
        self._cut: set[Edge] = set()
        self._attached: dict[int, tuple[Berth, Child, Attached]] = {}
        self._serial = itertools.count()

    # ── from nothing to containers, and back ────────────────────────────────────────────────

    def make(self, node: str, volume: str | None = None) -> Berth:
        """A new container, in no network yet. volume: of an earlier life; else a new one."""
        berth = self._berth(node, volume)
        self._create(berth, self.image, "python", "-m", CHILD, f"{HOME}/{berth.go}")
        return berth

    def make_broker(self, settings: bytes) -> Berth:
        """The container in which mosquitto will run, with its settings."""
        berth = self._berth(BROKER, None)
        self._create(berth, BROKER_IMAGE, "mosquitto", "-c", f"{HOME}/mosquitto.conf")
        self.put(berth, {"mosquitto.conf": settings})
        return berth

    def _berth(self, node: str, volume: str | None) -> Berth:
        name = f"{self.run}-{node}.{next(self._serial)}"
        if volume is None:
            docker("volume", "create", "--label", self._label, name)
        return Berth(node, name, volume or name, f"go-{name.rpartition('.')[2]}")

    def _create(self, berth: Berth, image: str, *command: str) -> None:
        words = ["create", "--name", berth.container, "--label", self._label]
        words += ["--hostname", berth.node, "--user", f"{USER}:{USER}"]
        words += ["--read-only", "--tmpfs", "/tmp", "--init", "--cap-drop", "ALL"]  # noqa: S108
        words += ["--security-opt", "no-new-privileges", "--no-healthcheck"]
        words += ["--volume", f"{berth.volume}:{HOME}", "--entrypoint", command[0]]
        docker(*words, "--network", "none", image, *command[1:])
        docker("network", "disconnect", "none", berth.container)

    def join(self, berth: Berth) -> None:
        """Put it into the networks of its node's edges, but those that are cut; any earlier berth
        of the node, which runs no more, is taken away.
        """
        before = self._at.get(berth.node)
        if before is berth:
            return
        if before is not None:
            self.leave(before)
        self._at[berth.node] = berth
        mine = (edge for edge in self.edges if berth.node in edge)
        linked = [edge for edge in mine if edge not in self._cut or berth.node != edge[0]]
        together(lambda edge: self._connect(edge, berth.node), linked)

    def leave(self, berth: Berth) -> None:
        """Take the container away, but not its volume."""
        docker("rm", "--force", berth.container)

    def of(self, child: Child) -> Berth:
        """Where a process runs, or ran."""
        return self._attached[child.key][0]

    def at(self, node: str) -> Berth:
        """The berth of the node's newest life."""
        return self._at[node]

    def close(self) -> None:
        """Take away what carries this run's label. Ctrl-C and SIGTERM wait meanwhile."""
        with undisturbed():
            until = time.monotonic() + CLEAN_S
            while not self._swept():
                if time.monotonic() > until:
                    raise GrapevineError(f"docker: what is labelled {self._label} stays behind")
            for _, child, attached in self._attached.values():
                attached.wait()
                child.code = -signal.SIGKILL if child.code is None else child.code

    def _swept(self) -> bool:
        """Whether nothing is left. False where the engine refused something, or may be asked again.

        A command that was interrupted may have made something after it was looked for.
        """
        try:
            found = names(("ps", "--all"), self._label)
            if found:
                docker("rm", "--force", "--volumes", *found)
            for kind in ("network", "volume"):
                if these := names((kind, "ls"), self._label):
                    docker(kind, "rm", *these)
                    found += these
        except GrapevineError:
            return False
        return not found

    # ── networks ────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Make a network of eight addresses for each edge, where the engine has none yet.

        Another run may take the same at this very moment: then the next ones are tried.
        """
        taken = _taken()
        free = (one for one in POOL.subnets(new_prefix=EDGE_PREFIX) if not _within(one, taken))
        for edge in self.edges:
            self._subnets[edge] = self._make_network(edge, free)

    def cut(self, edges: Sequence[Edge]) -> None:
        """Take the first end of each edge out of its network: neither reaches the other then."""
        self._cut |= set(edges)
        together(self._disconnect, edges)

    def mend(self) -> None:
        """Put back every end that was taken out, at the address that it had."""
        mended, self._cut = sorted(self._cut), set()
        together(lambda edge: self._connect(edge, edge[0]), mended)

    def _disconnect(self, edge: Edge) -> None:
        if edge[0] in self._at:
            docker("network", "disconnect", self._network(edge), self._at[edge[0]].container)

    def _connect(self, edge: Edge, node: str) -> None:
        if node not in self._at:
            return  # it is still to come, and will be put into its networks then
        address = self._subnets[edge][2 + edge.index(node)]
        words = ["network", "connect", "--alias", node, "--ip", str(address)]
        docker(*words, self._network(edge), self._at[node].container)

    def _network(self, edge: Edge) -> str:
        return f"{self.run}-{edge_network(*edge)}"

    def _make_network(
        self, edge: Edge, free: Iterator[ipaddress.IPv4Network]
    ) -> ipaddress.IPv4Network:
        for subnet in free:
            words = ["--internal", "--label", self._label, "--subnet", str(subnet)]
            try:
                docker("network", "create", *words, self._network(edge))
            except GrapevineError as error:
                if "overlap" not in str(error):
                    raise
            else:
                return subnet
        raise ConfigError(f"docker: {POOL} has no room for {len(self.edges)} networks any more")

    # ── processes, as scenarios.nursery has them ────────────────────────────────────────────

    def start(self, berth: Berth, log: Path) -> Child:
        """Start the container; what it prints is appended to ``log``."""
        child = Child(next(self._serial))
        self._attached[child.key] = berth, child, Attached(berth.container, log)
        return child

    def signal(self, child: Child, number: int) -> None:
        """Kill the container, let it stand still, or go on."""
        berth = self._attached[child.key][0]
        try:
            docker(_VERBS[signal.Signals(number)], berth.container)
        except GrapevineError as error:
            if "is not running" not in str(error):  # it has just ended by itself
                raise

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in which containers have ended, after ``timeout_s``."""
        time.sleep(timeout_s)
        for _, child, attached in self._attached.values():
            if child.code is None and (code := attached.poll()) is not None:
                child.code = -signal.SIGKILL if code == _KILLED else code

    # ── files ───────────────────────────────────────────────────────────────────────────────

    def put(self, berth: Berth, files: Mapping[str, bytes | Path]) -> None:
        """Write files and folders into the volume, in this order."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for folder in dict.fromkeys(place.rpartition("/")[0] for place in files):
                if folder:  # else the engine makes it, as root's
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o700
                    archive.addfile(_owned(entry))
            for place, content in files.items():
                if isinstance(content, Path):
                    archive.add(content, place, filter=_plain)
                else:
                    _add(archive, place, content)
        docker("cp", "-", f"{berth.container}:{HOME}", given=packed.getvalue())

    def get(self, berth: Berth, places: Collection[str], into: Path) -> None:
        """Copy these folders of the volume into one here; files replace those of their name."""
        packed = docker("cp", f"{berth.container}:{HOME}/.", "-")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            chosen = [
                entry
                for entry in archive
                if (entry.isfile() or entry.isdir())
                and entry.name.removeprefix("./").partition("/")[0] in places
            ]
            archive.extractall(into, chosen, filter="data")


def _owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """As the image's user has it."""
    entry.uid = entry.gid = USER
    return entry


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The same; sockets and the like are left out."""
    return _owned(entry) if entry.isfile() or entry.isdir() else None


def _add(archive: tarfile.TarFile, place: str, content: bytes) -> None:
    entry = tarfile.TarInfo(place)
    # to be read by all: the engine makes a file as root's and only then gives it to the image's
    # user, who may look in between
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(_owned(entry), io.BytesIO(content))


def room() -> int:
    """How many edges a run can have."""
    return POOL.num_addresses >> (32 - EDGE_PREFIX)


def _taken() -> list[ipaddress.IPv4Network]:
    """The IPv4 ranges of all networks that the engine has."""
    known = docker("network", "ls", "--quiet").decode().split()
    told = json.loads(docker("network", "inspect", *known)) if known else []
    configs = [c for network in told for c in network["IPAM"]["Config"] or ()]
    found = (ipaddress.ip_network(c["Subnet"]) for c in configs if c.get("Subnet"))
    return [one for one in found if isinstance(one, ipaddress.IPv4Network)]


def _within(subnet: ipaddress.IPv4Network, taken: Sequence[ipaddress.IPv4Network]) -> bool:
    return any(subnet.overlaps(one) for one in taken)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without Ctrl-C and SIGTERM, in the one thread that gets them: a cleaning is done whole or not
    at all, and who is impatient sends a second signal.
    """
    try:
        before = {one: signal.signal(one, signal.SIG_IGN) for one in _INTERRUPTS}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
