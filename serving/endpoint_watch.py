"""What can be seen of the endpoint from outside: Prometheus metrics, and the live status page's numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import ProcessCollector
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from serving.acceptors.acceptor_keeper import AcceptorKeeper
from serving.cpu_accounts import CpuAccounts, VersionUse, process_use
from serving.front.data_plane import DataPlane
from serving.key_ring import KeyRing
from serving.loaded_version import LoadedVersion
from serving.rollout import Rollout
from serving.traffic.traffic_metrics import traffic_metrics
from serving.version_stats import LABELS, SECONDS, VersionNow, version_metrics

_HOUR = 3600.0


class EndpointWatch:
    """Reads what the others count; keeps nothing but what engine processes that are gone have used.

    Args:
        cpu_hour_cost: of one core for an hour, in any currency; None: no costs are shown.
    """

    def __init__(
        self,
        rollout: Rollout,
        data: DataPlane,
        keys: KeyRing,
        acceptors: AcceptorKeeper,
        *,
        cpu_hour_cost: float | None = None,
    ) -> None:
        self._rollout, self._data, self.keys, self._cpu_hour_cost = rollout, data, keys, cpu_hour_cost
        self._acceptors = acceptors
        self._started, self._cpu_began = time.time(), time.process_time()
        self._accounts = CpuAccounts()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def as_prometheus(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self._registry)

    def as_status(self, described: dict[str, Any]) -> dict[str, Any]:
        """What the admin listener says of the models, with what is counted of them and of their versions.

        ``now`` is a monotonic clock in seconds; ``buckets`` are counts of answers that took up to ``seconds``, and
        longer.
        """
        for model in described["models"]:
            loaded = self._rollout.models[model["model"]].versions
            model["shed"] = {why: n for (name, why), n in self._data.counts.shed.items() if name == model["model"]}
            for version in model["versions"]:
                version |= self._of_version(loaded[version["version"]])
        use = process_use(os.getpid())
        front = {
            "cpu_seconds": self._front_seconds(),
            "resident_bytes": None if use is None else use.resident_bytes,
            "connections": len(self._data.connections),
            "shed": self._data.shed,
            "acceptors": self._acceptors.describe(),
        }
        return {
            **described,
            "started": self._started,
            "now": time.monotonic(),
            "seconds": SECONDS,
            "front": front,
            "samples": None if self._data.samples is None else self._data.samples.describe(),
        }

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        versions = self._rollout.versions()
        yield from version_metrics(
            VersionNow(v.model, v.version, v.stats, *v.waiting, len(v.engines)) for v in versions
        )
        yield from self._use_metrics(versions)
        yield from traffic_metrics((name, model.steering) for name, model in sorted(self._rollout.models.items()))
        counts = self._data.counts
        by_key = CounterMetricFamily(
            "winnow_key_requests",
            "Inference requests by the key they came with; key is empty for none, and other for the 51st and later.",
            labels=("key", "name"),
        )
        for (key, name), count in counts.by_key.items():
            by_key.add_metric([key, name], count)
        shed = CounterMetricFamily(
            "winnow_shed_requests",
            "Refused with 503 or 429 before an engine had them: queue, rate, not ready, connections, bodies.",
            labels=("model", "reason"),
        )
        for (model, reason), count in counts.shed.items():
            shed.add_metric([model, reason], count)
        for reason, count in self._data.shed.items():
            shed.add_metric(["", reason], count)
        faults = GaugeMetricFamily(
            "winnow_access_fault", "1 where keys, or those of the tokens' issuer, cannot be read.", labels=("of",)
        )
        for of, why in self.keys.faults.items():
            faults.add_metric([of], float(bool(why)))
        yield from (by_key, shed, faults)
        if self._data.samples is not None:
            samples = CounterMetricFamily(
                "winnow_samples", "Requests kept for monitoring: written to S3, or lost on the way.", labels=("result",)
            )
            samples.add_metric(["written"], self._data.samples.written)
            samples.add_metric(["lost"], self._data.samples.lost)
            yield samples

    def _use_metrics(self, versions: list[LoadedVersion]) -> Iterator[Metric]:
        cpu = CounterMetricFamily("winnow_engine_cpu_seconds", "CPU time of engine processes.", labels=LABELS)
        resident = GaugeMetricFamily(
            "winnow_engine_resident_bytes", "Memory of engine processes; what they share counts in each.", labels=LABELS
        )
        each = GaugeMetricFamily(
            "winnow_cpu_ms_per_1000_requests",
            "CPU milliseconds per 1000 requests since the version was loaded: of its engines without loading, and of "
            "the front, which is the same for all.",
            labels=(*LABELS, "part"),
        )
        cost = GaugeMetricFamily(
            "winnow_cost_per_1000_requests", "Of that CPU time, at WINNOW_CPU_HOUR_COST.", labels=LABELS
        )
        for version in versions:
            labels, use = [version.model, version.version], self._accounts.use(version)
            if use is not None:
                cpu.add_metric(labels, use.cpu_seconds)
                resident.add_metric(labels, use.resident_bytes)
            parts = self._cpu_ms_per_1000(version, use)
            for part, milliseconds in parts.items():
                each.add_metric([*labels, part], milliseconds)
            if parts and self._cpu_hour_cost is not None:
                cost.add_metric(labels, self._cost(parts))
        yield from (cpu, resident, each, *([] if self._cpu_hour_cost is None else [cost]))

    def _of_version(self, version: LoadedVersion) -> dict[str, Any]:
        stats, use = version.stats, self._accounts.use(version)
        parts = self._cpu_ms_per_1000(version, use)
        return {
            "statuses": {str(status): count for status, count in stats.statuses.items()},
            "buckets": stats.request_seconds.counts,
            "rows": stats.rows,
            "runs": stats.runs,
            "waiting": version.waiting[0],
            "engines": len(version.engines),
            "resident_bytes": None if use is None else use.resident_bytes,
            "cpu_ms_per_1000": sum(parts.values()) if parts else None,
            "cost_per_1000": self._cost(parts) if parts and self._cpu_hour_cost is not None else None,
        }

    def _cpu_ms_per_1000(self, version: LoadedVersion, use: VersionUse | None) -> dict[str, float]:
        """By part; empty before the first request."""
        requests, all_requests = version.stats.requests, self._data.counts.total
        if not requests or not all_requests:
            return {}
        front = (self._front_seconds() - self._cpu_began) / all_requests
        parts = {"front": 1e6 * front}
        return parts if use is None else {**parts, "engine": 1e6 * use.serving_seconds / requests}

    def _front_seconds(self) -> float:
        """CPU time of the front, and of its acceptors that are there."""
        uses = [process_use(pid) for pid in self._acceptors.pids]
        return time.process_time() + sum(use.cpu_seconds for use in uses if use is not None)

    def _cost(self, parts: dict[str, float]) -> float:
        assert self._cpu_hour_cost is not None
        return sum(parts.values()) / 1e3 / _HOUR * self._cpu_hour_cost
