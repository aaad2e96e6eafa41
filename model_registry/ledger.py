"""The ledger: who is, was and will be champion. It is the truth; MLflow's alias is its projection.

``ledger/<model>/<seq>.json`` (versioned bucket, written with If-None-Match) is the intent to make a version champion:
its sequence number is the lock and the compare-and-swap. ``<seq>.outcome.json``, also written once, says how it ended.
What it reached in between is in :mod:`model_registry.release_steps`.
An entry begins only when every earlier one is decided, so at most the last one is pending.
"""

from __future__ import annotations

import logging
import re
import secrets
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from model_registry.owner import Owner
from model_registry.store import Store, StoreError
from model_registry.variant import ModelName, NewerRecord, Record

_log = logging.getLogger("winnow.ledger")
Kind = Literal["release", "rollback"]
R = TypeVar("R", bound=Record)
_MODEL: TypeAdapter[str] = TypeAdapter(ModelName)
_KEY = re.compile(r"ledger/(?P<model>[^/]+)/(?P<seq>\d{8,})(?P<outcome>\.outcome)?\.json")


class LedgerError(StoreError):
    """Base of what the ledger raises: what the store holds does not allow it."""


class LedgerCorrupt(LedgerError):
    """An entry cannot be read, or the sequence has a hole: nothing is released until somebody has looked."""


class ReleasePending(LedgerError):
    """Another release of this model has begun and is not decided yet."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        super().__init__(
            f"{entry.model}: {entry.kind} {entry.seq} to version {entry.to_version} is still under way ({entry.by}); "
            "wait for it, or if that process is gone run `winnow up`, which completes or aborts it"
        )


class ChampionMoved(LedgerError):
    """The champion is no longer the one this release was decided against."""


class OutcomeDecided(LedgerError):
    """The entry was already decided the other way (for example aborted by a reconciler)."""


class NothingToRollBack(LedgerError):
    """There is no earlier champion to go back to."""


class Intent(Record):
    """What is about to happen, as it is stored."""

    model: ModelName
    seq: int = Field(ge=1)
    kind: Kind
    from_version: int | None
    from_digest: str | None
    to_version: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    at: AwareDatetime
    by: Owner
    token: str
    """Tells our own intent, whose answer was lost, from another's."""


class ReleaseOutcome(Record):
    """How it ended, as it is stored."""

    model: ModelName
    seq: int
    state: Literal["committed", "aborted"]
    reason: str = ""
    at: AwareDatetime
    by: Owner


class Entry(Intent):
    """An intent together with its outcome, if it has one."""

    state: Literal["pending", "committed", "aborted"] = "pending"
    reason: str = ""
    decided_at: AwareDatetime | None = None


class Ledger:
    """Reads and writes the ledger of all models in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decided: dict[tuple[str, int], Entry] = {}  # decided entries never change again

    # -- reading ------------------------------------------------------------------------------------------------
    def models(self) -> list[str]:
        """Names of all models with at least one entry."""
        return sorted({model for model, _, _ in self._keys("ledger/")})

    def history(self, model: str) -> list[Entry]:
        """All entries of a model, oldest first.

        Raises:
            LedgerCorrupt: an entry is unreadable, missing or out of order.
        """
        intents, outcomes = self._sequence(model)
        return [self._entry(model, seq, seq in outcomes) for seq in intents]

    def champion(self, model: str) -> Entry | None:
        """The last committed entry; None for a model that was never released."""
        intents, outcomes = self._sequence(model)
        for seq in reversed(intents):
            if seq in outcomes and (entry := self._entry(model, seq, True)).state == "committed":
                return entry
        return None

    def pending(self, model: str) -> Entry | None:
        """The entry that is not decided yet, if there is one."""
        intents, outcomes = self._sequence(model)
        return self._entry(model, intents[-1], False) if intents and intents[-1] not in outcomes else None

    def rollback_target(self, model: str) -> Entry:
        """The entry that made the champion before this one; one further back after each rollback, never to and fro.

        Raises:
            NothingToRollBack: the champion is the first one, or there is none.
        """
        stack = champions(self.history(model))
        if len(stack) < 2:
            now = f"version {stack[-1].to_version} is its first champion" if stack else "it has no champion"
            raise NothingToRollBack(f"{model}: nothing to roll back to: {now}; promote another version instead")
        return stack[-2]

    # -- writing ------------------------------------------------------------------------------------------------
    def begin(
        self, model: str, to_version: int, digest: str, *, expected_champion_seq: int, kind: Kind = "release"
    ) -> Entry:
        """Write the intent to make ``to_version`` champion; ``expected_champion_seq`` is 0 where there is none yet.

        Raises:
            ReleasePending: another one has begun and is not decided.
            ChampionMoved: the champion's entry is not ``expected_champion_seq`` any more.
            LedgerCorrupt: the ledger cannot be read; nothing is written.
        """
        _MODEL.validate_python(model)
        intents, _ = self._sequence(model)
        if (other := self.pending(model)) is not None:
            raise ReleasePending(other)
        champion = self.champion(model)
        if (found := champion.seq if champion else 0) != expected_champion_seq:
            raise ChampionMoved(
                f"{model}: decided against champion entry {expected_champion_seq}, but it is entry {found} now "
                f"({'version ' + str(champion.to_version) if champion else 'none'}); run again"
            )
        intent = Intent(
            model=model,
            seq=(intents[-1] if intents else 0) + 1,
            kind=kind,
            from_version=champion.to_version if champion else None,
            from_digest=champion.digest if champion else None,
            to_version=to_version,
            digest=digest,
            at=datetime.now(UTC),
            by=Owner.current(),
            token=secrets.token_hex(8),
        )
        if not self._store.create_record(_path(model, intent.seq), intent.to_json()):
            first = self._entry(model, intent.seq, False)
            if first.token != intent.token:  # else our own write, whose first answer was lost
                raise ReleasePending(first)
        return self._merge(intent, None)

    def commit(self, entry: Entry) -> Entry:
        """Make the entry's version the champion; harmless when it is committed already.

        Raises:
            OutcomeDecided: it was aborted meanwhile.
        """
        return self._decide(entry, "committed", "")

    def abort(self, entry: Entry, reason: str) -> Entry:
        """Give the entry up, for this reason; harmless when it is aborted already.

        Raises:
            OutcomeDecided: it was committed meanwhile.
        """
        return self._decide(entry, "aborted", reason)

    def _decide(self, entry: Entry, state: Literal["committed", "aborted"], reason: str) -> Entry:
        outcome = ReleaseOutcome(
            model=entry.model, seq=entry.seq, state=state, reason=reason, at=datetime.now(UTC), by=Owner.current()
        )
        self._store.create_record(_path(entry.model, entry.seq, outcome=True), outcome.to_json())
        decided = self._entry(entry.model, entry.seq, True)  # the first writer's word, which may not be ours
        if decided.state != state:
            raise OutcomeDecided(
                f"{entry.model}: {entry.kind} {entry.seq} was already {decided.state} "
                f"({decided.reason or 'no reason given'}); it cannot become {state}"
            )
        return decided

    # -- plumbing -----------------------------------------------------------------------------------------------
    def _keys(self, prefix: str) -> list[tuple[str, int, bool]]:
        """Model, number and whether it is an outcome, of every entry; what else lies there is nobody's entry."""
        keys = self._store.list_records(prefix)
        found = [(key, _KEY.fullmatch(key)) for key in keys]
        strays = [key for key, match in found if match is None]
        if strays:
            _log.warning("%s holds what is no ledger entry and is passed over: %s", self._store.records_bucket, strays)
        return [(m["model"], int(m["seq"]), m["outcome"] is not None) for _, m in found if m is not None]

    def _sequence(self, model: str) -> tuple[list[int], set[int]]:
        """Sequence numbers of the intents, in order, and of the outcomes; every rule of the sequence checked."""
        _MODEL.validate_python(model)
        for last in (False, True):  # a release may write while the list is read: look twice before calling it corrupt
            parts = self._keys(f"ledger/{model}/")
            intents = sorted(seq for _, seq, outcome in parts if not outcome)
            outcomes = {seq for _, seq, outcome in parts if outcome}
            holes = sorted(set(range(1, max(outcomes | set(intents), default=0) + 1)) - set(intents))
            undecided = [seq for seq in intents[:-1] if seq not in outcomes]
            if not holes and not undecided:
                break
            if last:
                raise LedgerCorrupt(
                    f"ledger of {model}: entries {holes} are missing, entries {undecided} lack an outcome though "
                    f"later ones exist; restore an older version of these objects in {self._store.records_bucket}"
                )
        return intents, outcomes

    def _entry(self, model: str, seq: int, decided: bool) -> Entry:
        if (known := self._decided.get((model, seq))) is not None:
            return known
        intent = self._read(_path(model, seq), Intent, model, seq)
        if not decided:
            return self._merge(intent, None)
        entry = self._merge(intent, self._read(_path(model, seq, outcome=True), ReleaseOutcome, model, seq))
        self._decided[model, seq] = entry
        return entry

    def _read(self, key: str, form: type[R], model: str, seq: int) -> R:
        data = self._store.read_record(key)
        try:
            document = form.from_json(data or b"")
        except NewerRecord as error:
            raise LedgerCorrupt(f"ledger entry {key}: {error}") from error
        except ValidationError as error:
            raise LedgerCorrupt(
                f"ledger entry {key} in {self._store.records_bucket} cannot be read: {error}; "
                "restore an older version of the object"
            ) from error
        says = (getattr(document, "model", None), getattr(document, "seq", None))
        if says != (model, seq):
            raise LedgerCorrupt(f"ledger entry {key} says it is entry {says[1]} of {says[0]!r}; restore the right one")
        return document

    @staticmethod
    def _merge(intent: Intent, outcome: ReleaseOutcome | None) -> Entry:
        body = {name: getattr(intent, name) for name in Intent.model_fields}
        if outcome is not None:
            body |= {"state": outcome.state, "reason": outcome.reason, "decided_at": outcome.at}
        return Entry.model_validate(body)


def champions(history: list[Entry]) -> list[Entry]:
    """The stack of champions that committed history leaves: a release is put on top, a rollback takes off.

    The last one serves now. Releasing what serves already changes nothing; a rollback takes off everything above the
    entry it landed on. A champion is its digest: MLflow, when it was lost, has given numbers twice.
    """
    stack: list[Entry] = []
    for entry in history:
        if entry.state != "committed":
            continue
        if entry.kind == "rollback":
            below = [i for i, earlier in enumerate(stack[:-1]) if earlier.digest == entry.digest]
            if below:
                del stack[below[-1] + 1 :]
                continue
        if not stack or stack[-1].digest != entry.digest:
            stack.append(entry)
    return stack


def _path(model: str, seq: int, *, outcome: bool = False) -> str:
    return f"ledger/{model}/{seq:08d}{'.outcome' if outcome else ''}.json"
