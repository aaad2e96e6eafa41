"""What ``winnow doctor`` checks: each check says what it found and, where something is wrong, how to fix it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from flows.commands import deployments
from infra import ports, procfs
from infra.component import fetch, fetch_when_free
from infra.daemon import census
from infra.faults import StackDown, StackError
from infra.recipes import WORK_POOL, weed
from infra.stack import Stack
from model_registry.authorization import mlflow_authorization, prefect_authorization
from model_registry.sizes import GB, size_text

Verdict = Literal["ok", "warn", "fail"]
#: Which installed versions are compared with the lock, by what stops working when they differ.
_WATCHED = (
    *("prefect", "fastapi", "sqlalchemy", "mlflow", "boto3", "pydantic", "great-expectations"),
    *("torch", "torch-pruning", "onnx", "onnxscript", "onnxruntime", "numpy", "pandas", "starlette", "uvicorn"),
)
_LOCK = Path(__file__).parents[2] / "requirements.lock"


@dataclass(frozen=True)
class DoctorCheck:
    """One line of the examination."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(stack: Stack) -> Iterator[DoctorCheck]:
    """All checks, one after the other, the machine first; those of the stack are warnings where it does not run."""
    yield _python()
    yield _versions()
    yield _machine()
    yield _memory()
    yield from _folder(stack.home.path)
    yield _s3_command(stack)
    yield from _ports(stack)
    yield from _leftovers(stack)
    try:
        environment = stack.environment()
    except StackError as error:
        yield DoctorCheck("stack", "warn" if isinstance(error, StackDown) else "fail", str(error), "winnow up")
        if os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            yield _store()  # an S3 of the user's can be tried before the stack is started
        return
    os.environ.update(environment)
    yield _store()
    yield _mlflow(environment)
    yield from _prefect(environment, deploying="deploy" in census(stack.home.path))
    yield _endpoint(environment["WINNOW_ENDPOINT"])


def _python() -> DoctorCheck:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.platform != "linux":
        return DoctorCheck(
            "python", "warn", f"{version} on {sys.platform}", "the embedded stack is tested on Linux only"
        )
    return DoctorCheck("python", "ok", f"{version} at {sys.executable}")


def _versions() -> DoctorCheck:
    """Installed libraries against the lock file, where there is one (not in an installed wheel)."""
    locked = {}
    if _LOCK.exists():
        lines = (line.split(";")[0].split("#")[0].strip() for line in _LOCK.read_text().splitlines())
        locked = dict(line.lower().split("==", 1) for line in lines if "==" in line)
    missing, different = [], []
    for name in _WATCHED:
        try:
            version = metadata.version(name).split("+")[0]  # torch's CPU build is 2.13.0+cpu
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        wanted = locked.get(name, version)
        if version != wanted.split("+")[0]:
            different.append(f"{name} {version} (tested: {wanted})")
    if missing:
        return DoctorCheck(
            "libraries", "fail", f"not installed: {', '.join(missing)}", "pip install 'winnow-mlops[pipeline]'"
        )
    if different:
        return DoctorCheck("libraries", "warn", ", ".join(different), f"pip install -r {_LOCK}")
    return DoctorCheck(
        "libraries", "ok", f"{len(_WATCHED)} as locked" if locked else "all installed (no lock file to compare)"
    )


def _machine() -> DoctorCheck:
    from model_registry.cpu_class import cpu_class, machine_name

    name = cpu_class()
    found = f"{machine_name()}, CPU class {name}"
    if name.startswith("x86-64/") and not name.endswith("vnni"):
        return DoctorCheck(
            "machine", "warn", found, "without VNNI int8 models are smaller but hardly faster; measure them"
        )
    return DoctorCheck("machine", "ok", found)


def _memory() -> DoctorCheck:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    found = f"{size_text(free)} available"
    if free < 2 * GB:
        return DoctorCheck(
            "memory", "warn", found, "the stack needs 1.2 GB and training about 1 GB more; end something"
        )
    return DoctorCheck("memory", "ok", found)


def _folder(home: Path) -> Iterator[DoctorCheck]:
    """The stack's folder: room, rights, and secrets that are secret."""
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{size_text(free)} free at {existing}"
    if free < GB:
        yield DoctorCheck("disk", "fail", found, "make room, or set WINNOW_HOME to another disk")
    elif free < 5 * GB:
        yield DoctorCheck("disk", "warn", found, "make room, or set WINNOW_HOME to another disk")
    else:
        yield DoctorCheck("disk", "ok", found)
    if not os.access(existing, os.W_OK):
        yield DoctorCheck(
            "folder", "fail", f"{existing} is not writable", "set WINNOW_HOME to a folder that you can write"
        )
    secrets = home / "secrets.json"
    if secrets.exists() and secrets.stat().st_mode & 0o077:
        yield DoctorCheck("secrets", "fail", f"other users can read {secrets}", f"chmod 600 {secrets}")


def _s3_command(stack: Stack) -> DoctorCheck:
    settings = stack.home.settings()
    endpoint = settings.s3_endpoint if settings else os.environ.get("AWS_ENDPOINT_URL_S3", "")
    try:
        return DoctorCheck("S3 server", "ok", f"external, {endpoint}" if endpoint else weed())
    except StackError as error:
        return DoctorCheck("S3 server", "fail", str(error), "pip install 'winnow-mlops[pipeline]'")


def _ports(stack: Stack) -> Iterator[DoctorCheck]:
    settings = stack.home.settings()
    numbers = settings.ports if settings else {port.name: port.default for port in ports.PUBLIC}
    ours, free, external = [], [], bool(settings and settings.s3_endpoint)
    owned = {process.session for members in census(stack.home.path).values() for process in members}
    for port in ports.PUBLIC:
        number = numbers[port.name]
        if port.name == "s3" and external:
            continue
        if ports.is_free(number):
            free.append(f"{port.name} {number}")
        elif _is_ours(number, owned):
            ours.append(f"{port.name} {number}")
        else:
            holder = ports.listener(number) or "another process"
            yield DoctorCheck(
                "ports", "fail", f"{number} for {port.owner} is taken by {holder}", f"winnow up {port.flag} PORT"
            )
    parts = [f"ours: {', '.join(ours)}"] if ours else []
    parts += [f"free: {', '.join(free)}"] if free else []
    if parts:
        yield DoctorCheck("ports", "ok", "; ".join(parts))


def _is_ours(number: int, sessions: set[int]) -> bool:
    holder = procfs.listening_pid(number)
    found = procfs.look_at_process(holder) if holder else None
    return found is not None and found.session in sessions


def _leftovers(stack: Stack) -> Iterator[DoctorCheck]:
    """Processes whose component is dead."""
    alive = {one.name for one in stack.components() if one.pid is not None}
    orphans = {name: len(members) for name, members in census(stack.home.path).items() if name not in alive}
    orphans.pop("deploy", None)
    if orphans:
        found = ", ".join(f"{count} of {name}" for name, count in orphans.items())
        yield DoctorCheck(
            "leftovers", "warn", f"processes without their component: {found}", "winnow up, or winnow down"
        )


def _store() -> DoctorCheck:
    """Put, get, create once, replace only what did not change: what ledger and leases stand on."""
    from model_registry.store import Store, StoreError

    key, begun = f"doctor/{uuid.uuid4().hex}", time.monotonic()
    try:
        store = Store.from_environment()
        where = str(store.client.meta.endpoint_url)
        store.prepare()
        store.put(key, b"1")
        problems = [] if store.get(key) == b"1" else ["a get does not return what was put"]
        if store.put_if_absent(key, b"2"):
            problems.append("If-None-Match is ignored")
        before = store.get_with_etag(key)
        if before is None or not store.put_if_match(key, b"3", before[1]):
            problems.append("If-Match refuses the right etag")
        elif store.put_if_match(key, b"4", before[1]):
            problems.append("If-Match accepts an old etag")
        store.delete(key)
    except (StoreError, ValueError) as error:
        return DoctorCheck(
            "S3", "fail", str(error), "check the endpoint and the keys; `winnow logs s3` for the embedded server"
        )
    if problems:
        remedy = "two releases at once could both win: use an S3 with conditional writes, or `winnow up --s3 local`"
        return DoctorCheck("S3", "fail", f"{where}: {'; '.join(problems)}", remedy)
    took = 1000 * (time.monotonic() - begun)
    return DoctorCheck("S3", "ok", f"{where}, {store.uri}: put, get, conditional put ({took:.0f} ms)")


def _mlflow(environment: Mapping[str, str]) -> DoctorCheck:
    url = environment["MLFLOW_TRACKING_URI"]
    status, body = fetch(f"{url}/version", timeout=3, headers=mlflow_authorization(environment))
    if status != 200:
        return DoctorCheck(
            "MLflow", "fail", f"{url} does not answer: {body.decode(errors='replace')[:200]}", "winnow up"
        )
    version, ours = body.decode().strip(), metadata.version("mlflow")
    if version != ours:
        return DoctorCheck("MLflow", "warn", f"{url} is {version}, the client {ours}", "winnow down, then winnow up")
    return DoctorCheck("MLflow", "ok", f"{url}, version {version}")


def _prefect(environment: Mapping[str, str], *, deploying: bool = False) -> Iterator[DoctorCheck]:
    api, headers = environment["PREFECT_API_URL"], prefect_authorization(environment)
    status, body = fetch_when_free(f"{api}/admin/version", timeout=3, headers=headers)
    if status != 200:
        yield DoctorCheck(
            "Prefect", "fail", f"{api} does not answer: {body.decode(errors='replace')[:200]}", "winnow up"
        )
        return
    version, ours = json.loads(body), metadata.version("prefect")
    if version != ours:
        yield DoctorCheck("Prefect", "warn", f"{api} is {version}, the client {ours}", "winnow down, then winnow up")
    else:
        yield DoctorCheck("Prefect", "ok", f"{api}, version {version}")
    status, body = fetch_when_free(f"{api}/work_pools/{WORK_POOL}", timeout=3, headers=headers)
    state = json.loads(body).get("status") if status == 200 else "missing"
    if state == "READY":
        yield DoctorCheck("worker", "ok", f"work pool {WORK_POOL} is ready")
    else:
        yield DoctorCheck(
            "worker", "fail", f"work pool {WORK_POOL} is {state}", "winnow up; `winnow logs worker` says more"
        )
    lacking = deployments.missing(environment)
    if lacking and deploying:
        yield DoctorCheck("deployments", "ok", "being made")
    elif lacking and deployments.PREFECT_FILE.exists():
        remedy = "`winnow logs deploy` says why; or run prefect --no-prompt deploy --all"
        yield DoctorCheck("deployments", "warn", f"missing: {', '.join(lacking)}", remedy)
    elif not lacking:
        yield DoctorCheck("deployments", "ok", ", ".join(deployments.NAMES))


def _endpoint(url: str) -> DoctorCheck:
    status, body = fetch(f"{url}/v2/health/live", timeout=3)
    if status != 200:
        return DoctorCheck(
            "endpoint", "fail", f"{url} answers {status}: {body.decode(errors='replace')[:200]}", "winnow up"
        )
    status, body = fetch(f"{url}/v2/health/ready", timeout=3)
    if status != 200:
        found = f"{url} is live, not ready: {body.decode(errors='replace')[:200]}"
        return DoctorCheck("endpoint", "warn", found, "wait, or look into `winnow logs endpoint`")
    return DoctorCheck("endpoint", "ok", url)
