"""What is said when a version cannot be loaded: to clients no address, bucket or path, to administrators all of it."""

from __future__ import annotations

import logging

from model_registry.cpu_class import CpuClassMismatch
from model_registry.gpu_class import GpuClassMismatch
from model_registry.manifest import ManifestMismatch
from model_registry.store import CorruptObject, ObjectMissing, StoreError
from model_registry.store_errors import BucketMissing, StoreDenied, StoreRefused, StoreUnavailable
from model_registry.variant import NewerRecord
from serving.exceptions import EngineLoadError, LoadFailed, LoadRefused, ServingError
from serving.onnx_safety import UnsafeModel
from serving.variant_cache import CacheUnusable, ManifestAltered

_PUBLIC: dict[type[Exception], str] = {
    ObjectMissing: "it is not in the store",
    BucketMissing: "it is not in the store",
    CorruptObject: "its files are damaged in the store",
    StoreUnavailable: "the store does not answer",
    StoreDenied: "the store refuses the endpoint",
    StoreRefused: "the store refuses the endpoint",
    CacheUnusable: "the endpoint cannot keep it on its disk",
}
_REFUSED = (
    ObjectMissing,
    CorruptObject,
    UnsafeModel,
    CpuClassMismatch,
    GpuClassMismatch,
    EngineLoadError,
    ManifestMismatch,
    NewerRecord,
)
log = logging.getLogger("winnow.serving")


def public_text(error: Exception) -> str:
    """What clients are told of it."""
    for kind, text in _PUBLIC.items():
        if isinstance(error, kind):
            return text
    return "the endpoint's log says why" if isinstance(error, StoreError) else str(error)


def load_error(name: str, error: Exception) -> ServingError:
    """What is said of an error while a version is loaded: refused for good, or failed for now."""
    if isinstance(error, ManifestAltered):
        return LoadRefused(
            f"{name} cannot be served: the store's manifest does not hash to its name; register it again"
        )
    if isinstance(error, _REFUSED):
        begin = f"{name} cannot be served: "
        return LoadRefused(begin + public_text(error), detail=begin + str(error))
    if isinstance(error, StoreError | CacheUnusable | LoadFailed):
        begin = f"{name} could not be loaded: "
        return LoadFailed(begin + public_text(error), detail=begin + str(error))
    # No descriptors, memory or threads left, or a fault of ours: it may pass.
    log.error("%s could not be loaded", name, exc_info=error)
    why = getattr(error, "strerror", None) or type(error).__name__  # clients read it: no paths
    return LoadFailed(f"{name} could not be loaded: {why}; the endpoint's log says more")
