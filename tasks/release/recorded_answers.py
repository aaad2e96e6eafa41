"""Whether a version answers as it did when it was measured."""

from __future__ import annotations

import numpy as np

from model_registry.endpoint_client import Endpoint
from model_registry.recording import replay
from model_registry.store import Store
from tasks.running.errors import EndpointUnhealthy


def check_recorded(store: Store, endpoint: Endpoint, model: str, version: int, digest: str, tolerance: float) -> None:
    """Ask the version, by its number and over HTTP, for what it answered when it was measured.

    Raises:
        EndpointUnhealthy: it answers differently by more than ``tolerance`` times the largest recorded output.
        EndpointError, StoreError: it, or the store, does not answer at all.
    """
    recording, inputs, expected = replay(store, digest)
    variant = store.load_variant(digest)
    answers = []
    for start in range(0, recording.rows, recording.batch):
        rows = {name: values[start : start + recording.batch] for name, values in inputs.items()}
        answer = endpoint.infer(model, version, rows, variant.inputs)
        if recording.output not in answer:
            raise EndpointUnhealthy(f"{model} version {version} has no output {recording.output!r}: {list(answer)}")
        answers.append(np.asarray(answer[recording.output], dtype=np.float64))
    found = np.concatenate(answers)
    wanted = np.asarray(expected, dtype=np.float64)
    scale = max(float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)), 1e-12)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=tolerance * scale, equal_nan=True):
        worst = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("nan")
        raise EndpointUnhealthy(
            f"{model} version {version} answers {recording.rows} recorded inputs differently than when it was "
            f"measured: largest difference {worst:.3g}, limit {tolerance * scale:.3g} (shape {found.shape}, "
            f"recorded {wanted.shape}); measure it again on this kind of machine"
        )
