"""An endpoint that takes over new champions by itself: of many that serve the same models, none is told of a release.

Only what changes in the ledger is acted upon. So a release that gives an endpoint's traffic to a version before the
ledger says so is left alone, and so is what somebody did at the admin listener since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from model_registry.ledger import LedgerError
from model_registry.store import StoreError
from model_registry.variant_set import SetMember
from serving.champions import serve_set
from serving.exceptions import ServingError
from serving.releases import ReadReleases, ServedChampion
from serving.rollout import Rollout

log = logging.getLogger("winnow.serving")


async def follow_ledger(rollout: Rollout, read: ReadReleases, seconds: float) -> None:
    """Look at the ledger every so many seconds, for ever; what fails is tried again at the next look.

    The new version is loaded beside the old one, gets the traffic when it is ready, and the old one, with its set, ends
    when its last request is answered.
    """
    taken = dict[str, tuple[Any, ...]]()
    while True:
        await asyncio.sleep(seconds)
        if rollout.waiting_for:  # the start has not read it yet either, and goes on trying
            continue
        try:
            champions = await asyncio.to_thread(read)
        except (StoreError, LedgerError) as error:
            log.warning("the ledger cannot be read, next look in %g s: %s", seconds, error)
            continue
        for model, (champion, members) in champions.items():
            if isinstance(champion, LedgerError):
                log.warning("model %s stays as it is: %s", model, champion)
                continue
            wanted = (champion.to_version, champion.digest, *members)
            if taken.get(model) == wanted:
                continue
            try:
                if await _take_over(rollout, model, champion, members):
                    taken[model] = wanted
            except ServingError as error:
                log.error("model %s stays as it is: %s", model, error.detail)


async def _take_over(rollout: Rollout, model: str, champion: ServedChampion, members: Sequence[SetMember]) -> bool:
    """Whether the champion answers with all of its set."""
    version, keep = str(champion.to_version), {str(member.version) for member in members}
    found = rollout.models.get(model)
    before = set[str]() if found is None else {member.loaded.version for member in found.steering.members}
    if found is not None and found.serving == version and before == keep:
        return True
    await rollout.load(model, version, champion.digest)
    previous = rollout.set_traffic(model, version)
    whole = await serve_set(rollout, model, members)
    log.info("model %s serves version %s, before it %s: so the ledger says", model, version, previous)
    for old in ({previous} | before) - keep - {version, None}:
        await rollout.unload(model, str(old))
    return whole
