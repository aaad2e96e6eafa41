"""How a run ends: its report is written, MLflow's run ends as ours did, Prefect shows table, plot and links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact
from prefect.exceptions import PrefectException

from flows.lineage import Made
from flows.ongoing_run import STOPPED, OngoingRun
from model_registry.mlflow_rest import ANSWER_SECONDS, RegistryError
from model_registry.registry import Registry
from model_registry.run_page import Tracked, VariantRun
from model_registry.sizes import KB, MB
from model_registry.store import StoreError
from tasks.release.ledger_protocol import patiently
from tasks.report.chosen_layers import chosen_layers
from tasks.report.flip_pictures import flips_of
from tasks.report.headline import headline
from tasks.report.pages import write_report
from tasks.report.run_report import RunReport
from tasks.report.sequence_view import gap_sentence, sequence_sentence
from tasks.track import conclude

DATA_DOCS = "data_docs.html"
NOT_SHOWN = (RegistryError, StoreError, httpx.HTTPError, PrefectException, OSError)
"""What the servers that only show a run may answer, and what a full disk does."""
_STOP_SECONDS = 2.0
"""How long MLflow may take where somebody waits for the prompt."""


@contextmanager
def concluding(run: OngoingRun, made: Made, rows: Sequence[VariantRun], tracked: Tracked | None) -> Iterator[None]:
    """Whatever happens in the body, write the report and end MLflow's run with the same status.

    An error after the release is a warning: the release stands. ``tracked`` is None where MLflow does not show the run.
    """
    if tracked:
        run.update(links={**run.report.links, "mlflow": tracked.run.url, "compare": tracked.run.variants_url})
    try:
        yield
    except STOPPED as stop:  # somebody waits for the prompt: only the state, no pages
        run.settle(stop)
        _end_in_mlflow(run, tracked, _STOP_SECONDS)
        raise
    except Exception as error:
        run.settle(error)
        lost = _concluded(run, made, rows, tracked)
        if run.report.status != "released":
            if lost:
                error.add_note(f"and it could not be shown everywhere: {lost}")
            raise
    else:
        _concluded(run, made, rows, tracked)


def _concluded(run: OngoingRun, made: Made, rows: Sequence[VariantRun], tracked: Tracked | None) -> str:
    """What kept the run from being shown everywhere, if anything: pages may be lost, what was decided is not."""
    try:
        _conclude(run, made, rows, tracked)
    except NOT_SHOWN as lost:
        run.warn(f"not shown everywhere: {type(lost).__name__}: {lost}")
        _end_in_mlflow(run, tracked)
        try:
            run.save()
        except (StoreError, OSError) as still:
            return f"{lost}; {still}"
        return str(lost)
    return ""


def _end_in_mlflow(run: OngoingRun, tracked: Tracked | None, seconds: float = ANSWER_SECONDS) -> None:
    if tracked:
        run.show(lambda: Registry.from_environment(seconds).end_run(tracked.run, run.report.status))


def _conclude(run: OngoingRun, made: Made, rows: Sequence[VariantRun], tracked: Tracked | None) -> None:
    _look_closer(run, made)
    report = run.save()
    written = write_report(report, run.pages, run.flips)
    docs = made.data.file(DATA_DOCS)
    if docs is not None:
        written[DATA_DOCS] = patiently(lambda: run.store.fetch(docs, run.pages / DATA_DOCS))
    tags = {
        "winnow.version": str(report.version or ""),
        "winnow.endpoint": report.endpoint or "",
        "winnow.front": ", ".join(map(str, sorted(report.front.values()))),
        "winnow.sequence": sequence_sentence(report),
        "winnow.targets": "; ".join(f"{form.target} {form.state}: {form.reason}" for form in report.targets),
        "winnow.splits_differ": gap_sentence(report),
    }
    if tracked:
        run.show(
            lambda: conclude(
                tracked,
                status=report.status,
                rows=tuple(rows),
                files=written,
                tags={name: value for name, value in tags.items() if value},
                links=report.links,
                remarks=(headline(report).sentence, *report.warnings, *report.notes),
            )
        )
    _show_in_prefect(report, tracked)
    if run.report is not report:  # MLflow was lost on the way
        run.save()


def _look_closer(run: OngoingRun, made: Made) -> None:
    """What became of the chosen variant's layers, and the samples on which it answers otherwise than the baseline."""
    report = run.report
    if report.chosen is None:
        return
    run.update(layers=chosen_layers(report.chosen, [step.outcome for step in made.steps], made.parents))
    try:
        run.flips = patiently(lambda: flips_of(run.store, report.decision, made.checked.labels))
    except StoreError as lost:  # the page is worth more than its pictures
        run.note(f"the answers that changed cannot be shown: {lost}")


def _show_in_prefect(report: RunReport, tracked: Tracked | None) -> None:
    table = [
        {
            "variant": row.name + (" (chosen)" if row.digest == report.chosen else ""),
            report.metric.name if report.metric else "metric": f"{row.metric.value:.4f}",
            "kB": f"{row.bytes / KB:.1f}",
            "p50 ms": f"{row.p50_ms:.3f}",
            "p95 ms": f"{row.p95_ms:.3f}",
            "per s": f"{row.throughput:.0f}",
            "MB": f"{row.peak_rss_bytes / MB:.0f}",
        }
        for row in report.variants
    ]
    key = "".join(c if c.isalnum() else "-" for c in report.model.lower())
    create_table_artifact(table, key=f"{key}-variants", description=f"Variants of {report.model}: {report.status}")
    if tracked:
        plot = f"{tracked.run.uri}/get-artifact?path=pareto.png&run_uuid={tracked.run.mlflow_id}"
        create_image_artifact(image_url=plot, key=f"{key}-pareto", description="Accuracy against latency, by file size")
    for name, url in {**report.links, **({"endpoint": report.endpoint} if report.endpoint else {})}.items():
        create_link_artifact(link=url, link_text=name, key=f"{key}-{name.replace(' ', '-')}")
