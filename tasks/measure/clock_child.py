"""Time untrained variants: the probe runs them with the serving engine, in turns with the baseline."""

from __future__ import annotations

from model_registry.manifest import FileEntry
from tasks.measure.fpga_need import tables_needed
from tasks.measure.probe_process import probe_process
from tasks.running.child import Child, Result


def main(child: Child) -> Result:
    """Size and speed of each variant."""
    baseline = child.inputs["baseline"]
    variants = [variant for role, variant in child.inputs.items() if role != "baseline"]
    inputs = child.store.fetch(FileEntry.model_validate(child.extra["inputs"]), child.workdir / "inputs.npz")
    child.progress(0.0, f"timing {len(variants)} files")
    with probe_process() as probe:
        found = probe.clock(
            child.store,
            child.workdir,
            variants=variants,
            baseline=baseline,
            threads=baseline.runtime.intra_op_threads,
            inputs=str(inputs),
            batch=child.spec["batch"],
            seconds=child.spec["seconds"],
        )
        probe.settle()
    child.progress(0.9, "sizing")
    at_most = child.spec["luts_below"]
    needed = [tables_needed(v, inputs, store=child.store, folder=child.workdir, at_most=at_most) for v in variants]
    sized = [each.model_copy(update={"luts": luts}) for each, luts in zip(found, needed, strict=True)]
    return Result(values={"clocked": [each.model_dump(mode="json") for each in sized]})
