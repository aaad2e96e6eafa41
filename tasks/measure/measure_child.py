"""Measure one variant: the probe runs it with the serving engine, then its outputs are scored and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from model_registry.manifest import FileEntry
from model_registry.measurement import Hardware, LatencyIntervals, Measurement, Speedup, Throughput
from model_registry.variant import Variant
from tasks.evidence.arrays import fetch_arrays, publish_arrays
from tasks.evidence.paired import compare_paired, summarise_pairs
from tasks.evidence.scoring import is_classifier, per_class, score
from tasks.measure.probe_process import ProbeProcess, probe_process
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.running.child import Child, Result
from tasks.running.splits import TARGET
from tasks.workloads.sample_scores import accuracy_scores


def main(child: Child) -> Result:
    """Write the measurement's record and return it as ``values['measurement']``."""
    variant = child.inputs["variant"]
    baseline = child.inputs.get("baseline", variant)
    with probe_process() as probe:
        inputs = child.store.fetch(FileEntry.model_validate(child.extra["inputs"]), child.workdir / "inputs.npz")
        probed = _measure(child, probe, variant, baseline, inputs)
        result = _scored(child, variant, baseline, inputs, probed)
        probe.settle()
    return result


def _scored(child: Child, variant: Variant, baseline: Variant, inputs: Path, probed: dict[str, Any]) -> Result:
    """Score the predictions, compare them with the baseline's, and write it all down."""
    data, split = child.data, child.extra["split"]
    child.progress(0.9, f"scoring {variant.name}")
    outputs = np.load(child.workdir / "outputs.npy", allow_pickle=False)
    predictions = publish_arrays(child.store, "predictions.npz", outputs=outputs)
    with np.load(inputs, allow_pickle=False) as archive:
        targets = archive[TARGET]
    scores = score(data, child.job.workload, outputs, targets, name=variant.name)
    paired = None
    if child.extra["baseline_scores"] is not None:
        reference = fetch_arrays(child.store, FileEntry.model_validate(child.extra["baseline_scores"]))["score"]
        paired = compare_paired(scores, reference, better=data.metric.better, reference=baseline.digest)
    model = variant.file("model.onnx")
    costs = onnx_cost(onnx.load_model(child.workdir / "variant" / model.path, load_external_data=False))
    measurement = Measurement(
        digest=variant.digest,
        baseline=baseline.digest,
        name=variant.name,
        stage=variant.stage,
        split=split,
        samples=len(scores),
        data=data.fingerprint,
        hardware=Hardware.model_validate(probed["hardware"]),
        threads=probed["threads"],
        batch=probed["batch"],
        predict_batch=child.spec["predict_batch"],
        metric=summarise_pairs(scores, name=data.metric.name, better=data.metric.better),
        accuracy=float(np.mean(accuracy_scores(outputs, targets))) if is_classifier(outputs, targets) else None,
        per_class=per_class(data, scores, targets),
        paired=paired,
        p50_ms=probed["p50_ms"],
        p95_ms=probed["p95_ms"],
        latency_interval=LatencyIntervals.model_validate(probed["latency_interval"]),
        throughput=Throughput.model_validate(probed["throughput"]),
        speedup=Speedup.model_validate(probed["speedup"]) if probed["speedup"] else None,
        peak_rss_bytes=probed["peak_rss_bytes"],
        cpu_seconds=probed["cpu_seconds"],
        bytes=model.size,
        parameters=costs.parameters,
        macs=costs.macs,
        predictions=predictions,
        scores=publish_arrays(child.store, "scores.npz", score=scores),
    )
    child.store.write_record(measurement.key, measurement.to_json())
    return Result(
        variants=(variant,),
        values={"measurement": measurement.model_dump(mode="json", by_alias=True)},
        files=(measurement.predictions, measurement.scores),
    )


def _measure(child: Child, probe: ProbeProcess, variant: Variant, baseline: Variant, inputs: Path) -> dict[str, Any]:
    """What the probe found, with the predictions in ``outputs.npy`` of the child's folder."""
    seconds = float(child.spec["seconds"])
    child.progress(0.0, f"measuring {variant.name}")
    return probe.measure(
        child.store,
        child.workdir,
        variant=variant,
        baseline=baseline,
        inputs=str(inputs),
        batch=child.spec["batch"],
        threads=variant.runtime.intra_op_threads,  # what is measured is what is served
        rounds=child.spec["rounds"],
        seconds=seconds,
        warm_up_seconds=min(0.3, seconds / 8),
        predict_batch=child.spec["predict_batch"],
        predict_seconds=min(0.5, seconds / 4),
    )
