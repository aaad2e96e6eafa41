"""A file of any tool, measured as Winnow measures a variant: by serving/probe.py, in processes of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx

from model_registry.answering import AnsweringFailed, AskedProcess
from model_registry.manifest import FileEntry, hash_file
from model_registry.variant import Variant
from tasks.evidence.paired import compare_paired, summarise_pairs
from tasks.onnx_models.onnx_graph import signature, strip
from tasks.running.splits import TARGET, MetricRef
from tasks.workloads.workload import Workload


class Measuring:
    """Measures files against the first one it is given.

    Args:
        data: ``test.npz``, as ``peer_inputs.py`` writes it.
        workload: whose metric scores the answers.
        work: a folder for the variants' files.
        seconds: of timing per file, those of the baseline included.
        rows: number of rows of the test split, from its start; None: all.
    """

    def __init__(self, data: Path, workload: Workload, work: Path, *, seconds: float, rows: int | None = None) -> None:
        self.workload, self.work, self.seconds = workload, work, seconds
        work.mkdir(parents=True, exist_ok=True)
        with np.load(data, allow_pickle=False) as archive:
            arrays = {name: archive[name][:rows] for name in archive.files}
        self.targets = arrays.pop(TARGET)
        self.rows = len(self.targets)
        self.hardware: dict[str, Any] = {}
        self.metric: MetricRef | None = None
        np.savez(work / "test.npz", allow_pickle=False, **arrays)
        self._baseline: tuple[Variant, Any] | None = None
        self._probe = AskedProcess("serving.probe")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._probe.close()

    def measure(self, file: Path) -> dict[str, Any]:
        """Bytes, metric and latency; all but the first file are compared with the first.

        Raises:
            AnsweringFailed: the probe refuses the file; says why.
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
        answers = np.load(folder / "outputs.npy", allow_pickle=False)
        scores = self.workload.scores(answers, self.targets)
        self.metric = metric = self.workload.metric_ref(self.targets, answers)
        facts = {
            "bytes": len(data),
            "stripped": len(strip(graph, merge_equal=True)),
            "metric": summarise_pairs(scores, name=metric.name, better=metric.better).model_dump(mode="json"),
            **{key: found[key] for key in ("p50_ms", "p95_ms", "latency_interval", "speedup", "baseline_timing")},
            "load_average": os.getloadavg()[0],
        }
        if self._baseline is None:
            self._baseline = variant, scores
            self.hardware = found["hardware"]
        else:
            reference, reference_scores = self._baseline
            paired = compare_paired(scores, reference_scores, better=metric.better, reference=reference.digest)
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
        try:
            result: dict[str, Any] = self._probe.ask(request)
        except AnsweringFailed:
            self._probe.close()
            self._probe = AskedProcess("serving.probe")  # one that refused has ended
            raise
        self._probe.wait_ready()
        return result
