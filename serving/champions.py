"""What the endpoint serves when it starts: the ledger's champions, each loaded, and tried again until it is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from model_registry.ledger import LedgerError
from model_registry.store import StoreError
from model_registry.variant_set import SetMember
from serving.exceptions import Conflict, LoadRefused, NotFound, ServingError
from serving.load_errors import public_text
from serving.releases import LedgerReader, ReadReleases, Released, ServedChampion, read_releases
from serving.rollout import Model, Rollout

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
log = logging.getLogger("winnow.serving")


async def load_champions(rollout: Rollout, read: ReadReleases, remembered: LedgerReader | None = None) -> None:
    """Bring every champion into service, then return; retries for as long as something is missing.

    A model that fails leaves its reason in the rollout while the others serve. A model that got traffic from the
    admin listener meanwhile is left alone.

    Args:
        remembered: says what was served before the start. It counts until the ledger can be read, where that cannot be.
    """
    pause, stand_ins = FIRST_PAUSE, dict[str, str]()
    while True:
        try:
            champions = await asyncio.to_thread(read)
        except (StoreError, LedgerError) as error:
            if rollout.waiting_for:
                rollout.waiting_for = f"the ledger cannot be read: {public_text(error)}"
                rollout.waiting_detail = f"the ledger cannot be read: {error}"
            log.warning("the ledger cannot be read, next attempt in %g s: %s", pause, error)
            if remembered is not None:
                stand_ins, remembered = await _stand_in(rollout, remembered), None
        else:
            for model in champions:
                rollout.models.setdefault(model, Model(reason="its champion is being loaded"))
            rollout.waiting_for = rollout.waiting_detail = ""
            done = await asyncio.gather(
                *(_serve(rollout, model, found, stand_ins.get(model)) for model, found in champions.items())
            )
            if all(done):
                return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _stand_in(rollout: Rollout, remembered: LedgerReader) -> dict[str, str]:
    """Serve what was served last; the versions that are, by model. With all of them the endpoint is ready."""
    champions = read_releases(remembered)
    done = await asyncio.gather(*(_serve_champion(rollout, model, c.champion) for model, c in champions.items()))
    if champions and all(done):
        rollout.waiting_for = rollout.waiting_detail = ""
    serving = {model: rollout.models[model].serving for model in champions}
    return {model: version for model, version in serving.items() if version is not None}


async def _serve(rollout: Rollout, model: str, wanted: Released, stand_in: str | None) -> bool:
    """Whether the model is in service now, with all of its set."""
    if not await _serve_champion(rollout, model, wanted.champion, stand_in):
        return False
    champion = wanted.champion
    if isinstance(champion, LedgerError) or rollout.models[model].serving != str(champion.to_version):
        return True  # the admin listener gave the traffic to another one
    return await serve_set(rollout, model, wanted.members)


async def serve_set(rollout: Rollout, model: str, members: Sequence[SetMember]) -> bool:
    """Load what is missing of a set, and serve it; whether all of it is there."""
    there, whole = list[SetMember](), True
    for member in members:
        try:
            await rollout.load(model, str(member.version), member.digest, spare=True)
            there.append(member)
        except ServingError as error:
            whole = False
            log.error("model %s is served without version %s of its set: %s", model, member.version, error.detail)
    with suppress(Conflict, NotFound):  # the admin listener was quicker
        rollout.set_members(model, there)
    return whole


async def _serve_champion(
    rollout: Rollout, model: str, champion: ServedChampion | LedgerError, stand_in: str | None = None
) -> bool:
    """Whether the model is in service now; ``stand_in``: a version that gives way to it."""
    found = rollout.models.setdefault(model, Model())
    if found.serving not in (None, stand_in):
        return True
    try:
        if isinstance(champion, LedgerError):
            raise LoadRefused("its ledger cannot be read; the endpoint's log says more", detail=str(champion))
        version = str(champion.to_version)
        held = version in found.versions
        loaded = await rollout.load(model, version, champion.digest)
        if found.serving in (None, stand_in):
            if rollout.set_traffic(model, version) not in (None, version):
                await rollout.unload(model, str(stand_in))
        elif not held and found.serving != version and not found.steering.needs(version):
            await rollout.unload(model, version)  # the admin listener was quicker, with another one
    except ServingError as error:
        found.reason, found.detail = str(error), error.detail
        log.error("model %s is not served: %s", model, error.detail)
        return False
    pids = ", ".join(str(engine.pid) for engine in loaded.engines)
    log.info("model %s serves version %s, engine process %s", model, version, pids)
    return True
