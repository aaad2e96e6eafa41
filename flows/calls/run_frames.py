"""Variants as data frames: of one run, or of several beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.calls.run_result import RunResult
from flows.reaching import reach_store
from tasks.report.run_records import find_run
from tasks.report.run_report import RunReport, VariantRow
from tasks.running.errors import WinnowError

if TYPE_CHECKING:
    from pandas import DataFrame


def variants_of(model_or_run: str | RunResult) -> DataFrame:
    """The variants of a run, or of a model's latest run that measured any; the baseline comes first.

    Args:
        model_or_run: a model's name, a run id or its beginning, ``latest``, or what :func:`winnow.run` returned.

    Returns:
        A row per variant. ``variant``, ``stage``, ``chosen``, ``baseline`` (both true or false), ``pareto`` (no other
        is both better and faster); the metric under its own name, with ``_low`` and ``_high`` of its 95 % interval;
        ``bytes``; ``smaller``: times, against the baseline; ``p50_ms``, ``p95_ms``; ``speedup``, ``speedup_low``,
        ``speedup_high``: times, from rounds interleaved with the baseline, NaN for itself; ``samples_per_second``;
        ``peak_rss_bytes``; ``parameters``; ``macs`` per sample; ``digest``; of language models also ``bits_per_byte``,
        ``tokens_per_second`` (of one answer) and ``ttft_ms``. Numbers are of the validation split.

    Raises:
        WinnowError: there is no run or model of that name.
        StackDown: the stack does not run.
    """
    return variant_frame(find_report(model_or_run))


def compare(*models_or_runs: str | RunResult) -> DataFrame:
    """The variants of several models or runs, one below the other.

    Args:
        models_or_runs: each as :func:`winnow.variants` takes it.

    Returns:
        The rows of :func:`winnow.variants`, with the columns ``model`` and ``run`` in front.

    Raises:
        WinnowError: nothing was named, or there is no run or model of a name.
        StackDown: the stack does not run.
    """
    import pandas

    if not models_or_runs:
        raise WinnowError("winnow.compare() was given nothing to compare; name models or runs")
    frames = []
    for report in map(find_report, models_or_runs):
        frame = variant_frame(report)
        frame.insert(0, "run", report.run_id)
        frame.insert(0, "model", report.model)
        frames.append(frame)
    return pandas.concat(frames, ignore_index=True)


def find_report(model_or_run: str | RunResult) -> RunReport:
    """The report that is meant; see :func:`variants`."""
    if isinstance(model_or_run, RunResult):
        return model_or_run.report
    found = find_run(reach_store(), model_or_run, measured=True)
    if found is None:
        raise WinnowError(f"no run and no model is called {model_or_run!r}; `winnow runs` lists what there is")
    return found


def variant_frame(report: RunReport) -> DataFrame:
    """The variants of a report; see :func:`variants`."""
    import pandas

    baseline = report.row(report.baseline)
    metric = report.metric.name if report.metric else "metric"
    rows: list[dict[str, Any]] = [
        {
            "variant": row.name,
            "stage": row.stage,
            "chosen": row.digest == report.chosen,
            "baseline": row.digest == report.baseline,
            "pareto": row.pareto,
            metric: row.metric.value,
            f"{metric}_low": row.metric.interval[0],
            f"{metric}_high": row.metric.interval[1],
            "bytes": row.bytes,
            "smaller": baseline.bytes / row.bytes if baseline else float("nan"),
            "p50_ms": row.p50_ms,
            "p95_ms": row.p95_ms,
            "speedup": row.speedup.value if row.speedup else float("nan"),
            "speedup_low": row.speedup.interval[0] if row.speedup else float("nan"),
            "speedup_high": row.speedup.interval[1] if row.speedup else float("nan"),
            "samples_per_second": row.throughput,
            "peak_rss_bytes": row.peak_rss_bytes,
            "parameters": row.parameters,
            "macs": row.macs,
            "digest": row.digest,
        }
        | _language(row)
        for row in report.variants
    ]
    return pandas.DataFrame(rows)


def _language(row: VariantRow) -> dict[str, Any]:
    if row.bits_per_byte is None or row.token_speed is None:
        return {}
    speed = row.token_speed
    return {"bits_per_byte": row.bits_per_byte, "tokens_per_second": speed.decode.value, "ttft_ms": speed.ttft_ms}
