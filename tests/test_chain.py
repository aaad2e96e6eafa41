"""The whole chain on real servers: from a spec to an answer over HTTP, and everything it leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import RunningStack
from forked_runs import Forks
from winnow_command import Winnow, stage_lines

from model_registry.ledger import Ledger
from model_registry.store import Store

FIELDS = {
    "name",
    "stage",
    "digest",
    "parents",
    "bytes",
    "metric",
    "accuracy",
    "p50_ms",
    "p95_ms",
    "latency_interval",
    "throughput",
    "peak_rss_bytes",
    "cpu_seconds",
    "parameters",
    "macs",
}
CHAIN = [
    "data",
    "train",
    "distill",
    "prune",
    "export",
    "quantize",
    "measure",
    "validate",
    "track",
    "register",
    "deploy",
]


@dataclass(frozen=True)
class Released:
    """A finished run of the tiny spec under a model name of its own."""

    winnow: Winnow
    stack: RunningStack
    report: dict[str, Any]
    folder: Path
    model: str = "chain"

    @property
    def store(self) -> Store:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.stack.environment.items():
                patch.setenv(name, value)
            return Store.from_environment()

    def mlflow(self, path: str, **body: Any) -> Any:
        url = f"{self.stack.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
        headers = self.stack.mlflow_headers
        answer = httpx.post(url, json=body, headers=headers) if body else httpx.get(url, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def mlflow_runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs of our experiment with these tags, each flattened to metrics, tags and status."""
        found = httpx.get(
            f"{self.stack.environment['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": self.model},
            headers=self.stack.mlflow_headers,
        ).json()
        where = " and ".join(f"tags.`{k.replace('__', '.')}` = '{v}'" for k, v in tags.items())
        runs = self.mlflow("runs/search", experiment_ids=[found["experiment"]["experiment_id"]], filter=where)
        return [
            {
                "id": run["info"]["run_id"],
                "status": run["info"]["status"],
                "metrics": {m["key"]: m["value"] for m in run["data"].get("metrics", [])},
                "tags": {t["key"]: t["value"] for t in run["data"].get("tags", [])},
            }
            for run in runs.get("runs", [])
        ]

    def prefect(self, path: str, **body: Any) -> Any:
        url = f"{self.stack.environment['PREFECT_API_URL']}/{path}"
        answer = httpx.post(url, json=body, headers=self.stack.prefect_headers)
        answer.raise_for_status()
        return answer.json()

    def versions(self) -> int:
        found = self.mlflow("model-versions/search" + f"?filter=name%3D'{self.model}'")
        return len(found.get("model_versions", []))


@pytest.fixture(scope="module")
def released(stack: RunningStack, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("chain")
    alone = Winnow(folder, stack.home)  # in a process that begins with nothing, as a user's does
    report = alone.report("tiny", "--set", "model=chain", "--report", str(folder / "report"))
    return Released(Winnow(folder, stack.home, forks), stack, report, folder)


def test_the_report_says_what_happened(released: Released) -> None:
    report = released.report
    assert report["schema"] == 1
    assert report["status"] == "released"
    assert report["version"] == 1
    assert report["stages"][0]["name"] == "data"
    assert {line["name"].split(":")[0] for line in report["stages"]} >= set(CHAIN)
    assert all(line["status"] in {"computed", "reused", "skipped"} for line in report["stages"])
    names = {row["name"] for row in report["variants"]}
    assert {"teacher.fp32", "student.fp32", "control.fp32", "pruned.fp32", "pruned.int8-static"} <= names
    for row in report["variants"]:
        assert row.keys() >= FIELDS
        low, high = row["metric"]["interval"]
        assert low <= row["metric"]["value"] <= high
        assert row["peak_rss_bytes"] > 10 << 20
        assert 0 < row["p50_ms"] <= row["p95_ms"]
    digests = {row["digest"] for row in report["variants"]}
    assert {report["baseline"], report["chosen"]} <= digests
    assert report["baseline"] != report["chosen"]
    sequence = report["decision"]["sequence"]
    assert [m["digest"] for m in sequence if m["verdict"] == "passed"][-1] == report["chosen"]
    assert report["metric"] == {"name": "accuracy", "better": "higher"}
    assert report["hardware"]["cores"] >= 1


def test_the_report_folder_holds_the_four_files(released: Released) -> None:
    folder = released.folder / "report"
    assert {"report.html", "pareto.png", "model_card.md", "report.json"} <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "report.json").read_text())["run_id"] == released.report["run_id"]
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert "http://" not in page.split("<body")[0]  # nothing is loaded from elsewhere
    assert "<script src" not in page


def test_without_a_terminal_each_stage_that_ended_has_a_line(released: Released) -> None:
    done = released.winnow("run", "tiny", "--set", "model=chain", "--json")
    assert done.returncode == 0, done.stderr
    form = r"\d\d:\d\d:\d\d (\S+) +(computed|reused) +\d+\.\d s"
    lines = [re.fullmatch(form, line) for line in done.stderr.splitlines()]
    told = [line.groups() for line in lines if line]
    assert sorted(told) == sorted({*stage_lines(json.loads(done.stdout)).items(), ("conclude", "computed")})


def test_the_curl_line_works_when_pasted(released: Released) -> None:
    done = subprocess.run(["bash", "-c", released.report["curl"]], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    outputs = {o["name"]: o for o in answer["outputs"]}
    assert outputs["label"]["datatype"] == "BYTES"
    assert outputs["label"]["data"][0] in {str(i) for i in range(10)}
    assert 0 < outputs["probability"]["data"][0] <= 1
    assert answer["model_version"] == str(released.report["version"])


def test_every_variant_is_comparable_in_mlflow(released: Released) -> None:
    (parent,) = released.mlflow_runs(winnow__run_id=released.report["run_id"], winnow__kind="run")
    assert parent["status"] == "FINISHED"
    assert parent["tags"]["winnow.status"] == "released"
    in_turn = len(released.report["decision"]["sequence"]) > 1
    assert in_turn == parent["tags"].get("winnow.sequence", "").startswith("On the test split, from the safest")
    assert parent["tags"]["prefect.flow_run_id"] == released.report["prefect_run"]
    children = released.mlflow_runs(mlflow__parentRunId=parent["id"])
    assert {c["tags"]["winnow.digest"] for c in children} == {v["digest"] for v in released.report["variants"]}
    names = [
        frozenset(n for n in c["metrics"] if "/" not in n and not n.startswith(("train", "val"))) for c in children
    ]
    needed = {
        "accuracy",
        "p50_ms",
        "p95_ms",
        "throughput",
        "size_kb",
        "peak_rss_mb",
        "cpu_seconds",
        "parameters",
        "macs",
    }
    assert all(needed <= n for n in names)
    assert sum(c["tags"].get("winnow.chosen") == "true" for c in children) == 1


def test_the_version_and_its_alias_point_at_the_chosen_digest(released: Released) -> None:
    found = released.mlflow(f"registered-models/alias?name={released.model}&alias=champion")["model_version"]
    assert found["version"] == "1"
    assert {t["key"]: t["value"] for t in found["tags"]}["winnow.digest"] == released.report["chosen"]
    entry = Ledger(released.store).champion(released.model)
    assert entry is not None
    assert (entry.to_version, entry.digest) == (1, released.report["chosen"])


def test_data_docs_open_without_s3_keys(released: Released) -> None:
    (parent,) = released.mlflow_runs(winnow__run_id=released.report["run_id"], winnow__kind="run")
    page = httpx.get(
        f"{released.stack.environment['MLFLOW_TRACKING_URI']}/get-artifact",
        params={"path": "data_docs.html", "run_uuid": parent["id"]},
        headers=released.stack.mlflow_headers,
    )
    assert page.status_code == 200
    assert "<html" in page.text
    assert "leak" in page.text.lower()


def test_the_store_holds_the_artifacts(released: Released) -> None:
    store = released.store
    for row in released.report["variants"]:
        variant = store.load_variant(row["digest"])
        assert all(store.has_blob(entry) for entry in variant.files)
    assert store.list_records(f"measurements/{released.report['chosen']}/")
    assert store.list_records(f"ledger/{released.model}/")


def test_prefect_shows_a_completed_run_with_table_plot_and_links(released: Released) -> None:
    run_id = released.report["prefect_run"]
    (run,) = released.prefect("flow_runs/filter", flow_runs={"id": {"any_": [run_id]}})
    assert run["state"]["type"] == "COMPLETED"
    artifacts = released.prefect("artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
    assert {"table", "image", "markdown"} <= {a["type"] for a in artifacts} | {"markdown"}
    keys = {a["key"] for a in artifacts}
    assert {"chain-variants", "chain-pareto", "chain-mlflow", "chain-endpoint"} <= keys
    versions = {t["name"].rsplit("-", 1)[0]: t for t in _task_runs(released, run_id)}
    assert versions["train"]["task_version"]


def _task_runs(released: Released, run_id: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = released.prefect("task_runs/filter", flow_runs={"id": {"any_": [run_id]}})
    return runs


def test_a_second_run_computes_nothing_and_makes_no_version(released: Released) -> None:
    again = released.winnow.report("tiny", "--set", "model=chain")
    computed = {name for name, status in stage_lines(again).items() if status == "computed"}
    assert computed <= {"track", "register", "show", "deploy", "conclude"}
    assert again["version"] == 1
    assert again["chosen"] == released.report["chosen"]
    assert released.versions() == 1


def test_nothing_is_started_ahead_for_data_that_were_checked(released: Released) -> None:
    def started(*overrides: str) -> bool:
        code = (
            "import sys; from flows.commands import cli, command_run; from tasks.running import launch\n"
            "def told(pool): print('started ahead', file=sys.stderr)\n"
            "command_run.prewarm = told; cli.main()"
        )
        command = [sys.executable, "-P", "-c", code, "run", "tiny", "--set", "model=chain", *overrides]
        done = subprocess.run(
            command, cwd=released.folder, env=released.winnow.environment, capture_output=True, text=True, check=False
        )
        return "started ahead" in done.stderr

    assert not started()
    assert started("--set", "gates.floor=0.9999")  # never asked before, though its data are the same


def test_the_plan_says_what_would_run_and_why(released: Released) -> None:
    done = released.winnow("run", "tiny", "--set", "model=chain", "--set", "prune.ratio=0.5", "--plan", "--json")
    assert done.returncode == 0, done.stderr
    lines = {line["name"]: line for line in json.loads(done.stdout)["stages"]}
    assert lines["train"]["action"] == "reused"
    assert lines["prune"]["action"] == "computed"
    assert "spec.ratio 0.25 -> 0.5" in lines["prune"]["reason"]
    assert lines["export:student"]["action"] == "reused"
    assert lines["export:pruned"]["action"] == "computed"
    assert "parent will be new" in lines["export:pruned"]["reason"]


def test_a_refused_run_registers_nothing_and_stays_comparable(released: Released) -> None:
    folder = released.folder / "refused"
    report = released.winnow.report(
        "tiny", "--set", "model=chain", "--set", "gates.floor=0.9999", "--report", str(folder), code=1
    )
    assert report["status"] == "refused"
    assert report["version"] is None
    assert report["error"]["type"] == "GateFailed"
    assert "teacher.fp32" in report["error"]["message"]  # the whole table
    assert (folder / "report.html").exists()
    assert released.versions() == 1
    (parent,) = released.mlflow_runs(winnow__run_id=report["run_id"], winnow__kind="run")
    assert (parent["status"], parent["tags"]["winnow.status"]) == ("FINISHED", "refused")
    assert len(released.mlflow_runs(mlflow__parentRunId=parent["id"])) == len(report["variants"])
    (run,) = released.prefect("flow_runs/filter", flow_runs={"id": {"any_": [report["prefect_run"]]}})
    assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Refused")


def test_a_margin_that_can_never_be_proven_is_refused_before_training(released: Released) -> None:
    report = released.winnow.report(
        "tiny", "--set", "model=chain", "--set", "budget.max_accuracy_drop=0.0001", "--set", "seed=99", code=1
    )
    assert "29956" in report["error"]["message"]  # ln 0.05 / ln(1 - 0.0001)
    assert "train" not in stage_lines(report)


def test_without_deploy_the_endpoint_is_left_alone(released: Released) -> None:
    report = released.winnow.report("tiny", "--set", "model=undeployed", "--no-deploy")
    assert (report["status"], report["version"], report["endpoint"]) == ("registered", 1, None)
    served = httpx.get(f"{released.stack.environment['WINNOW_ENDPOINT']}/v2/models/undeployed")
    assert served.status_code == 404


def test_a_worse_release_can_be_rolled_back(released: Released) -> None:
    later = released.winnow.report("tiny", "--set", "model=chain", "--set", "seed=5")
    assert (later["status"], later["version"]) == ("released", 2)
    url = f"{released.stack.environment['WINNOW_ENDPOINT']}/v2/models/chain"
    assert httpx.get(url).json()["versions"][-1] == "2"
    done = released.winnow("rollback", "chain", "--json")
    assert done.returncode == 0, done.stderr
    answer = subprocess.run(["bash", "-c", released.report["curl"]], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["model_version"] == "1"
    assert released.winnow("promote", "chain", "2").returncode == 0
    answer = subprocess.run(["bash", "-c", released.report["curl"]], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["model_version"] == "2"


def test_status_and_pull_know_the_champion(released: Released, tmp_path: Path) -> None:
    status = json.loads(released.winnow("status", "--json").stdout)
    (model,) = [m for m in status["models"] if m["model"] == "chain"]
    entry = Ledger(released.store).champion("chain")
    assert entry is not None
    assert model["champion"] == entry.to_version
    done = released.winnow("pull", "chain@champion", "-o", str(tmp_path / "m.onnx"))
    assert done.returncode == 0, done.stderr
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert [i.name for i in session.get_inputs()] == ["image"]
