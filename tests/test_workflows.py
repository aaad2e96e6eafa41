"""The workflows and deployments: valid, least privileged, and safe against what people type into them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent
HOSTILE = "digits\"; echo pwned; $(touch pwned) `touch pwned` '\n${{ secrets.X }}"


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    loaded["on"] = loaded.pop(True)  # YAML 1.1 reads the key `on` as a boolean
    return loaded


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)


def test_workflows_follow_githubs_schema() -> None:
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in WORKFLOWS] == ["ci.yml", "retrain.yml"]


def test_workflows_pass_the_strictest_audit() -> None:
    done = run(BIN / "zizmor", "--offline", "--no-progress", "--persona", "auditor", "--format", "json", *WORKFLOWS)
    findings = [(f["ident"], f["determinations"]["severity"]) for f in json.loads(done.stdout)]
    assert [f for f in findings if f[1] in {"Medium", "High", "Unknown"}] == [], done.stdout


@pytest.mark.parametrize("name", [p.name for p in WORKFLOWS])
def test_workflows_are_least_privileged_and_bounded(name: str) -> None:
    document = workflow(name)
    assert document["permissions"] == {}
    assert "concurrency" in document
    for job in document["jobs"].values():
        assert job["permissions"] == {"contents": "read"}
        assert 0 < job["timeout-minutes"] <= 360
    for step in steps(name):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
        else:
            assert "${{" not in step["run"], f"text pasted into a shell: {step['run']}"


def test_ci_runs_what_everybody_runs() -> None:
    document = workflow("ci.yml")
    assert set(document["on"]) == {"push", "pull_request", "schedule"}
    assert {".ci/run", "make explore"} <= {step.get("run") for step in steps("ci.yml")}
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_retraining_is_started_by_hand_by_the_clock_and_by_drift() -> None:
    document = workflow("retrain.yml")
    assert set(document["on"]) == {"workflow_dispatch", "schedule", "repository_dispatch"}
    assert document["on"]["repository_dispatch"]["types"] == ["model-drift"]
    minute = document["on"]["schedule"][0]["cron"].split()[0]
    assert minute.isdigit() and int(minute) not in {0, 30}  # off the hour
    inputs = document["on"]["workflow_dispatch"]["inputs"]
    assert {name: given["type"] for name, given in inputs.items()} == {
        "where": "choice",
        "spec": "string",
        "overrides": "string",
        "deploy": "boolean",
        "timeout_seconds": "number",
    }
    assert inputs["deploy"]["default"] is False
    assert document["concurrency"]["cancel-in-progress"] is False
    assert document["jobs"]["worker"]["environment"] == "production"


def parameters(**environment: str) -> dict[str, Any]:
    done = run(sys.executable, ROOT / ".github" / "run_parameters.py", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_parameters_of_a_run_are_data_whatever_was_typed() -> None:
    found = parameters(SPEC=HOSTILE, OVERRIDES=" a=1  b.c='x  ", DEPLOY="true", GITHUB_RUN_ID="7")
    assert found["spec"] == HOSTILE
    assert found["overrides"] == ["a=1", "b.c='x"]
    assert re.fullmatch(r"\d{8}-\d{6}-github-7-1", found["run_id"])


@pytest.mark.parametrize("deploy", ["false", "", "yes", "True"])
def test_only_a_clear_yes_deploys(deploy: str) -> None:
    assert parameters(SPEC="digits", DEPLOY=deploy)["overrides"] == ["deploy=false"]


def test_parameters_fit_the_flow() -> None:
    done = run(
        *(sys.executable, "-P", "-c"),
        "import inspect; from flows.compress import compress; print(*inspect.signature(compress.fn).parameters)",
        DO_NOT_TRACK="true",
    )
    assert set(parameters(SPEC="digits")) <= set(done.stdout.split()), done.stderr


def test_the_runner_passes_overrides_as_single_words(tmp_path: Path) -> None:
    (script,) = [s["run"] for s in steps("retrain.yml") if "winnow run" in s.get("run", "")]
    stub = tmp_path / ".venv" / "bin" / "winnow"
    stub.parent.mkdir(parents=True)
    stub.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    stub.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "SPEC": "--help", "OVERRIDES": "seed=1 $(touch pwned) *"}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    words = ["run", "--up", "--report", "report", "--set", "seed=1", "--set", "$(touch", "--set", "pwned)"]
    assert done.stdout.split("\n")[:-1] == [f"<{w}>" for w in [*words, "--set", "*", "--", "--help"]]
    assert [p.name for p in tmp_path.iterdir()] == [".venv"]


def test_the_summary_shows_a_refused_run(tmp_path: Path) -> None:
    row = {"name": "student.int8", "digest": "d" * 64, "bytes": 20_500, "p50_ms": 0.0123, "p95_ms": 0.02}
    report = {
        "status": "refused",
        "model": "digits",
        "run_id": "r1",
        "version": None,
        "chosen": "d" * 64,
        "metric": {"name": "accuracy", "better": "higher"},
        "variants": [{**row, "metric": {"value": 0.95, "interval": [0.92, 0.97]}}],
        "stages": [{"name": "data", "status": "computed", "seconds": 4.2}],
        "error": {"stage": "validate", "type": "GateFailed", "message": "bound 0.031 exceeds margin 0.02"},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    shown = run(sys.executable, ROOT / ".github" / "job_summary.py", tmp_path / "report.json").stdout
    assert "### digits: refused" in shown and "bound 0.031 exceeds margin 0.02" in shown
    assert "| student.int8 **(chosen)** | 0.9500 | 0.9200 to 0.9700 | 20.5 | 0.012 | 0.020 |" in shown
    (tmp_path / "empty.json").write_text("")  # as `winnow show RUN > report.json` leaves it where nobody knows the run
    for name in ("none.json", "empty.json"):
        none = run(sys.executable, ROOT / ".github" / "job_summary.py", tmp_path / name)
        assert none.returncode == 0 and "no report" in none.stdout


def test_the_summary_reads_what_a_report_has() -> None:
    from tasks.report.run_report import MetricValue, RunError, RunReport, StageLine, VariantRow

    assert {"status", "model", "version", "run_id", "error", "variants", "metric", "stages", "chosen"} <= set(
        RunReport.model_fields
    )
    assert {"name", "digest", "metric", "bytes", "p50_ms", "p95_ms"} <= set(VariantRow.model_fields)
    assert {"value", "interval"} == set(MetricValue.model_fields)
    assert {"stage", "type", "message"} <= set(RunError.model_fields)
    assert {"name", "status", "seconds"} <= set(StageLine.model_fields)


def test_deployments_follow_prefects_model(tmp_path: Path) -> None:
    from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel  # what `prefect deploy` reads it with

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(PrefectYamlModel.model_json_schema()))
    done = run(BIN / "check-jsonschema", "--schemafile", schema, ROOT / "prefect.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    known = {field.alias or name for name, field in DeploymentConfig.model_fields.items()}
    for deployment in document["deployments"]:  # Prefect ignores keys that it does not know
        assert set(deployment) <= known


def test_deployments_are_what_the_workflow_asks_for() -> None:
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    deployments = {d["name"]: d for d in document["deployments"]}
    assert {d["entrypoint"] for d in deployments.values()} == {"flows.compress:compress"}
    assert {d["work_pool"]["name"] for d in deployments.values()} == {"winnow"}
    assert "schedules" not in deployments["compress"]
    (schedule,) = deployments["nightly"]["schedules"]
    assert schedule["cron"] == "0 3 * * *" and schedule["timezone"] == "UTC"
    assert schedule.get("active") is False or deployments["nightly"].get("paused") is True
    asked = [s["run"] for s in steps("retrain.yml") if "deployment run" in s.get("run", "")]
    assert len(asked) == 1 and "deployment run compress/compress --params -" in asked[0]
    assert '--watch-timeout "$TIMEOUT_SECONDS" < parameters.json' in asked[0]
