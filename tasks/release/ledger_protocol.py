"""How a version comes into service: the ledger protocol, and the reconciler that completes or undoes half of one.

    intent      the ledger says what is about to happen; its sequence number is the lock
    loaded      the endpoint holds the version beside the serving one, digest verified, warmed
    checked     it answered the recorded predictions over HTTP as it did when it was measured
    tried       where a plan says so, it was tried with a part of the traffic, step by step (rollout_watch.py)
    swapped     it has the traffic
    committed   the ledger says so: from here on it is the champion
    shown       the endpoint was asked once more what it serves, and MLflow's alias ``champion`` follows

The ledger decides and everything else follows it. Whatever fails before ``committed`` aborts the entry, and the traffic
goes back to the champion. A process killed in between leaves a pending entry: the next release, run or ``winnow up``
rolls it forward if the endpoint already serves the version, and aborts it if not. What fails after it is a warning: the
release stands. MLflow is a view: without it nothing is different but a warning.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal, TypeVar

from model_registry.champion_view import UNREADABLE, show_champion
from model_registry.endpoint_client import Endpoint, EndpointError, EndpointRefused, EndpointUnreachable
from model_registry.lease import Held, OnWait, lease
from model_registry.ledger import Entry, Kind, Ledger, OutcomeDecided, ReleasePending
from model_registry.mlflow_rest import RegistryError
from model_registry.owner import Owner
from model_registry.registry import Registry
from model_registry.release_steps import ReleaseSteps
from model_registry.rollout_plan import RolloutPlan
from model_registry.store import Store, StoreError, StoreUnavailable
from model_registry.variant import Frozen
from model_registry.versions import VersionMissing, Versions
from tasks.release.champion_set import ChampionSet
from tasks.release.recorded_answers import check_recorded
from tasks.release.rollout_watch import RolloutWatch
from tasks.running.errors import EndpointUnhealthy

PATIENCE_SECONDS = 60.0
"""How long one step of a release waits for a server that is away: longer than a restart, shorter than a lunch."""
LIMIT_SECONDS = 300.0
"""A pending entry whose owner may still live is left alone for this long."""
WAIT_SECONDS = 600.0
"""How long a release waits for another release of the same model."""

Note = Callable[[str], None]
T = TypeVar("T")
_log = logging.getLogger("winnow.release")


class Reconciled(Frozen):
    """What the reconciler found and did about a model."""

    model: str
    action: Literal["nothing", "committed", "aborted", "rerouted", "shown"]
    entry: Entry | None = None
    champion: Entry | None = None
    problem: str = ""
    """What stands in the way of endpoint or MLflow saying what the ledger says."""

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if self.entry is not None:
            why = f": {self.entry.reason}" if self.entry.reason else ""
            return f"{self.entry.kind} {self.entry.seq} to version {self.entry.to_version} was {self.action}{why}"
        said = {
            "rerouted": "its traffic was given back to the champion",
            "shown": "MLflow's alias champion was moved to the champion",
        }
        return said.get(self.action, "nothing to do")


class ReleaseProtocol:
    """The parties of a release, for one model. ``note`` is called with each step that was reached; ``registry`` is None
    where there is no MLflow to show it."""

    def __init__(
        self, store: Store, endpoint: Endpoint, registry: Registry | None, model: str, note: Note | None = None
    ) -> None:
        self.store, self.endpoint, self.registry, self.model = store, endpoint, registry, model
        self.ledger = Ledger(store)
        self.warnings: list[str] = []
        """What is not as it should be though the release stands."""
        self.served = True
        """False if the endpoint could not be brought to what the ledger says."""
        self._note = note or (lambda step: _log.info("%s: %s", model, step))

    # -- release ------------------------------------------------------------------------------------------------
    def release(
        self,
        version: int,
        digest: str,
        *,
        kind: Kind = "release",
        champion_seq: int | None = None,
        tolerance: float = 1e-3,
        load_seconds: float = 120.0,
        plan: RolloutPlan | None = None,
        on_wait: OnWait | None = None,
    ) -> Entry:
        """Make the version champion, or leave everything as it was.

        Args:
            version: registered version; ``digest`` is its variant's, and decides.
            champion_seq: the champion's ledger entry it was judged against (0: there was none); None: whichever.
            tolerance: largest difference to the recorded outputs, relative to the largest of them.
            load_seconds: how long the endpoint may take to load it.
            plan: for taking over the traffic step by step; None: at once. Without a champion that serves there is
                nothing to compare with, and it is at once too.

        Returns:
            The committed entry; the present one if the digest is champion already.

        Raises:
            EndpointUnhealthy: it could not be loaded, does not answer as recorded, or was stopped on trial.
            ChampionMoved: another champion was released since it was judged.
            ReleasePending: another release is under way and its process may live.
            VersionMissing: there is no such version, or it is another variant.
            LeaseBusy, LeaseLost, StoreUnavailable: may pass; nothing moved.
        """
        with self._alone(on_wait) as held:
            self._settle()
            champion = self.ledger.champion(self.model)
            if champion is not None and champion.digest == digest:
                self._follow(champion)
                if not self.endpoint.model(self.model).answers:  # its engine is down: the refusal says why
                    self._load(champion.to_version, digest, load_seconds)
                self._show(champion)
                return champion
            if (known := Versions(self.store).digest(self.model, version)) != digest:
                raise VersionMissing(f"version {version} of model {self.model!r} is variant {known}, not {digest}")
            seen = (champion.seq if champion else 0) if champion_seq is None else champion_seq
            entry = self.ledger.begin(self.model, version, digest, kind=kind, expected_champion_seq=seen)
            try:
                self._reached(entry, "intent")
                self._load(version, digest, load_seconds)
                self._reached(entry, "loaded")
                check_recorded(self.store, self.endpoint, self.model, version, digest, tolerance)
                self._reached(entry, "checked")
                if plan is not None and self.endpoint.model(self.model).answers:
                    RolloutWatch(self.endpoint, self.model, version, plan, held.check).follow(
                        lambda: self._load(version, digest, load_seconds),
                        lambda what, detail: self._reached(entry, what, detail),
                    )
                held.check()
                self.endpoint.route(self.model, version)
                self._reached(entry, "swapped")
                # An endpoint that was started again meanwhile serves the champion that it read from the ledger.
                patiently(lambda: self._bring(version, digest, load_seconds))
                done = patiently(lambda: self.ledger.commit(entry))
            except BaseException as error:
                arrived = self._undo(entry, error)
                if isinstance(error, EndpointError):
                    raise EndpointUnhealthy(
                        f"{self.model} version {version} was not put into service: {error}"
                    ) from error
                if arrived is None or not isinstance(error, StoreError):
                    raise
                done = arrived
            self._reached(done, "committed")
            self._arrive(done)
            self._reached(done, "shown")
        return done

    def reconcile(self, on_wait: OnWait | None = None) -> Reconciled:
        """Complete or undo what a dead release left, and bring endpoint and MLflow's alias to the champion.

        Raises:
            EndpointUnreachable: whether the version serves cannot be told; nothing was decided.
            ReleasePending: the release's process may still live.
        """
        with self._alone(on_wait):
            found = self._settle()
            action = found.action
            if found.champion is not None and action != "committed":  # else it was shown when it arrived
                moved = self._show(found.champion)
                action = "shown" if moved and action == "nothing" else action
            return found.model_copy(update={"action": action, "problem": found.problem or "; ".join(self.warnings)})

    def _reached(self, entry: Entry, what: str, detail: str = "") -> None:
        """Say what was reached; the ledger has it for people, so that a store that is away holds up nothing."""
        self._note(f"{what} ({detail})" if detail else what)
        try:
            ReleaseSteps(self.store).add(entry, what, detail)
        except StoreError as trouble:
            _log.warning(
                "%s: the ledger does not know that release %d was %s: %s", self.model, entry.seq, what, trouble
            )

    # -- steps --------------------------------------------------------------------------------------------------
    def _load(self, version: int, digest: str, seconds: float) -> None:
        patiently(lambda: self.endpoint.load(self.model, version, digest, seconds=seconds))

    def _undo(self, entry: Entry, error: BaseException) -> Entry | None:
        """Abort, then let the endpoint follow. What fails here is left to the reconciler.

        Returns the committed entry if the commit had arrived after all, though its answer was lost.
        """
        try:
            aborted = self.ledger.abort(entry, f"{type(error).__name__}: {error}"[:500])
        except OutcomeDecided:
            return self.ledger.champion(self.model)
        except StoreError as outage:
            _log.warning("%s: release %d stays pending until the store answers: %s", self.model, entry.seq, outage)
            return None
        try:
            self._after_abort(aborted)
        except (EndpointError, StoreError) as trouble:
            _log.warning("%s: not all of release %d is undone yet: %s", self.model, entry.seq, trouble)
        return None

    # -- reconciliation -----------------------------------------------------------------------------------------
    def _settle(self) -> Reconciled:
        """With the lease held: decide a pending entry, then bring the endpoint to the champion."""
        pending = self.ledger.pending(self.model)
        if pending is None:
            champion = self.ledger.champion(self.model)
            try:
                moved = champion is not None and self._follow(champion)
            except EndpointRefused as refusal:  # it answers but cannot load it: a new release must stay possible
                _log.warning("%s: champion %s cannot be served: %s", self.model, champion, refusal)
                return Reconciled(model=self.model, action="nothing", champion=champion, problem=str(refusal))
            return Reconciled(model=self.model, action="rerouted" if moved else "nothing", champion=champion)
        age = (datetime.now(UTC) - pending.at).total_seconds()
        # Our own process cannot be at it: it would hold the lease that we hold.
        if not (pending.by == Owner.current() or pending.by.provably_dead() or age > LIMIT_SECONDS):
            raise ReleasePending(pending)
        served = self.endpoint.model(self.model)
        if served.serves(pending.to_version, pending.digest):
            done = self.ledger.commit(pending)
            self._arrive(done)
            return Reconciled(model=self.model, action="committed", entry=done, champion=done)
        gone = f"{pending.by} ended or lost its lease before version {pending.to_version} took the traffic"
        done = self.ledger.abort(pending, gone)
        self._after_abort(done)
        return Reconciled(model=self.model, action="aborted", entry=done, champion=self.ledger.champion(self.model))

    def _after_abort(self, entry: Entry) -> None:
        """Traffic and memory as the champion wants them, after this entry was aborted."""
        champion = self.ledger.champion(self.model)
        if champion is not None:
            self._follow(champion)  # of whose set the aborted version may be
            return
        if self.endpoint.model(self.model).serving == entry.to_version:
            self.endpoint.route(self.model, None)
        self.endpoint.unload(self.model, entry.to_version)

    def _follow(self, champion: Entry) -> bool:
        """See that the endpoint serves the champion and its set alone; returns whether the traffic moved."""
        moved = self._bring(champion.to_version, champion.digest, 120.0)
        self._complete(champion)
        return moved

    def _bring(self, version: int, digest: str, seconds: float) -> bool:
        """See that this variant has the traffic under this number; returns whether that had to be changed."""
        served = self.endpoint.model(self.model)
        held = served.digest_of(version)
        if served.serves(version, digest):
            return False
        if held is not None and held != digest:  # the number of another variant: it cannot be held beside it
            if served.serving == version:
                self.endpoint.route(self.model, None)
            self.endpoint.unload(self.model, version)
        self._load(version, digest, seconds)
        self.endpoint.route(self.model, version)
        return True

    def _arrive(self, entry: Entry) -> None:
        """After the commit, which stands: see that the endpoint serves it, and that MLflow shows it."""
        version = entry.to_version
        try:
            patiently(lambda: self._bring(version, entry.digest, 120.0))
        except EndpointError as trouble:
            self.served = False
            self._warn(
                f"version {version} is the champion by the ledger, but the endpoint does not serve it: {trouble}; an "
                "endpoint that starts takes it from the ledger, and `winnow up` brings one that runs to it"
            )
        else:
            try:
                self._complete(entry)
            except EndpointError as trouble:
                _log.warning("%s: released, but the old version is not unloaded yet: %s", self.model, trouble)
        self._show(entry)

    def _show(self, champion: Entry) -> bool:
        """Have MLflow's alias follow; returns whether it had to be moved."""
        if self.registry is None:
            return False
        try:
            return show_champion(self.registry, self.store, champion)
        except (RegistryError, StoreUnavailable, *UNREADABLE) as trouble:
            self.registry = None  # one that hangs is not waited for twice
            self._warn(
                f"MLflow does not show version {champion.to_version} as champion: {trouble}; the ledger decides, and "
                "`winnow up` has MLflow follow it"
            )
            return False

    def _complete(self, champion: Entry) -> None:
        """The champion's set beside it, and nothing else."""
        ChampionSet(self.store, self.endpoint, self.model, self._warn).complete(champion)

    def _warn(self, text: str) -> None:
        _log.warning("%s: %s", self.model, text)
        self.warnings.append(text)

    @contextmanager
    def _alone(self, on_wait: OnWait | None) -> Iterator[Held]:
        with lease(self.store, f"release-{self.model}", wait_seconds=WAIT_SECONDS, on_wait=on_wait) as held:
            yield held


def patiently(call: Callable[[], T]) -> T:
    """Try again, for a minute, while a server is away; then let its error rise."""
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.5
    while True:
        try:
            return call()
        except (StoreUnavailable, EndpointUnreachable, EndpointRefused, ConnectionError) as error:
            hopeless = isinstance(error, EndpointRefused) and not error.may_pass
            if hopeless or time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 8.0)
