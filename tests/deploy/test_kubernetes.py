"""deploy/kubernetes.yaml: each object against Kubernetes' own schemas, and against one another.

The schemas (shipped offline with the package kubernetes-validate, in their strict form: an unknown
key is an error) say that the API would take every object. They do not start anything.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes.yaml"


@pytest.fixture
def objects() -> dict[str, Any]:
    """By kind; there is one of each."""
    found = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one is not None]
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def check(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", ["1.29", "1.32", kubernetes_validate.latest_version()])
def test_every_object_is_what_the_schema_says(objects, version) -> None:
    assert set(objects) == {"Service", "PersistentVolumeClaim", "Job"}
    for one in objects.values():
        check(one, version)


def test_the_schemas_see_a_typo_and_a_wrong_type(objects) -> None:
    container = ("spec", "template", "spec", "containers", 0)
    for path, key, value in (
        (container, "livenesProbe", {}),
        ((*container, "livenessProbe"), "periodSeconds", "often"),
        ((*container, "securityContext"), "readOnlyRootFilesytem", True),
    ):
        broken = copy.deepcopy(objects["Job"])
        place = broken
        for step in path:
            place = place[step]
        place[key] = value
        with pytest.raises(kubernetes_validate.ValidationError):
            check(broken, kubernetes_validate.latest_version())


def test_the_objects_name_one_another_rightly(objects) -> None:
    job, service = objects["Job"]["spec"], objects["Service"]["spec"]
    pod = job["template"]["spec"]
    labels = job["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes["state"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    (node,) = pod["containers"]
    for container in (node, *pod["initContainers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
    ports = {port["name"]: port["containerPort"] for port in node["ports"]}
    assert [ports[port["targetPort"]] for port in service["ports"]] == [7400]
    # what is made by hand beforehand is made under the names that are mounted
    told = MANIFEST.read_text()
    assert f"create secret generic {volumes['keys']['secret']['secretName']} " in told
    assert f"create configmap {volumes['settings']['configMap']['name']} " in told


def test_the_pod_is_locked_down(objects) -> None:
    pod = objects["Job"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["containers"], *pod["initContainers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    (node,) = pod["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert node[probe]["exec"]["command"] == ["grapevine", "status", "--alive"]
