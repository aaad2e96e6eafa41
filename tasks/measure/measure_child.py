"""Measure one variant: the probe runs it with the serving engine, then its outputs are scored and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import onnx

from model_registry.manifest import FileEntry
from model_registry.measurement import Hardware, LatencyIntervals, Measurement, Speedup, Throughput
from model_registry.variant import Variant
from tasks.child import Child, Result
from tasks.errors import ChildFailed
from tasks.evidence.arrays import fetch_arrays, publish_arrays
from tasks.evidence.paired import compare, summarise
from tasks.evidence.scoring import accuracy_scores, is_classifier, per_class, score
from tasks.onnx_cost import onnx_cost
from tasks.splits import TARGET


def main(child: Child) -> Result:
    """Write the measurement's record and return it as ``values['measurement']``."""
    data, split = child.data, child.extra["split"]
    assert data is not None
    variant = child.inputs["variant"]
    baseline = child.inputs.get("baseline", variant)
    inputs = FileEntry.model_validate(child.extra["inputs"])
    probed = _probe(child, variant, baseline, inputs)

    child.progress(0.9, f"scoring {variant.name}")
    predictions = FileEntry.model_validate(probed["predictions"])
    outputs = fetch_arrays(child.store, predictions)["outputs"]
    targets = fetch_arrays(child.store, inputs)[TARGET]
    scores = score(data, child.job.workload, outputs, targets, name=variant.name)
    paired = None
    if child.extra["baseline_scores"] is not None:
        reference = fetch_arrays(child.store, FileEntry.model_validate(child.extra["baseline_scores"]))["score"]
        paired = compare(scores, reference, better=data.metric.better, reference=baseline.digest)
    model = variant.file("model.onnx")
    costs = onnx_cost(onnx.load_from_string(child.store.fetch_bytes(model)))
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
        metric=summarise(scores, name=data.metric.name, better=data.metric.better),
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


def _probe(child: Child, variant: Variant, baseline: Variant, inputs: FileEntry) -> dict[str, Any]:
    """Run ``python -m serving.probe`` and return its result; in this process group, so that it ends with us."""
    asked, answered = child.workdir / "probe.json", child.workdir / "probed.json"
    seconds = float(child.spec["seconds"])
    request = {
        "variant": variant.model_dump(mode="json", by_alias=True),
        "baseline": baseline.model_dump(mode="json", by_alias=True),
        "inputs": inputs.model_dump(mode="json"),
        "batch": child.spec["batch"],
        "threads": variant.runtime.intra_op_threads,  # what is measured is what is served
        "rounds": child.spec["rounds"],
        "seconds": seconds,
        "warm_up_seconds": min(0.3, seconds / 8),
        "predict_batch": child.spec["predict_batch"],
        "predict_seconds": min(0.5, seconds / 4),
    }
    asked.write_text(json.dumps(request))
    child.progress(0.0, f"measuring {variant.name}")
    done = subprocess.run(
        [sys.executable, "-m", "serving.probe", str(asked), str(answered)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WINNOW_STORE": child.job.store},
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ChildFailed(f"measuring {variant.name} failed: the probe ended with {done.returncode}: {last}")
    result: dict[str, Any] = json.loads(answered.read_text())
    return result
