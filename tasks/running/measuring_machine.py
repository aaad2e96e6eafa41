"""Which machines measure, where a spec says it."""

from __future__ import annotations

from model_registry.cpu_class import machine_name
from tasks.running.errors import SpecError
from tasks.running.ray_nodes import usable_nodes
from tasks.running.stage import Job


def require_machines(job: Job) -> None:
    """Refuse a run whose ``measure_on`` names machines that are not there; called before anything is computed.

    Raises:
        SpecError: this machine is another one, or no node of the cluster is such a machine; says what there is.
    """
    if job.measure_on is None:
        return
    if job.place == "ray":
        usable_nodes(job.workload.path.partition(":")[0], job.workload.folder, machines=job.measure_on)
    elif (here := machine_name()) != job.measure_on:
        raise SpecError(
            f"measure_on: {job.measure_on!r}: this machine is {here!r}; run there, let the nodes of a cluster measure "
            "(place: ray), or leave measure_on out"
        )
