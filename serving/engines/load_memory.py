"""A bound on the memory that an engine process takes while it loads a model.

Files of a few bytes can ask for any amount: a constant's shape, a fold, a run on zeros. The kernel refuses what is
beyond the bound to this process alone, so that no other one pays for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_registry.provider_options import runs_on_gpu
from model_registry.sizes import GB, size_text
from model_registry.variant import Variant
from serving.exceptions import EngineLoadError

_LEAST = 2 * GB
_TIMES = 10
"""How many times its files a model may take: they are read, parsed, unpacked and packed for the kernels."""
_STATUS = Path("/proc/self/status")


def loading_bytes(variant: Variant) -> int:
    """Bytes that this variant may take while it is loaded."""
    return _LEAST + _TIMES * sum(file.size for file in variant.files)


@contextmanager
def bounded_memory(variant: Variant, allowed: int) -> Iterator[None]:
    """Refuse this process more than ``allowed`` bytes of private memory beside what it has.

    Elsewhere than on Linux nothing is refused, nor to a variant for GPUs, whose driver reserves more than it uses.

    Raises:
        EngineLoadError: more was asked for.
    """
    if sys.platform != "linux" or runs_on_gpu(variant.runtime):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    bound = _private_bytes() + allowed
    if before[0] != resource.RLIM_INFINITY:
        bound = min(bound, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (bound, before[1]))
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "allocate memory" in str(error):
            raise EngineLoadError(
                f"variant {variant.name!r} asks for more than the {size_text(allowed)} that it may take while it "
                "is loaded; look for constants or shapes of that size in its graph"
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _private_bytes() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) << 10
