"""When the checks' process is started ahead of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from measurements import run_report

from flows.commands import command_run
from model_registry.run_page import Status


@pytest.mark.parametrize(
    ("status", "champion", "settled"),
    [
        ("released", None, True),  # the first one, or the champion itself again
        ("released", "c" * 64, False),  # in another's place: the next run validates it against nobody
        ("refused", "c" * 64, True),
        ("registered", "c" * 64, True),
    ],
)
def test_a_run_that_changed_the_champion_leaves_something_to_check(
    tmp_path: Path, status: Status, champion: str | None, settled: bool
) -> None:
    mark = tmp_path / "cache" / "checked-x"
    report = run_report(status, champion=champion)
    command_run._remember_checked(report, mark)
    assert mark.exists() == settled
    command_run._remember_checked(report.model_copy(update={"stages": ()}), mark)  # its data were never checked
    assert not mark.exists()
