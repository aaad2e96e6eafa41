"""MLflow's view of versions and champion, made to say what store and ledger say. A row is found by its digest."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from model_registry.ledger import Entry
from model_registry.registry import CHALLENGER, CHAMPION, Registry
from model_registry.store import CorruptObject, ObjectMissing, Store
from model_registry.variant import NewerRecord
from model_registry.versions import Versions

UNREADABLE = (CorruptObject, ObjectMissing, ValidationError, NewerRecord)
"""What reading a variant raises that the store does not hold whole."""
_log = logging.getLogger("winnow.release")


def show_champion(registry: Registry, store: Store, champion: Entry) -> bool:
    """Point MLflow's alias ``champion`` to the row of that digest, which is made again where MLflow has lost it.

    Returns:
        Whether the alias pointed elsewhere.

    Raises:
        RegistryError: MLflow does not answer, or refuses.
        StoreUnavailable, CorruptObject, ObjectMissing, ValidationError, NewerRecord: the row was lost, and the variant
            that it is to be made of cannot be read.
    """
    model, digest = champion.model, champion.digest
    if registry.find_version(model, digest) is None:
        restore_lost(registry, store, model)
    row = registry.find_version(model, digest)
    if row is None:  # others are there, so that somebody has tidied: nothing comes back that nobody asked for
        row = _restore(registry, store, model, champion.to_version, digest)
    moved = registry.alias(model, CHAMPION) != row
    if moved:
        registry.set_alias(model, CHAMPION, row)
    if registry.alias(model, CHALLENGER) == row:
        registry.drop_alias(model, CHALLENGER)
    return moved


def restore_lost(registry: Registry, store: Store, model: str, *, before: int | None = None) -> None:
    """Where MLflow has lost all rows of a model, make them again in their order, so that it goes on counting as we do.

    Args:
        before: only those with smaller numbers; None for all.

    Raises:
        RegistryError, StoreUnavailable: MLflow or the store does not answer.
    """
    if registry.versions(model):
        return
    done = set[str]()
    for number, digest in Versions(store).all(model).items():
        if digest in done or (before is not None and number >= before):
            continue
        done.add(digest)
        try:
            _restore(registry, store, model, number, digest)
        except UNREADABLE as error:
            _log.warning("version %d of %s is not shown in MLflow again: %s", number, model, error)


def _restore(registry: Registry, store: Store, model: str, number: int, digest: str) -> int:
    variant = store.load_variant(digest)
    with tempfile.TemporaryDirectory(prefix="winnow-") as folder:
        fetch = partial(store.fetch, variant.file("model.onnx"), Path(folder) / digest)
        return registry.restore_version(model, variant, number, fetch)
