"""Measure one variant: the probe runs it with the serving engine, then its outputs are scored and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from model_registry.decoder_form import TOKENS
from model_registry.manifest import FileEntry
from model_registry.measurement import Hardware, LatencyIntervals, Measurement, Speedup, Throughput, TokenSpeed
from model_registry.variant import Variant
from tasks.evidence.arrays import Array, fetch_arrays, publish_arrays
from tasks.evidence.class_loss import class_losses
from tasks.evidence.paired import Scores, compare_paired, summarise_pairs
from tasks.evidence.scoring import per_class, score
from tasks.evidence.text_bytes import bits_per_byte
from tasks.measure.fpga_need import tables_needed
from tasks.measure.kept_answers import kept_answers
from tasks.measure.probe_process import ProbeProcess, probe_process
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.running.child import Child, Result
from tasks.running.splits import TARGET
from tasks.running.task_kind import CHOICES
from tasks.workloads.sample_scores import accuracy_scores


def main(child: Child) -> Result:
    """Measure the variant beside its baseline, and write the measurement's record."""
    variant = child.inputs["variant"]
    baseline = child.inputs.get("baseline", variant)
    inputs = child.store.fetch(FileEntry.model_validate(child.extra["inputs"]), child.workdir / "inputs.npz")
    with np.load(inputs, allow_pickle=False) as archive:
        targets = archive[TARGET]
        tokens = archive[TOKENS] if TOKENS in archive else np.empty((0, 0), np.int64)
    reference = _baseline_scores(child)

    with probe_process() as probe:
        probed = _measure(child, probe, variant, baseline, inputs)
        child.progress(0.9, f"scoring {variant.name}")
        outputs = np.load(child.workdir / "outputs.npy", allow_pickle=False)
        scores = score(child.data, child.job.workload, outputs, targets, name=variant.name)
        evidence = _evidence(child, scores, reference, outputs, targets)

        measurement = Measurement(
            digest=variant.digest,
            baseline=baseline.digest,
            name=variant.name,
            stage=variant.stage,
            split=child.extra["split"],
            samples=len(scores),
            bits_per_byte=bits_per_byte(child.store, variant, outputs, tokens),
            data=child.data.fingerprint,
            predict_batch=child.spec["predict_batch"],
            **evidence,
            **_numbers(probed),
            **_costs(child, variant),
            luts=tables_needed(
                variant, inputs, store=child.store, folder=child.workdir, at_most=child.spec["luts_below"]
            ),
            predictions=publish_arrays(
                child.store, "predictions.npz", outputs=kept_answers(outputs, child.spec["predict_batch"])
            ),
            scores=publish_arrays(child.store, "scores.npz", score=scores),
        )
        child.store.write_record(measurement.key, measurement.to_json())
        probe.settle()
    return Result(
        variants=(variant,),
        values={"measurement": measurement.model_dump(mode="json", by_alias=True)},
        files=(measurement.predictions, measurement.scores),
    )


def _baseline_scores(child: Child) -> Scores | None:
    stored = child.extra["baseline_scores"]
    return fetch_arrays(child.store, FileEntry.model_validate(stored))["score"] if stored is not None else None


def _evidence(child: Child, scores: Scores, reference: Scores | None, outputs: Array, targets: Array) -> dict[str, Any]:
    """What the answers are worth, alone and against the baseline's."""
    metric, baseline = child.data.metric, child.inputs.get("baseline", child.inputs["variant"])
    paired, lost = None, {}
    if reference is not None:
        paired = compare_paired(scores, reference, better=metric.better, reference=baseline.digest)
        lost = class_losses(child.data, scores, reference, targets)
    return {
        "metric": summarise_pairs(scores, name=metric.name, better=metric.better),
        "accuracy": float(np.mean(accuracy_scores(outputs, targets))) if child.data.task in CHOICES else None,
        "per_class": per_class(child.data, scores, targets),
        "paired": paired,
        "class_losses": lost,
    }


def _numbers(probed: dict[str, Any]) -> dict[str, Any]:
    """What the probe measured, as values."""
    same = ("threads", "batch", "requests", "p50_ms", "p95_ms", "tail_share", "peak_rss_bytes", "cpu_seconds")
    return {
        **{name: probed[name] for name in same},
        "hardware": Hardware.model_validate(probed["hardware"]),
        "latency_interval": LatencyIntervals.model_validate(probed["latency_interval"]),
        "throughput": Throughput.model_validate(probed["throughput"]),
        "speedup": Speedup.model_validate(probed["speedup"]) if probed["speedup"] else None,
        "token_speed": TokenSpeed.model_validate(probed["token_speed"]) if probed["token_speed"] else None,
    }


def _costs(child: Child, variant: Variant) -> dict[str, Any]:
    """Of the file, which the probe has laid out in our folder."""
    model = variant.file("model.onnx")
    costs = onnx_cost(onnx.load_model(child.workdir / "variant" / model.path, load_external_data=False))
    return {"bytes": variant.model_bytes, "parameters": costs.parameters, "macs": costs.macs}


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
        least=child.spec["requests"],
        warm_up_seconds=min(0.3, seconds / 8),
        predict_batch=child.spec["predict_batch"],
        predict_seconds=min(0.5, seconds / 4),
    )
