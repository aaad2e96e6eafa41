"""Degradation and roll-outs as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.traffic.steering import Steering

_OF_VERSION = ("model", "version")


def traffic_metrics(found: Iterable[tuple[str, Steering]]) -> Iterator[Metric]:
    """Metric families of these models."""
    degraded = CounterMetricFamily(
        "winnow_degraded_requests", "Requests that a cheaper variant answered, by its version.", labels=_OF_VERSION
    )
    level = GaugeMetricFamily(
        "winnow_degradation_level", "How many variants further down the ladder requests go; 0: none.", labels=("model",)
    )
    share = GaugeMetricFamily(
        "winnow_rollout_share", "Share of the traffic of a version that is being rolled out.", labels=_OF_VERSION
    )
    rows = CounterMetricFamily(
        "winnow_rollout_compared_rows",
        "Rows that both versions answered, by outcome.",
        labels=(*_OF_VERSION, "outcome"),
    )
    answers = CounterMetricFamily(
        "winnow_rollout_requests",
        "Requests that the new version answered, by outcome.",
        labels=(*_OF_VERSION, "outcome"),
    )
    ended = CounterMetricFamily("winnow_rollouts", "Roll-outs that are over, by how.", labels=("model", "outcome"))
    for model, steering in found:
        for version, count in sorted(steering.degraded.items()):
            degraded.add_metric([model, version], count)
        if steering.members:
            level.add_metric([model], steering.level)
        for outcome, count in sorted(steering.ended.items()):
            ended.add_metric([model, outcome], count)
        trial = steering.trial
        if trial is not None:
            labels = [model, trial.new]
            on_its_own = trial.present.kind == "canary" and not trial.over
            share.add_metric(labels, trial.present.share if on_its_own else 0.0)
            rows.add_metric([*labels, "alike"], trial.agreement.trials - trial.agreement.failures)
            rows.add_metric([*labels, "different"], trial.agreement.failures)
            answers.add_metric([*labels, "answered"], trial.errors.trials - trial.errors.failures)
            answers.add_metric([*labels, "failed"], trial.errors.failures)
    yield from (degraded, level, share, rows, answers, ended)
