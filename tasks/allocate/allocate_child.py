"""The allocation in its process: damages and costs become a ladder of ratios."""

from __future__ import annotations

from tasks.allocate.costs import Costs, Table
from tasks.allocate.ladder import climb_down
from tasks.allocate.structure import Structure
from tasks.running.child import Child, Result


def main(child: Child) -> Result:
    """Solve for each target."""
    structure = Structure.model_validate(child.extra["structure"])
    table = Table.model_validate(child.extra["table"])
    damages = {name: [(int(k), float(d)) for k, d in found] for name, found in child.extra["damages"].items()}

    costs = Costs(structure, table)
    ladder = climb_down(
        structure, table, costs, damages, objective=child.spec["objective"], targets=child.spec["targets"]
    )

    full = structure.full()
    parent = {"ms": costs.ms(full), "bytes": costs.bytes(full)}
    groups = [{**group.model_dump(mode="json"), "damages": damages[group.name]} for group in structure.groups]
    return Result(values={"ladder": ladder, "parent": parent, "groups": groups})
