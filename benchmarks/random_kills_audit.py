"""What random_kills.py counts once all is calm again: what was lost, what is not true, what stayed behind."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from infra.component import fetch_when_free
from infra.daemon import Daemon, census
from model_registry.authorization import prefect_authorization
from model_registry.endpoint_client import Endpoint
from model_registry.ledger import Entry, Ledger
from model_registry.manifest import hash_bytes
from model_registry.mlflow_rest import MlflowServer
from model_registry.registry import CHAMPION, Registry
from model_registry.store import Store, StoreError
from model_registry.versions import Versions
from tasks.report.run_records import recent_runs
from tasks.report.run_report import RunReport

if TYPE_CHECKING:
    from benchmarks.random_kills import Chaos

KINDS = (
    "lost versions",
    "wrong aliases",
    "orphans",
    "leftovers",
    "wedged models",
    "untrue states",
    "runs that something else ended",
    "other faults",
)
_ALL_RUNS = 10_000
_FURTHER_SEED = 77
_IN_PREFECT = {"released": {"COMPLETED"}, "registered": {"COMPLETED"}, "refused": {"FAILED"}, "failed": {"FAILED"},
               "interrupted": {"CANCELLED", "CRASHED"}, "crashed": {"CRASHED", "FAILED"}}  # fmt: skip
_IN_MLFLOW = {"failed": "FAILED", "interrupted": "KILLED", "crashed": "KILLED"}


class Witness:
    """Remembers every version and every champion that was there once."""

    def __init__(self, models: Sequence[str]) -> None:
        self.models = models
        self.versions: dict[tuple[str, int], str] = {}
        self.committed: dict[tuple[str, int], str] = {}

    def look(self) -> None:
        """Note what is there now."""
        store = Store.from_environment()
        for model in self.models:
            self.versions |= {(model, number): digest for number, digest in Versions(store).all(model).items()}
            history = Ledger(store).history(model)
            self.committed |= {(model, one.seq): one.digest for one in history if one.state == "committed"}


class Audit:
    """Texts by kind; :attr:`states` counts what the runs say of themselves."""

    def __init__(self, chaos: Chaos, witness: Witness) -> None:
        self._chaos, self._witness = chaos, witness
        self._store = Store.from_environment()
        self.counts: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.states: Counter[str] = Counter()

    def run(self) -> None:
        """Everything that is asked while the stack is up."""
        self._witness.look()
        for model in self._witness.models:
            self._aliases(model, "after the kills")
            self._goes_on(model)
        self._witness.look()
        self._versions()
        self._run_states()
        self.counts["other faults"] += self._chaos.faults

    def _versions(self) -> None:
        """Each is still that variant, with its files, in the ledger as it was and in MLflow by its digest."""
        lost = self.counts["lost versions"]
        rows = {model: Registry.from_environment().versions(model) for model in self._witness.models}
        for (model, number), digest in self._witness.versions.items():
            if Versions(self._store).all(model).get(number) != digest:
                lost.append(f"{model} {number} is not {digest[:12]} any more")
            if not any(row.digest == digest and row.number == number for row in rows[model]):
                lost.append(f"{model} {number} is not in MLflow")
            try:
                for entry in self._store.load_variant(digest).files:
                    assert hash_bytes(self._store.fetch_bytes(entry)) == entry.sha256
            except StoreError as error:
                lost.append(f"{model} {number}: {error}")
        for (model, seq), digest in self._witness.committed.items():
            entries = {one.seq: one.digest for one in Ledger(self._store).history(model) if one.state == "committed"}
            if entries.get(seq) != digest:
                lost.append(f"entry {seq} of the ledger of {model} is not {digest[:12]} any more")

    def _aliases(self, model: str, when: str) -> None:
        """Ledger, MLflow's alias and endpoint name one version and one digest."""
        wrong, registry = self.counts["wrong aliases"], Registry.from_environment()
        champion = Ledger(self._store).champion(model)
        if champion is None:
            wrong.append(f"{when}: {model} has no champion")
            return
        alias = registry.alias(model, CHAMPION)
        row = next((row for row in registry.versions(model) if row.version == alias), None)
        if row is None or (row.number, row.digest) != (champion.to_version, champion.digest):
            wrong.append(f"{when}: {model} is {champion.to_version} by the ledger, MLflow's alias points to {row}")
        with Endpoint.from_environment() as endpoint:
            served = endpoint.model(model)
        if not served.serves(champion.to_version, champion.digest) or not served.answers:
            wrong.append(f"{when}: {model} is {champion.to_version} by the ledger, the endpoint has {served}")

    def _goes_on(self, model: str) -> None:
        """A further run releases, a rollback goes back, a promotion forth, and all agree each time."""
        wedged, store = self.counts["wedged models"], self._store
        before = Ledger(store).champion(model)
        done = self._chaos.winnow("run", *self._chaos.wanted(model, _FURTHER_SEED), "--json")
        report = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        version = report.get("version")
        if done.returncode or report.get("status") != "released":
            wedged.append(f"{model}: a further run ended with {done.returncode}: {done.stderr[-1500:]}")
            return
        self._aliases(model, "after a further run")
        if before is not None and before.digest != report["chosen"]:
            self._release(model, "rollback", model, expected=before.digest)
        self._release(model, "promote", model, str(version), expected=report["chosen"])

    def _release(self, model: str, *command: str, expected: str) -> None:
        done = self._chaos.winnow(*command)
        champion = Ledger(self._store).champion(model)
        if done.returncode or champion is None or champion.digest != expected:
            text = f"{model}: winnow {' '.join(command)} ended with {done.returncode}: {done.stderr[-1000:]}"
            self.counts["wedged models"].append(text)
        self._aliases(model, f"after winnow {command[0]}")

    def _run_states(self) -> None:
        """Store, ledger, Prefect and MLflow tell the same story of every run."""
        untrue = self.counts["untrue states"]
        listed = json.loads(self._chaos.winnow("runs", "--json", "-n", "500").stdout)["runs"]
        shown = {row["run_id"]: row["status"] for row in listed}
        histories = {model: Ledger(self._store).history(model) for model in self._witness.models}
        in_mlflow = self._mlflow_states()
        for report in recent_runs(self._store, limit=_ALL_RUNS):
            state = shown.get(report.run_id, "not shown")
            self.states[state] += 1
            entry = _entry_of(histories[report.model], report)
            # One that chose the champion again changed nothing.
            standing = any(one.digest == report.chosen and one.state == "committed" for one in histories[report.model])
            if (state == "released") != (entry is not None) and not (state == "released" and standing):
                untrue.append(f"{report.run_id} says {state}, the ledger {entry}")
            killed = report.owner is not None and report.owner.pid in self._chaos.killed_flows
            if state in ("crashed", "interrupted") and not killed:
                text = f"{report.run_id} is {state} and was not killed: {report.error}"
                self.counts["runs that something else ended"].append(text)
            if state == "running":
                untrue.append(f"{report.run_id} says that it is running")
            in_prefect = self._prefect_state(report.prefect_run) if report.prefect_run else None
            if in_prefect and in_prefect not in _IN_PREFECT.get(state, set()):
                untrue.append(f"{report.run_id} is {state}, in Prefect {in_prefect}")
            if in_mlflow.get(report.run_id, wanted := _IN_MLFLOW.get(state, "FINISHED")) != wanted:
                untrue.append(f"{report.run_id} is {state}, in MLflow {in_mlflow[report.run_id]}")

    @staticmethod
    def _prefect_state(flow_run: str) -> str:
        url = f"{os.environ['PREFECT_API_URL']}/flow_runs/{flow_run}"
        status, body = fetch_when_free(url, timeout=20, headers=prefect_authorization(os.environ))
        return str(json.loads(body)["state"]["type"]) if status == 200 else f"answer {status}"

    def _mlflow_states(self) -> dict[str, str]:
        server, found = MlflowServer(os.environ["MLFLOW_TRACKING_URI"]), dict[str, str]()
        for model in self._witness.models:
            experiment = server.get("experiments/get-by-name", experiment_name=model)["experiment"]["experiment_id"]
            for run in server.every("runs/search", "runs", experiment_ids=[experiment]):
                tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}
                if tags.get("winnow.kind") == "run":
                    found[tags["winnow.run_id"]] = run["info"]["status"]
                elif run["info"]["status"] == "RUNNING":
                    found[tags.get("winnow.run_id", "")] = f"{run['info']['run_name']} RUNNING"
        return found

    def processes(self, when: str, *, down: bool) -> None:
        """What carries the folder's name in its environment and has no parent in a part of the stack that runs."""
        home, members = self._chaos.home, census(self._chaos.home)
        leaders = {found.pid for name in members if (found := Daemon(name, home).running())}
        kept = {one.pid for part in members.values() for one in part if one.parent != 1 or one.pid in leaders}
        for process in psutil.process_iter(["environ", "cmdline", "status"]):
            environment = process.info["environ"] or {}
            if environment.get("WINNOW_HOME") != str(home) or process.pid == os.getpid():
                continue
            is_run = "PREFECT__FLOW_RUN_ID" in environment or "WINNOW_RUN_MARK" in environment
            if down or is_run or process.pid not in kept:
                self.counts["orphans"].append(f"{when}: {process.pid} {' '.join(process.info['cmdline'] or ())[:200]}")

    def leftovers(self, scratch: Path) -> None:
        """What lies in the temporary folder when nothing runs any more, but two things that are there once for all."""
        lasting = {f"winnow-{os.getuid()}", ".ses"}  # the machine's lock; 51 bytes of ONNX Runtime's
        self.counts["leftovers"] += sorted(path.name for path in scratch.iterdir() if path.name not in lasting)


def _entry_of(history: Sequence[Entry], report: RunReport) -> Entry | None:
    """The release that this run's process made."""
    ours = [one for one in history if one.kind == "release" and one.by == report.owner and one.at >= report.started]
    return next((one for one in ours if one.state == "committed"), None)
