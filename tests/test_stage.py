"""What every stage of a run shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.ongoing_run import new_run_id, open_run
from flows.spec import load_spec
from tasks.running.errors import SpecError
from tasks.running.stage import Job, WorkloadRef
from tasks.running.stage_cache import log_folder

ODD = ["../../../../escaped", "..", "", "a/b", "/etc", "a\n", "a\0", "-x", "x" * 129, "it's"]


@pytest.mark.parametrize("run_id", ODD)
def test_a_run_id_that_is_no_plain_name_leads_nowhere(run_id: str) -> None:
    with pytest.raises(ValidationError, match="run_id"):
        Job(run_id=run_id, model="m", store="s3://x", workload=WorkloadRef(path="a:B"))
    with pytest.raises(SpecError, match="is refused"):
        log_folder(run_id)


def test_a_run_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / ".winnow"))
    with pytest.raises(SpecError, match="run id"), open_run(load_spec("tiny", []), "../../escaped"):
        raise AssertionError("it began")
    assert list(tmp_path.iterdir()) == []


def test_the_ids_that_we_make_and_plain_ones_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    for run_id in (new_run_id("digits"), new_run_id("a" * 64), "nightly.7_b"):
        assert log_folder(run_id) == tmp_path / "runs" / run_id
