"""What the endpoint serves when it starts: the ledger's champions, each loaded, and tried again until it is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from model_registry.ledger import LedgerError
from model_registry.store import StoreError
from serving.exceptions import LoadRefused, ServingError
from serving.rollout import Model, Rollout

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
log = logging.getLogger("winnow.serving")


class ServedChampion(Protocol):
    """A ledger entry, as far as the endpoint needs it."""

    @property
    def to_version(self) -> int: ...

    @property
    def digest(self) -> str: ...


class LedgerReader(Protocol):
    """The ledger, as far as the endpoint needs it; blocking."""

    def models(self) -> list[str]: ...

    def champion(self, model: str, /) -> ServedChampion | None: ...


async def load_champions(rollout: Rollout, ledger: Callable[[], LedgerReader]) -> None:
    """Bring every champion into service, then return; retries for as long as something is missing.

    A model that fails leaves its reason in the rollout while the others serve. A model that got traffic from the
    admin listener meanwhile is left alone.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            champions = await asyncio.to_thread(_read, ledger)
        except (StoreError, LedgerError) as error:
            if rollout.waiting_for:
                rollout.waiting_for = f"the ledger cannot be read: {error}"
            log.warning("the ledger cannot be read, next attempt in %g s: %s", pause, error)
        else:
            for model in champions:
                rollout.models.setdefault(model, Model(reason="its champion is being loaded"))
            rollout.waiting_for = ""
            done = await asyncio.gather(*(_serve(rollout, *item) for item in champions.items()))
            if all(done):
                return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _read(ledger: Callable[[], LedgerReader]) -> dict[str, ServedChampion | LedgerError]:
    """The champion of each model, or what is wrong with its ledger; models never released are left out."""
    book = ledger()
    found: dict[str, ServedChampion | LedgerError] = {}
    for model in book.models():
        try:
            champion = book.champion(model)
        except LedgerError as error:
            found[model] = error
        else:
            if champion is not None:
                found[model] = champion
    return found


async def _serve(rollout: Rollout, model: str, champion: ServedChampion | LedgerError) -> bool:
    """Whether the model is in service now."""
    found = rollout.models.setdefault(model, Model())
    if found.serving is not None:
        return True
    try:
        if isinstance(champion, LedgerError):
            raise LoadRefused(str(champion))
        version = str(champion.to_version)
        loaded = await rollout.load(model, version, champion.digest)
        if found.serving is None:
            rollout.set_traffic(model, version)
    except ServingError as error:
        found.reason = str(error)
        log.error("model %s is not served: %s", model, error)
        return False
    log.info("model %s serves version %s, engine process %s", model, version, ", ".join(map(str, loaded.pids)))
    return True
