"""deploy/sbom.py: a bill of materials that the CycloneDX schema takes and that names everything."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploy" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sbom = load()


def refused(bom: dict[str, Any]) -> object:
    """What the schema finds wrong; None where it takes the whole."""
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))


def test_of_debian_it_lists_what_is_installed() -> None:
    listing = "installed\tlibc6\t2.36-9+deb12u1\tamd64\nconfig-files\tgone\t1.0\tamd64\n"
    (found,) = sbom.system(listing, "debian", "bookworm")
    assert found["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=bookworm"
    whole = sbom.whole({"bomFormat": "CycloneDX", "specVersion": "1.6"}, [found], image="x")
    assert refused(whole) is None
    assert whole["metadata"]["component"]["name"] == "x"


def test_a_component_that_two_sources_name_stands_once() -> None:
    (cpython, *rest) = sbom.interpreter()
    assert cpython["version"] == ".".join(map(str, sys.version_info[:3]))
    again = {**rest[0], "licenses": [{"license": {"id": "MIT"}}]}
    bom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [again]}
    whole = sbom.whole(bom, [cpython, *rest, cpython], image="x")
    purls = [component["purl"] for component in whole["components"]]
    assert sorted(set(purls)) == sorted(purls)
    # the environment's own description says more, and wins
    assert again in whole["components"]
    assert refused(whole) is None


def test_the_schema_sees_what_is_wrong() -> None:
    whole = sbom.whole({"bomFormat": "CycloneDX", "specVersion": "1.6"}, [], image="x")
    whole["components"] = [{"name": "no type"}]
    assert refused(whole) is not None


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian system")
def test_of_this_environment_it_names_what_a_node_needs() -> None:
    home = Path(sys.prefix)
    words = ["--tools", home, "--environment", home, "--image", "grapevine-node"]
    ran = subprocess.run(
        [sys.executable, ROOT / "deploy" / "sbom.py", *words],
        capture_output=True,
        check=True,
        text=True,
    )
    bom = json.loads(ran.stdout)
    assert refused(bom) is None
    names = {component["name"].lower() for component in bom["components"]}
    assert {"torch", "pynacl", "cryptography", "libc6", "cpython"} <= names
