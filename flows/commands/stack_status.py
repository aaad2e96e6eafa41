"""What ``winnow status`` shows: components, disk, champions, pending roll-outs, hand-moved aliases, dead runs.

Everything is asked in parallel and with short time-outs, without Prefect or MLflow imported: the answer takes less
than a second. What cannot be asked becomes a problem in words, not an exception.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from flows.commands.unserved_models import access_faults, unserved_models
from infra.component import fetch
from infra.faults import StackDown
from infra.stack import ComponentState, Stack
from model_registry.authorization import mlflow_authorization

if TYPE_CHECKING:
    from model_registry.ledger import Ledger
    from model_registry.release_steps import ReleaseSteps
    from model_registry.store import Store

_RUNS_LOOKED_AT = 20
T = TypeVar("T")


@dataclass(frozen=True)
class ModelState:
    """One model: its champion by the ledger, what MLflow's alias says, what is under way."""

    model: str
    champion: int | None
    digest: str | None
    since: str | None
    alias: int | None
    pending: str | None
    problem: str | None = None
    unserved: str | None = None
    """Why the endpoint does not answer for it; None where it does, or was never asked to."""

    @property
    def hand_moved(self) -> bool:
        """Whether somebody moved the alias; the ledger decides, so the alias changes nothing."""
        return self.pending is None and self.problem is None and self.alias != self.champion


@dataclass(frozen=True)
class StackStatus:
    """All of it. Sizes are in bytes; ``store_usage`` is None where the store is too large to be counted quickly."""

    home: str
    up: bool
    components: list[ComponentState]
    disk: dict[str, int]
    disk_free: int | None
    store: str | None = None
    store_usage: dict[str, int] | None = None
    models: list[ModelState] = field(default_factory=list)
    dead_runs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """``schema: 1``; what scripts read."""
        found = {"schema": 1, **asdict(self)}
        found["models"] = [{**asdict(model), "hand_moved": model.hand_moved} for model in self.models]
        return found


def look_at_stack(stack: Stack) -> StackStatus:
    """Ask everything that can be asked."""
    home = stack.home.path
    with ThreadPoolExecutor(max_workers=2) as pool:
        asked = pool.submit(stack.components)
        disk = pool.submit(_disk, home)
        contents, problems = _contents(stack)
        components = asked.result()
        up = bool(components) and all(one.state in {"up", "external"} for one in components)
        return StackStatus(
            home=str(home),
            up=up,
            components=components,
            disk=disk.result(),
            disk_free=shutil.disk_usage(home).free if home.exists() else None,
            problems=problems,
            **contents,
        )


def _contents(stack: Stack) -> tuple[dict[str, Any], list[str]]:
    """What store and registry hold, as far as they can be asked."""
    try:
        os.environ.update(stack.environment())  # boto3 reads the keys from there
    except StackDown as error:
        return {}, [str(error)]
    from model_registry.ledger import Ledger
    from model_registry.release_steps import ReleaseSteps
    from model_registry.store import Store, StoreError

    problems: list[str] = []
    found: dict[str, Any] = {}
    try:
        store = Store.from_environment()
        ledger = Ledger(store)
        found["store"] = store.uri
        found["store_usage"] = _within(0.3, store.usage)
        with ThreadPoolExecutor(max_workers=8) as pool:
            dead = pool.submit(_dead_runs, store)
            unserved = pool.submit(unserved_models, os.environ)
            faults = pool.submit(access_faults, os.environ)
            steps = ReleaseSteps(store)
            models = list(pool.map(lambda model: _model(ledger, steps, model), ledger.models()))
            found["dead_runs"] = dead.result()
            why = unserved.result()
            if why is None:
                problems.append("the endpoint does not say which models it serves; see `winnow logs endpoint`")
            problems += faults.result()
            found["models"] = [replace(model, unserved=(why or {}).get(model.model)) for model in models]
    except StoreError as error:
        problems.append(str(error))
    return found, problems


def _model(ledger: Ledger, steps: ReleaseSteps, model: str) -> ModelState:
    from model_registry.ledger import LedgerError

    try:
        champion, pending = ledger.champion(model), ledger.pending(model)
    except LedgerError as error:
        return ModelState(model, None, None, None, None, None, problem=str(error))
    under_way = None
    if pending is not None:
        fate = "its process is gone: `winnow up` settles it" if pending.by.provably_dead() else str(pending.by)
        reached = steps.of(model, pending.seq)
        step = f", step {reached[-1].what!r}" if reached else ""
        under_way = f"{pending.kind} to version {pending.to_version} ({fate}){step}"
    return ModelState(
        model=model,
        champion=champion.to_version if champion else None,
        digest=champion.digest if champion else None,
        since=champion.decided_at.isoformat() if champion and champion.decided_at else None,
        alias=shown_alias(model),
        pending=under_way,
    )


def shown_alias(model: str) -> int | None:
    """The version that MLflow's alias ``champion`` points to, over its REST API; None for nowhere."""
    api = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/alias"
    url, headers = f"{api}?name={quote(model)}&alias=champion", mlflow_authorization(os.environ)
    status, body = fetch(url, timeout=2, headers=headers)
    if status != 200:
        return None
    row = json.loads(body)["model_version"]
    tags = {tag["key"]: tag.get("value", "") for tag in row.get("tags", [])}
    return int(tags.get("winnow.version") or row["version"])


def _dead_runs(store: Store) -> list[str]:
    """Ids of recent runs that say they are running and whose process is gone."""
    from model_registry.owner import Owner
    from model_registry.store import CorruptObject

    dead = []
    for key in store.list_records("runs/")[-_RUNS_LOOKED_AT:]:
        try:
            record = json.loads(store.read_record(key) or b"{}")
            owner = record.get("owner")
            if record.get("status") == "running" and owner and Owner.model_validate(owner).provably_dead():
                dead.append(str(record["run_id"]))
        except (ValueError, AttributeError, KeyError, CorruptObject):  # damaged: whoever asks for that run is told
            continue
    return dead


def _disk(home: Path) -> dict[str, int]:
    """Bytes on disk by folder of ``.winnow/``."""
    if not home.exists():
        return {}
    return {entry.name: _bytes(entry) for entry in sorted(home.iterdir()) if entry.is_dir()}


def _bytes(folder: Path) -> int:
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:  # it vanished while we looked: files of running servers do
            continue
    return total


def _within(seconds: float, ask: Callable[[], T]) -> T | None:
    """The answer, or None where it takes longer or fails; the thread is left behind."""
    answers: list[T] = []

    def run() -> None:
        from model_registry.store import StoreError

        try:
            answers.append(ask())
        except StoreError:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
