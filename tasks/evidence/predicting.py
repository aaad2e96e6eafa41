"""Predict a split with the serving engine in a process of its own: no latency, no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model_registry.answering import AnsweringFailed, AskedProcess
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.evidence.arrays import Array
from tasks.running.errors import ChildFailed


def predict_file(store: Store, variant: Variant, inputs: dict[str, Array], workdir: Path, *, batch: int) -> Array:
    """First output of every sample, [N, ...] float32, exactly as an endpoint would answer batches of this size.

    Args:
        inputs: arrays by input name, [N, ...]; others are ignored.
        workdir: a folder of our own; what is written there is left to its owner to remove.

    Raises:
        ChildFailed: the engine refuses the variant or fails on a sample; says what it said.
    """
    folder = workdir / variant.digest[:16]
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    for spec in variant.inputs:
        np.save(folder / "inputs" / f"{spec.name}.npy", inputs[spec.name], allow_pickle=False)
    request = {
        "folder": str(store.materialise(variant.files, folder / "files")),
        "variant": variant.model_dump(mode="json", by_alias=True),
        "inputs": str(folder / "inputs"),
        "batch": batch,
        "seconds": 0.0,
        "outputs": str(folder / "outputs.npy"),
    }
    with AskedProcess("serving.probe_resources") as process:
        try:
            process.ask(request)
        except AnsweringFailed as error:
            raise ChildFailed(f"predicting with {variant.name} failed: {error}") from error
    outputs: Array = np.load(folder / "outputs.npy", allow_pickle=False)
    return outputs
