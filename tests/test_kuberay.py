"""The manifest of a run on a cluster of KubeRay: what Kubernetes and KubeRay take, and what Winnow needs in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from test_export_serving import SCHEMAS, assert_no_slip_passes

from flows.spec import PipelineSpec

ROOT = Path(__file__).parent.parent
SETS, JOB = yaml.safe_load_all((ROOT / "docs" / "kuberay.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]


def check_job(value: dict[str, Any]) -> None:
    """Raise ValidationError unless KubeRay takes the job and Kubernetes its pods; unknown keys are refused too."""
    schema = json.loads((SCHEMAS / "kuberay-rayjob-v1.json").read_text())
    pods = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())["$defs"]
    Draft202012Validator({**schema, "$defs": pods}).validate(value)


def test_kuberay_takes_the_job_and_would_refuse_a_slip() -> None:
    check_job(JOB)
    head, worker = ("spec", "rayClusterSpec", "headGroupSpec"), ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
    assert_no_slip_passes(JOB, check_job, (*head, "rayStartParams"), (*worker, "rayStartParams"))


def test_the_head_measures_alone_and_all_nodes_are_of_one_class() -> None:
    head, (workers,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    pods = [group["template"]["spec"] for group in (head, workers)]
    assert pods[0]["nodeSelector"] == pods[1]["nodeSelector"]
    containers = [pod["containers"][0] for pod in pods]
    for same in ("image", "env", "envFrom"):
        assert containers[0][same] == containers[1][same]


def test_its_spec_is_one_and_its_ray_is_ours() -> None:
    spec = PipelineSpec.model_validate(yaml.safe_load(SETS["data"]["spec.yaml"]))
    assert spec.search is not None
    pinned = re.search(r"^RAY := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pinned is not None and CLUSTER["rayVersion"] == pinned[1]
    (mount,) = CLUSTER["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert f"winnow run {mount['mountPath']}/spec.yaml --set place=ray" in JOB["spec"]["entrypoint"]
    (volume,) = CLUSTER["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == SETS["metadata"]["name"]
