"""What a search may try of a workload's own networks, read off the signature of model()."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from torch import nn

from tasks.running.stage import WorkloadRef
from tasks.workloads.digits import Digits
from tasks.workloads.offered_scales import offered_scales
from tasks.workloads.workload import Workload


class Fixed:
    def model(self, role: str) -> nn.Module:
        return nn.Linear(2, 2)


class Named:
    def model(self, role: str, kind: Literal["a", "b"] = "b", depth: float = 1.0, **scale: Any) -> nn.Module:
        return nn.Linear(2, 2)


class Mixed:
    def model(self, role: str, layers: Literal["all", "half"] | int | list[int] = "all") -> nn.Module:
        return nn.Linear(2, 2)


class Hidden:
    def model(self, role: str, kind: Unknown = None) -> nn.Module:  # type: ignore[name-defined]  # noqa: F821
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("workload", "wanted"),
    [
        (Fixed(), []),
        (Named(), [{"kind": "a"}]),
        (Hidden(), []),
        (Mixed(), [{"layers": "half"}]),
        (
            Digits(),
            [
                {"network": "strided"},
                {"network": "strided", "width": 0.5},
                {"network": "shallow"},
                {"network": "shallow", "width": 0.5},
            ],
        ),
    ],
)
def test_networks_by_name_are_offered(workload: Any, wanted: list[dict[str, Any]]) -> None:
    assert offered_scales(Workload(workload, WorkloadRef(path="a:B"))) == wanted
