"""The KubeRay job: valid against the schema beside it, and consistent with this project and with itself."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "deploy" / "rayjob.schema.json").read_text())
JOB = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in GROUPS]


def test_it_is_a_valid_rayjob() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(JOB, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.shutdownAfterJobFinish", True),
        ("spec.submissionMode", "K8s"),
        ("spec.rayClusterSpec.authOptions.mode", "none"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers", []),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.image", "cleansweep"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits.memory", "32 GB"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "2"),
    ],
)
def test_the_schema_refuses_what_the_operator_would(path: str, value: Any) -> None:
    job = copy.deepcopy(JOB)
    node = job
    *parents, last = path.split(".")
    for name in parents:
        node = node[int(name) if name.isdigit() else name]
    node[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_the_cluster_goes_away_and_the_version_is_the_pinned_one() -> None:
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and CLUSTER["rayVersion"] == pinned[1]
    assert f"ray:{pinned[1]}-py311" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_every_pod_runs_the_same_image_and_finds_its_volumes() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {c["image"] for pod in PODS for c in pod["containers"]} == {f"cleansweep:{version}"}
    for pod in PODS:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]} <= volumes
        for container in pod["containers"]:  # Ray sizes itself by the limits: a lower request overcommits
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_entry_point_is_one_the_cluster_can_serve() -> None:
    words = shlex.split(JOB["spec"]["entrypoint"])
    assert words[:2] == ["cleansweep", "run"]
    assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    mounts = [mount for mount in PODS[0]["containers"][0]["volumeMounts"] if not mount.get("readOnly")]
    assert any(flags["--store"].startswith(mount["mountPath"]) for mount in mounts)
    group = CLUSTER["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    workers = int(flags["--workers"])
    assert workers * float(flags["--gpus-per-worker"]) <= group["replicas"] * int(limits["nvidia.com/gpu"])
    assert workers * float(flags["--cpus-per-worker"]) <= group["replicas"] * int(limits["cpu"])
