"""Predict a split with the serving engine in a process of its own: no latency, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

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
        ChildFailed: the engine refuses the variant or fails on a sample; ends with its last message.
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
    (folder / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-m", "serving.probe_resources", str(folder / "request.json"), str(folder / "result.json")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ChildFailed(f"predicting with {variant.name} failed (exit {done.returncode}): {last}")
    outputs: Array = np.load(folder / "outputs.npy", allow_pickle=False)
    return outputs
