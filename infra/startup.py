"""Components brought up side by side, each after those that it needs. One failure ends all that were started."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from infra.component import Component
from infra.daemon import Daemon
from infra.faults import ComponentFailed
from infra.headway import Headway


@dataclass(frozen=True)
class Event:
    """What ``up`` and ``down`` report while they work."""

    name: str  # of the component; empty: of the stack
    phase: str  # waiting | found | starting | slow | well | failed | ended
    text: str = ""


_MENTIONED_AFTER = 4.0
_MOST_PATIENCES = 10

Report = Callable[[Event], None]


def silent(_: Event) -> None:
    """Report to nobody."""


class Startup:
    """One attempt to bring up some components. ``prepare`` is called once the S3 server is well."""

    def __init__(
        self, home: Path, components: Sequence[Component], report: Report, *, prepare: Callable[[], None]
    ) -> None:
        self._home, self._components, self._report, self._prepare = home, components, report, prepare
        self._well = {component.name: threading.Event() for component in components}
        self._abort = threading.Event()
        self._started: list[Component] = []

    def run(self) -> None:
        """Return when all are well.

        Raises:
            ComponentFailed: one did not come up (the first one, in the order given).
        """
        if not self._components:
            return
        try:
            with ThreadPoolExecutor(max_workers=len(self._components)) as pool:
                try:
                    jobs = [pool.submit(self._bring_up, component) for component in self._components]
                    wait(jobs)
                except BaseException:  # Ctrl-C: the threads shall end, or leaving the pool would wait for them
                    self._abort.set()
                    raise
            for job in jobs:
                job.result()
        except BaseException:  # whatever it was, what this call started does not stay behind
            self._end_started()
            raise

    def _bring_up(self, component: Component) -> None:
        try:
            for need in component.needs:
                self._wait_for(need)
            if self._abort.is_set():
                return
            self._report(Event(component.name, "starting"))
            begun = time.monotonic()
            daemon = Daemon(component.name, self._home)
            self._started.append(component)
            daemon.start(component)
            work, mention = Headway(daemon, component.patience), _MENTIONED_AFTER
            while not component.is_well():
                if self._abort.is_set():
                    return
                if daemon.running() is None:
                    raise self._failure(component, daemon, "ended while starting")
                waited = time.monotonic() - begun
                if work.stands_still():
                    raise self._failure(component, daemon, f"was not ready after {waited:.0f} s")
                if waited > _MOST_PATIENCES * component.patience:
                    raise self._failure(component, daemon, f"worked for {waited:.0f} s and was still not ready")
                if waited > mention:
                    text = f"the {component.title} is not ready after {waited:.0f} s"
                    self._report(Event(component.name, "slow", text))
                    mention *= 2
                time.sleep(0.1)
            if component.name == "s3":
                self._prepare()
            self._report(Event(component.name, "well", f"{time.monotonic() - begun:.1f} s"))
            self._well[component.name].set()
        except BaseException:
            self._abort.set()
            raise

    def _wait_for(self, need: str) -> None:
        """A component that is not part of this attempt is well already."""
        if need in self._well:
            while not self._abort.is_set() and not self._well[need].wait(timeout=0.1):
                pass

    def _failure(self, component: Component, daemon: Daemon, what: str) -> ComponentFailed:
        self._report(Event(component.name, "failed", what))
        last = "\n".join(f"    {line}" for line in daemon.tail(15))
        return ComponentFailed(
            f"the {component.title} {what}; everything started with it was ended again.\n"
            f"Its last log lines:\n{last}\nThe whole log: {daemon.log_file}\nCheck the machine with `winnow doctor`."
        )

    def _end_started(self) -> None:
        def end(one: Component) -> int:
            return Daemon(one.name, self._home).end(one.grace, spares=one.spares)

        with ThreadPoolExecutor(max_workers=max(1, len(self._started))) as pool:
            list(pool.map(end, self._started))
