"""The image's bill of materials, CycloneDX 1.6 as JSON on stdout: what it is made of, all of it.

    python3 deploy/sbom.py --tools /opt/tools --environment /opt/grapevine --image grapevine-node

Run by the Dockerfile with the image's own Python. The node's environment is described by
CycloneDX's tool (licences and the graph of what needs what included); the rest of the image is
added here: Debian's packages, and the interpreter with what is installed beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]

DPKG_FORMAT = "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", type=Path, required=True, help="where cyclonedx-py is installed")
    parser.add_argument("--environment", type=Path, required=True, help="the node's environment")
    parser.add_argument("--image", required=True, help="the image's name")
    options = parser.parse_args()
    described = [options.tools / "bin" / "cyclonedx-py", "environment", "--output-reproducible"]
    described += ["--spec-version", "1.6", options.environment / "bin" / "python"]
    bom = json.loads(subprocess.run(described, check=True, stdout=subprocess.PIPE).stdout)
    listing = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={DPKG_FORMAT}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    release = platform.freedesktop_os_release()
    distribution = (release["ID"], release.get("VERSION_CODENAME", ""))
    added = [*system(listing, *distribution), *interpreter()]
    print(json.dumps(whole(bom, added, image=options.image), indent=1))


def whole(bom: dict[str, Any], added: Iterable[Component], *, image: str) -> dict[str, Any]:
    """``bom`` of an environment with what else the image holds; each component once."""
    components = {component.get("purl", component["bom-ref"]): component for component in added}
    components |= {c.get("purl", c["bom-ref"]): c for c in bom.get("components", ())}
    bom["components"] = sorted(components.values(), key=lambda one: one["bom-ref"])
    about = bom.setdefault("metadata", {})
    about["component"] = {"type": "container", "bom-ref": "image", "name": image}
    return bom


def system(listing: str, distribution: str, codename: str) -> list[Component]:
    """Debian's packages, from dpkg-query's lines in DPKG_FORMAT."""
    made = []
    for line in listing.splitlines():
        status, name, version, architecture = line.split("\t")
        if status == "installed":
            purl = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?arch={architecture}"
            made.append(_component(name, version, f"{purl}&distro={quote(codename)}"))
    return made


def interpreter() -> list[Component]:
    """This Python and the distributions beside it, which no environment lists."""
    version = platform.python_version()
    made = [_component("cpython", version, f"pkg:generic/cpython@{version}")]
    for found in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        made.append(_component(name, found.version, f"pkg:pypi/{name}@{quote(found.version)}"))
    return made


def _component(name: str, version: str, purl: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    main()
