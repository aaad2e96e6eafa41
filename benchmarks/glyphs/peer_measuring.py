"""A file of any tool, measured as Winnow measures a variant: by serving/probe.py, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx

from model_registry.manifest import FileEntry, hash_file
from model_registry.variant import Variant
from tasks.evidence.paired import compare_paired, summarise_pairs
from tasks.onnx_models.onnx_graph import signature, strip

ROOT = Path(__file__).parent.parent.parent
METRIC = "accuracy"


class Measuring:
    """Measures files against the first one it is given.

    Args:
        data: holds ``test.npy`` and ``test.labels.npy``.
        work: a folder for the variants' files.
        seconds: of timing per file, those of the baseline included.
        rows: number of rows of the test split, from its start; None: all.
    """

    def __init__(self, data: Path, work: Path, *, seconds: float, rows: int | None = None) -> None:
        self.work, self.seconds = work, seconds
        self.labels = np.load(data / "test.labels.npy", allow_pickle=False)[:rows]
        self.rows = len(self.labels)
        self.hardware: dict[str, Any] = {}
        work.mkdir(parents=True, exist_ok=True)
        np.savez(work / "test.npz", image=np.load(data / "test.npy", mmap_mode="r", allow_pickle=False)[:rows])
        self._baseline: tuple[Variant, Any] | None = None
        self._probe = subprocess.Popen(
            [sys.executable, "-m", "serving.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.kill()
        self._probe.communicate()

    def measure(self, file: Path) -> dict[str, Any]:
        """Bytes, accuracy and latency; all but the first file are compared with the first.

        Raises:
            RuntimeError: the probe refuses the file; says why.
        """
        folder = self.work / file.stem
        folder.mkdir(exist_ok=True)
        data = file.read_bytes()
        (folder / "model.onnx").write_bytes(data)
        graph = onnx.load_from_string(data)
        inputs, outputs = signature(graph)
        entry = FileEntry(path="model.onnx", sha256=hash_file(file), size=len(data))
        variant = Variant(name=file.stem, stage="peer", format="onnx", files=(entry,), inputs=inputs, outputs=outputs)
        found = self._ask(variant, folder)
        scores = (np.load(folder / "outputs.npy", allow_pickle=False).argmax(axis=1) == self.labels).astype(np.float64)
        facts = {
            "bytes": len(data),
            "stripped": len(strip(graph, merge_equal=True)),
            "accuracy": summarise_pairs(scores, name=METRIC, better="higher").model_dump(mode="json"),
            **{key: found[key] for key in ("p50_ms", "p95_ms", "latency_interval", "speedup", "baseline_timing")},
            "load_average": os.getloadavg()[0],
        }
        if self._baseline is None:
            self._baseline = variant, scores
            self.hardware = found["hardware"]
        else:
            reference, reference_scores = self._baseline
            paired = compare_paired(scores, reference_scores, better="higher", reference=reference.digest)
            facts["against_fp32"] = paired.model_dump(mode="json", exclude={"better_indices", "worse_indices"})
        return facts

    def _ask(self, variant: Variant, folder: Path) -> dict[str, Any]:
        baseline = self._baseline[0] if self._baseline else variant
        request = {
            "variant": variant.model_dump(mode="json", by_alias=True),
            "folder": str(folder.resolve()),
            "baseline": baseline.model_dump(mode="json", by_alias=True),
            "baseline_folder": str((self.work / baseline.name).resolve()),
            "inputs": str((self.work / "test.npz").resolve()),
            "outputs": str((folder / "outputs.npy").resolve()),
            "seconds": self.seconds,
        }
        assert self._probe.stdin is not None and self._probe.stdout is not None
        self._probe.stdin.write(json.dumps(request) + "\n")
        self._probe.stdin.flush()
        answer: dict[str, Any] = json.loads(self._probe.stdout.readline() or '{"error": "the probe died"}')
        if "error" in answer:
            raise RuntimeError(f"measuring {variant.name} failed: {answer['error']}")
        self._probe.stdout.readline()  # says that it has come to rest
        result: dict[str, Any] = answer["result"]
        return result
