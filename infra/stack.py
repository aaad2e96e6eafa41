"""The embedded stack as a whole: brought up, taken down, looked at."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from infra import ports, procfs, recipes
from infra.choices import choose_settings
from infra.component import Component
from infra.daemon import Daemon, census
from infra.faults import StackDown, StackError
from infra.home import ADMIN_GRPC, USER, Home, Secrets, Settings, inner_ports
from infra.lock import exclusive
from infra.ports import LOOPBACK
from infra.startup import Event, Report, Startup, silent
from model_registry.quiet import QUIET

#: Ended in this order, those of a row together: who writes ends before what it writes to.
_ENDING = (("worker",), ("endpoint", "mlflow", "prefect", "log-keeper"), ("s3",))
NAMES = ("s3", "mlflow", "prefect", "worker", "endpoint")
_LOCK_PATIENCE = 300.0
#: A busy machine answers late; what is silent for this number of seconds is taken for hung.
_ANSWER_PATIENCE = 8.0
_LOOK_PATIENCE = 2.0
_CHANGED = "its settings changed"


@dataclass(frozen=True)
class ComponentState:
    """What ``winnow status`` says of one component.

    ``rss`` is in bytes and counts the children, ``since`` is in seconds since the epoch.
    """

    name: str
    title: str
    state: str  # up | hung (runs, does not answer) | down | external
    pid: int | None
    url: str
    rss: int
    since: float | None
    log: str


class Stack:
    """The stack of one folder."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)

    @classmethod
    def from_environment(cls) -> Stack:
        """The stack of WINNOW_HOME, by default ``.winnow`` in the working directory."""
        return cls(Home.from_environment().path)

    # -- looking ------------------------------------------------------------------------------------------------
    def is_up(self) -> bool:
        """Whether every component's process lives (their health is asked by :meth:`components`)."""
        settings = self.home.settings()
        return settings is not None and not self._missing(settings)

    def environment(self, needed: Collection[str] = NAMES) -> dict[str, str]:
        """What a process needs to reach the stack.

        Args:
            needed: components without which it can do nothing.

        Raises:
            StackDown: the stack does not run, or not all that is needed of it.
        """
        settings, secrets = self.home.settings(), self.home.secrets()
        if settings is None or secrets is None:
            raise StackDown(f"no stack in {self.home.path}; start one with `winnow up`")
        missing = self._missing(settings)
        if not set(needed).isdisjoint(missing):
            whole = "is not running" if len(missing) == len(_wanted(settings)) else f"lacks {', '.join(missing)}"
            raise StackDown(f"the stack in {self.home.path} {whole}; start it with `winnow up`")
        return self._environment(settings, secrets)

    def components(self) -> list[ComponentState]:
        """The state of every component, asked over HTTP in parallel; empty where there never was a stack."""
        settings, secrets = self.home.settings(), self.home.secrets()
        if settings is None or secrets is None:
            return []
        known = self._components(settings, secrets)
        members = census(self.home.path)
        with ThreadPoolExecutor(max_workers=len(known)) as pool:
            states = list(pool.map(lambda one: self._state(one, members.get(one.name, [])), known))
        if settings.s3_endpoint:
            states.insert(0, ComponentState("s3", "S3 (external)", "external", None, settings.s3_endpoint, 0, None, ""))
        return states

    def _state(self, component: Component, members: Sequence[procfs.Process]) -> ComponentState:
        daemon = self._daemon(component.name)
        running = daemon.running()
        # Prefect answers 503 while its SQLite is locked, and the worker is asked for at Prefect's.
        state = "down" if running is None else "up" if _answers(component, patience=_LOOK_PATIENCE) else "hung"
        return ComponentState(
            component.name,
            component.title,
            state,
            running.pid if running else None,
            component.url,
            sum(process.rss for process in members),
            running.since if running else None,
            str(daemon.log_file),
        )

    def _missing(self, settings: Settings) -> list[str]:
        return [name for name in _wanted(settings) if self._daemon(name).running() is None]

    def _daemon(self, name: str) -> Daemon:
        return Daemon(name, self.home.path)

    # -- up -----------------------------------------------------------------------------------------------------
    def up(
        self,
        *,
        ports: Mapping[str, int] | None = None,
        s3: str | None = None,
        mlflow_db: str | None = None,
        store: str | None = None,
        report: Report = silent,
    ) -> list[ComponentState]:
        """Start what is missing, in parallel where nothing stands against it, and wait until all of it is well.

        ``ports`` by name (s3, mlflow, prefect, endpoint, admin); ``s3`` is the URL of an S3 that exists, or ``local``;
        ``mlflow_db`` is a database URL, or ``sqlite``. What is not given is taken from the environment (WINNOW_S3_PORT
        and so on, AWS_ENDPOINT_URL_S3, WINNOW_MLFLOW_DB, WINNOW_STORE), else it is as it was the last time.

        Raises:
            PortTaken: before anything is started.
            ComponentFailed: after everything that this call started was ended again.
        """
        self.home.create()
        lock = self.home.path / "run" / "stack.lock"
        with exclusive(lock, patience=_LOCK_PATIENCE, waiting=lambda text: report(Event("", "waiting", text))):
            settings, secrets = choose_settings(self.home, dict(ports or {}), s3, mlflow_db, store)
            known = self._components(settings, secrets)
            dead = {one.name for one in known if self._daemon(one.name).running() is None}
            # A component is not blamed for silence while another that it needs is dead: it is asked afterwards.
            later = [one for one in known if one.name not in dead and dead.intersection(one.needs)]
            lacking = self._faults([one for one in known if one not in later], report)
            settings = self._check_ports(settings, set(lacking))  # before anything is ended or started
            with self._remembering(settings, secrets):
                if settings.s3_endpoint:
                    self._daemon("s3").end(5.0)  # ours, from before
                    self._prepare_store(settings, secrets)
                self._start(settings, secrets, lacking, report)
                self._start(settings, secrets, self._faults(later, report), report)
            keeper = recipes.log_keeper(self.home.path)
            if self._daemon(keeper.name).running() is None:
                self._daemon(keeper.name).start(keeper)
        return self.components()

    def _faults(self, components: Sequence[Component], report: Report) -> dict[str, str]:
        """Why each of them must be started (again); those that run as wanted and answer are left out."""

        def fault(component: Component) -> str:
            running = self._daemon(component.name).running()
            if running is None:
                return "it did not run"
            if running.recipe != component.recipe:
                return _CHANGED
            if not _answers(component, patience=_ANSWER_PATIENCE):
                return "it did not answer"
            report(Event(component.name, "found"))
            return ""

        with ThreadPoolExecutor(max_workers=len(components) or 1) as pool:
            found = zip(components, pool.map(fault, components), strict=True)
            return {component.name: why for component, why in found if why}

    @contextmanager
    def _remembering(self, settings: Settings, secrets: Secrets) -> Iterator[None]:
        """Remember the choices, unless the stack does not come up with them."""
        before = self.home.settings(), self.home.secrets()
        self.home.save(settings, secrets)
        try:
            yield
        except BaseException:
            self.home.restore(*before)
            raise

    def _start(self, settings: Settings, secrets: Secrets, faults: Mapping[str, str], report: Report) -> None:
        """End what is left of these components, children of a dead leader too, and bring them up.

        What a component spares goes on, unless its settings changed: it was started with the old ones.
        """
        chosen = [one for one in self._components(settings, secrets) if one.name in faults]
        for component in chosen:
            daemon = self._daemon(component.name)
            changed = faults[component.name] == _CHANGED
            spares = "" if changed else component.spares
            # One that hangs would end with its children what it spares, given the time for it.
            grace = component.grace if daemon.running() and not spares else 0
            if daemon.end(grace, spares=spares):
                report(Event(component.name, "ended", faults[component.name]))
            _remove(component.litter)
        Startup(self.home.path, chosen, report, prepare=lambda: self._prepare_store(settings, secrets)).run()

    def _check_ports(self, settings: Settings, lacking: set[str]) -> Settings:
        owners = {"admin": "endpoint"}
        ours = {process.pid for members in census(self.home.path).values() for process in members}
        ports.check({name: port for name, port in settings.ports.items() if owners.get(name, name) in lacking}, ours)
        kept = {
            name: port
            for name, port in settings.inner_ports.items()
            if ("worker" if name == "worker" else "s3") not in lacking
            or (ports.is_free(port) and (name != "admin" or ports.is_free(port + ADMIN_GRPC)))
        }
        return replace(settings, inner_ports=inner_ports(kept))

    def _prepare_store(self, settings: Settings, secrets: Secrets) -> None:
        """Make the buckets, in a process of its own: no keys in our environment, no boto3 in our memory."""
        done = subprocess.run(
            [sys.executable, "-m", "infra.store_probe", "prepare"],
            env={**os.environ, **self._environment(settings, secrets)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise StackError(f"the store {settings.store} cannot be prepared: {done.stderr.strip()}")

    # -- down ---------------------------------------------------------------------------------------------------
    def down(self, *, report: Report = silent) -> dict[str, int]:
        """End everything that belongs to the folder, whoever started it; returns the processes ended by component."""
        if not self.home.path.exists():
            return {}
        lock = self.home.path / "run" / "stack.lock"
        with exclusive(lock, patience=_LOCK_PATIENCE, waiting=lambda text: report(Event("", "waiting", text))):
            settings, secrets = self.home.settings(), self.home.secrets()
            known = {one.name: one for one in self._components(settings or Settings(), secrets or Secrets())}
            strangers = tuple(set(census(self.home.path)) - set(NAMES))  # of another version of Winnow
            ended: dict[str, int] = {}
            for row in (*_ENDING, strangers):
                with ThreadPoolExecutor(max_workers=len(row) or 1) as pool:
                    counts = list(pool.map(lambda name: self._end(name, known.get(name)), row))
                for name, count in zip(row, counts, strict=True):
                    if count:
                        ended[name] = count
                        report(Event(name, "ended"))
            for component in known.values():
                _remove(component.litter)
        return ended

    def _end(self, name: str, component: Component | None) -> int:
        if component is None:
            return self._daemon(name).end(5.0)
        return self._daemon(name).end(component.grace, epilogue=component.epilogue)

    # -- what there is ------------------------------------------------------------------------------------------
    def _components(self, settings: Settings, secrets: Secrets) -> list[Component]:
        home, environment = self.home.path, self._environment(settings, secrets)
        made = [
            recipes.mlflow_server(home, settings.ports["mlflow"], settings.store, secrets.mlflow_db, environment),
            recipes.prefect_server(home, settings.ports["prefect"], environment),
            recipes.prefect_worker(home, settings.inner_ports["worker"], environment),
            recipes.endpoint(home, settings, secrets, environment),
        ]
        if not settings.s3_endpoint:
            made.insert(0, recipes.s3_server(home, settings, secrets))
        return made

    def _environment(self, settings: Settings, secrets: Secrets) -> dict[str, str]:
        found = {
            "WINNOW_HOME": str(self.home.path),
            "WINNOW_STORE": settings.store,
            "AWS_ENDPOINT_URL_S3": settings.s3_endpoint or f"http://{LOOPBACK}:{settings.ports['s3']}",
            "AWS_REGION": settings.region,
            "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{settings.ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": secrets.password,
            "PREFECT_API_URL": f"http://{LOOPBACK}:{settings.ports['prefect']}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{secrets.password}",
            "PREFECT_HOME": str(self.home.path / "prefect"),  # a profile in ~/.prefect shall not send runs elsewhere
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "WINNOW_ENDPOINT": f"http://{LOOPBACK}:{settings.ports['endpoint']}",
            "WINNOW_ENDPOINT_ADMIN": f"http://{LOOPBACK}:{settings.ports['admin']}",
            "WINNOW_ADMIN_TOKEN": secrets.admin_token,
            **dict.fromkeys(("NO_PROXY", "no_proxy"), _no_proxy()),
            **QUIET,
        }
        if settings.s3_endpoint:  # the user's own keys; part of the recipes, so that other keys restart what uses them
            return found | {name: os.environ[name] for name in _AWS_KEYS if name in os.environ}
        return found | {"AWS_ACCESS_KEY_ID": secrets.access_key, "AWS_SECRET_ACCESS_KEY": secrets.secret_key}


_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


def _wanted(settings: Settings) -> list[str]:
    return [name for name in NAMES if name != "s3" or not settings.s3_endpoint]


def _remove(litter: Sequence[Path]) -> None:
    for left in litter:
        left.unlink(missing_ok=True)


def _answers(component: Component, *, patience: float) -> bool:
    """Whether it is well, given some seconds: a busy machine answers late."""
    deadline = time.monotonic() + patience
    while not component.is_well(timeout=2.0):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _no_proxy() -> str:
    """The user's exceptions plus loopback: a company's proxy must not be asked for 127.0.0.1."""
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    parts = [part.strip() for part in given.split(",") if part.strip()]
    return ",".join([*parts, *(host for host in (LOOPBACK, "localhost") if host not in parts)])


def describe_stack(states: Sequence[ComponentState]) -> list[dict[str, object]]:
    """The states as JSON holds them."""
    return [asdict(state) for state in states]
