"""The latency table in its process. Imports no torch."""

from __future__ import annotations

import time

from tasks.allocate.latency import measure_table
from tasks.allocate.structure import Structure
from tasks.running.child import Child, Result


def main(child: Child) -> Result:
    """Time the layers of the structure on this machine."""
    spec, started = child.spec, time.monotonic()
    structure = Structure.model_validate(child.extra["structure"])

    table = measure_table(
        structure,
        int8=spec["kind"] == "int8",
        batch=spec["batch"],
        threads=spec["threads"],
        seconds=spec["seconds"],
        progress=child.progress,
    )

    points = sum(len(t.inputs) * len(t.outputs) for t in table.timings)
    values = {"table": table.model_dump(mode="json"), "points": points, "seconds": time.monotonic() - started}
    return Result(values=values)
