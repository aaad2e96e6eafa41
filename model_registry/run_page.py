"""What MLflow's pages show of a run: the same few names for every variant, so that any two can be compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import Field

from model_registry.manifest import FileEntry
from model_registry.measurement import Measurement
from model_registry.sizes import KB, MB
from model_registry.variant import Frozen, Variant

Status = Literal["running", "released", "registered", "refused", "failed", "interrupted", "crashed"]
"""Tag ``winnow.status`` of a parent run; ``registered``: deployment was switched off, ``refused``: by the gates."""

_REMARKS, _REMARK = 12, 300
"""Remarks in a description, and letters of each: MLflow keeps 8000 of a tag."""
_NAME = re.compile(r"[^A-Za-z0-9_./: -]")  # what MLflow does not take in a metric name


EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "One run per pipeline run and, within it, one per variant, all with the same metrics. The view **Variants** "
        "(top right) lists and charts them; tick some and press **Compare**. `tags.winnow.status = 'released'` finds "
        "the runs that went into service."
    ),
}
_VIEW = "variants"
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
_PAGES = "workflowType=machine_learning"  # MLflow's pages for models; the other ones are for chat agents


class TrackedRun(Frozen):
    """A parent run in MLflow, and where its pages are."""

    uri: str
    model: str
    run_id: str
    """Winnow's run id, tag ``winnow.run_id``."""
    experiment: str
    mlflow_id: str
    started_ms: int

    @property
    def url(self) -> str:
        """The run's own page: description, numbers of the chosen variant, child runs, artifacts."""
        return f"{self._runs}/{self.mlflow_id}?{_PAGES}"

    @property
    def variants_url(self) -> str:
        """Page that compares the variants of all runs of the model, the newest run's first."""
        return f"{self._runs}?viewStateShareKey={_VIEW}&{_PAGES}"

    def file_url(self, path: str) -> str:
        """Page of one of the run's artifacts; a browser needs no S3 keys for it."""
        return f"{self._runs}/{self.mlflow_id}/artifacts/{path}?{_PAGES}"

    @property
    def _runs(self) -> str:
        return f"{self.uri}/#/experiments/{self.experiment}/runs"


class Tracked(Frozen):
    """A run in MLflow: the parent, and the child runs by variant digest."""

    run: TrackedRun
    children: dict[str, str]


class VariantRun(Frozen):
    """One variant of a pipeline run, as it becomes a child run; ``measurement`` is None for what was not measured."""

    variant: Variant
    measurement: Measurement | None = None
    parents: tuple[str, ...] = ()
    """Digests of the variants it was made from."""
    method: str = ""
    """How it was made, in a word or two: ``static int8``, ``distilled T=4``."""
    params: dict[str, str] = Field(default_factory=dict)
    """The stage's settings worth comparing."""
    history: FileEntry | None = None
    """``history.jsonl`` of its training: one JSON object an epoch."""
    pareto: bool = False
    chosen: bool = False
    proven: bool = False
    """Registered as one of a front, chosen or not."""


class Dataset(Frozen):
    """The data of a run: content fingerprint, where it lies, rows by split, dtype and shape by column."""

    name: str
    fingerprint: str
    source: str
    rows: dict[str, int]
    columns: dict[str, tuple[str, tuple[int, ...]]]
    target: str = "target"

    @property
    def digest(self) -> str:
        """MLflow keeps 36 characters; the whole fingerprint is in the tag ``winnow.data``."""
        return self.fingerprint[:36]

    def features_json(self) -> str:
        """Columns in the form MLflow's dataset panel reads."""
        specs = {
            name: {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}
            for name, (dtype, shape) in self.columns.items()
        }
        targets = json.dumps([specs.pop(self.target)]) if self.target in specs else None
        return json.dumps({"mlflow_tensorspec": {"features": json.dumps(list(specs.values())), "targets": targets}})

    def rows_json(self) -> str:
        """Rows by split."""
        return json.dumps(
            {f"rows_{split}": rows for split, rows in self.rows.items()} | {"fingerprint": self.fingerprint}
        )


def metric_name(name: str) -> str:
    """The workload's metric under a name that MLflow takes."""
    return _NAME.sub("_", name)


def metrics(measurement: Measurement) -> dict[str, float]:
    """The numbers of a variant under the names that every variant has; what is unknown is left out.

    ``d_<metric>`` is the paired difference to the baseline, positive is better; ``cpu_seconds`` is per 1000 samples.
    """
    m = measurement
    name = metric_name(m.metric.name)
    found: dict[str, float | None] = {
        "accuracy": m.accuracy,
        name: m.metric.value,  # after it: a workload may call its own metric accuracy
        f"d_{name}": m.paired.difference if m.paired else 0.0,
        "p50_ms": m.p50_ms,
        "p95_ms": m.p95_ms,
        "throughput": m.throughput.value,
        "speedup": m.speedup.value if m.speedup else 1.0,
        "size_kb": m.bytes / KB,
        "parameters": m.parameters,
        "macs": m.macs,
        "peak_rss_mb": m.peak_rss_bytes / MB,
        "cpu_seconds": m.cpu_seconds,
        "bits_per_byte": m.bits_per_byte,
    }
    if m.token_speed is not None:
        speed = m.token_speed
        found |= {
            "tokens_per_second": speed.decode.value,
            "prompt_tokens_per_second": speed.prefill.value,
            "ttft_ms": speed.ttft_ms,
        }
    return {key: _rounded(float(value)) for key, value in found.items() if value is not None}


def view(metric: str, created_ms: int) -> str:
    """A saved view of MLflow's run table and charts, as the value of an experiment tag ``mlflow.sharedViewState.*``.

    Without it the table shows no metric at all and folds the variants away. The form is what MLflow 3.17's page
    writes when a person saves a view; a later page that does not know it falls back to its own table.
    """
    name = metric_name(metric)
    shown = [name, f"d_{name}", "p50_ms", "p95_ms", "speedup", "throughput", "size_kb", "peak_rss_mb", "cpu_seconds"]
    columns = [
        *(f"metrics.`{key}`" for key in shown),
        "params.`method`",
        "tags.`winnow.pareto`",
        "tags.`winnow.chosen`",
    ]
    cards: list[dict[str, object]] = []
    for x in ("p50_ms", "size_kb"):
        cards.append({"type": "SCATTER", "xaxis": _axis(x), "yaxis": _axis(name)})
    for key in (f"d_{name}", "p50_ms", "size_kb", "throughput"):
        cards.append({"type": "BAR", "metricKey": key})
    section = "winnow"
    fixed = {"runsCountToCompare": 20, "deleted": False, "isGenerated": False, "metricSectionId": section}
    state = {
        "searchFilter": "tags.`winnow.stage` != ''",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": columns,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "winnow.run_id"}]},
        "useGroupedValuesInCharts": False,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [{"uuid": f"winnow-{i}", **fixed, **card} for i, card in enumerate(cards)],
        "compareRunSections": [
            {"uuid": section, "name": f"{metric} against cost", "display": True, "isReordered": False}
        ],
    }
    saved = {"name": "Variants", "createdAt": created_ms, "updatedAt": created_ms, "state": json.dumps(state)}
    return json.dumps(saved)


def _axis(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}


def _rounded(value: float) -> float:
    """Five significant digits: MLflow's table shows all there are, and no measurement here has more."""
    return float(f"{value:.5g}")


def tags(row: VariantRun, run_id: str) -> dict[str, str]:
    """Tags of a child run."""
    return {
        "winnow.run_id": run_id,
        "winnow.stage": row.variant.stage,
        "winnow.digest": row.variant.digest,
        "winnow.parent": " ".join(row.parents),
        "winnow.pareto": str(row.pareto).lower(),
        "winnow.chosen": str(row.chosen).lower(),
        "mlflow.note.content": variant_note(row),
    }


def params(row: VariantRun) -> dict[str, str]:
    """Parameters of a child run: stage and method always, then the stage's own."""
    return {"stage": row.variant.stage, "method": row.method or row.variant.stage, **row.params}


def curves(history: bytes, limit: int = 2000) -> Iterator[tuple[str, int, float]]:
    """(name, step, value) of every number in ``history.jsonl``; the names go into the chart section ``curve``.

    At most about ``limit`` points a curve: longer ones are thinned evenly, the last line is kept.
    """
    lines = [json.loads(line) for line in history.decode().splitlines() if line.strip()]
    stride = max(1, math.ceil(len(lines) / limit))
    for index, line in enumerate(lines):
        if index % stride and index != len(lines) - 1:
            continue
        step = int(line.get("epoch", line.get("step", index)))
        for key, value in line.items():
            if key not in {"epoch", "step"} and isinstance(value, int | float) and not isinstance(value, bool):
                yield f"curve/{metric_name(key)}", step, float(value)


def variants_table(rows: Sequence[VariantRun]) -> str:
    """Markdown table, a row a variant, for the description of the parent run."""
    measured = [row.measurement for row in rows if row.measurement is not None]
    metric = measured[0].metric.name if measured else "metric"
    head = ["variant", "stage", f"{metric} [95 %]", "p50 ms", "p95 ms", "speedup", "samples/s", "kB", "RSS MB"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        name = f"**{row.variant.name}** (chosen)" if row.chosen else row.variant.name + (" ◆" if row.pareto else "")
        lines.append("| " + " | ".join([name, row.variant.stage, *_cells(row.measurement)]) + " |")
    return "\n".join(lines)


def run_note(
    rows: Sequence[VariantRun], status: str, links: Iterable[tuple[str, str]] = (), remarks: Sequence[str] = ()
) -> str:
    """Description of a parent run: how it ended and why, its variants, what else is worth a sentence, where to look."""
    measured = next((row.measurement for row in rows if row.measurement is not None), None)
    parts = [f"### {status}", variants_table(rows)]
    if measured is not None:
        h = measured.hardware
        parts.append(
            f"Measured on `{measured.split}` ({measured.samples} samples), {measured.threads} thread(s), batch "
            f"{measured.batch}, {h.cpu} ({h.cores} cores, {h.cpu_class}), ONNX Runtime {h.onnxruntime}. "
            "◆ = on the Pareto front of metric, latency and size."
        )
    if remarks:
        lines = [f"- {remark.replace(chr(10), ' ')[:_REMARK]}" for remark in remarks[:_REMARKS]]
        more = [f"- and {len(remarks) - _REMARKS} more in the report"] if len(remarks) > _REMARKS else []
        parts.append("\n".join([*lines, *more]))
    shown = [f"[{text}]({url})" for text, url in links if url]
    if shown:
        parts.append(" · ".join(shown))
    return "\n\n".join(parts)


def variant_note(row: VariantRun) -> str:
    """Description of a child run: its numbers with their intervals, and who flipped against the baseline."""
    m = row.measurement
    if m is None:
        return f"`{row.variant.digest}`\n\nNot measured by itself; see the ONNX variants made from it."
    lines = [
        f"`{row.variant.digest}`",
        "",
        "| | value | 95 % interval |",
        "|---|---:|---:|",
        f"| {m.metric.name} ({m.metric.better} is better) | {m.metric.value:.4f} | {_interval(m.metric.interval, 4)} |",
        f"| p50 | {m.p50_ms:.3f} ms | {_interval(m.latency_interval.p50, 3)} |",
        f"| p95 | {m.p95_ms:.3f} ms | {_interval(m.latency_interval.p95, 3)} |",
        f"| throughput | {m.throughput.value:.0f} /s | {_interval(m.throughput.interval, 0)} |",
    ]
    if m.bits_per_byte is not None:
        lines.insert(5, f"| bits per byte | {m.bits_per_byte:.4f} | |")
    if m.token_speed is not None:
        speed = m.token_speed
        lines += [
            f"| tokens of an answer | {speed.decode.value:.1f} /s | {_interval(speed.decode.interval, 1)} |",
            f"| tokens of a prompt | {speed.prefill.value:.0f} /s | {_interval(speed.prefill.interval, 0)} |",
            f"| first token | {speed.ttft_ms:.1f} ms | {_interval(speed.ttft_interval, 1)} |",
        ]
    if m.speedup is not None:
        lines.append(f"| speed-up | {m.speedup.value:.2f}x | {_interval(m.speedup.interval, 2)} |")
    if m.paired is not None:
        p = m.paired
        lines += [
            "",
            f"Against the baseline on the same {p.samples} samples: {p.better} better, {p.worse} worse, difference "
            f"{p.difference:+.4f} ({_interval(p.interval, 4)}), {p.test} p = {p.p:.3g}.",
        ]
    return "\n".join(lines)


def _cells(m: Measurement | None) -> list[str]:
    if m is None:
        return [""] * 7
    return [
        f"{m.metric.value:.4f} {_interval(m.metric.interval, 3)}",
        f"{m.p50_ms:.3f}",
        f"{m.p95_ms:.3f}",
        f"{m.speedup.value:.2f}x" if m.speedup else "1x",
        f"{m.throughput.value:.0f}",
        f"{m.bytes / KB:.1f}",
        f"{m.peak_rss_bytes / MB:.0f}",
    ]


def _interval(ends: tuple[float, float], digits: int) -> str:
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
