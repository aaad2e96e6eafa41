"""The journal tells what this run did, whichever step is asked for again."""

from __future__ import annotations

from tasks.running.journal import Journal, Line, ended


def test_what_this_run_computed_stays_computed_when_it_is_found_again() -> None:
    journal = Journal()
    journal.add(Line("inputs", "computed", 2.0, 1.5))
    journal.add(Line("inputs", "reused", 0.1))
    assert journal.lines == [Line("inputs", "computed", 2.0, 1.5)]


def test_a_step_walked_again_replaces_its_line() -> None:
    journal = Journal()
    journal.add(Line("train", "reused", 0.1))
    journal.add(Line("train", "computed", 3.0, 2.9))
    assert [line.status for line in journal.lines] == ["computed"]


def test_the_failure_is_the_first_that_did_not_recover() -> None:
    journal = Journal()
    passing: Exception = ConnectionError("away")
    final: Exception = ValueError("wrong")
    journal.fail("quantize:a", passing, 1.0)
    journal.fail("quantize:b", final, 1.0)
    assert journal.failure == ("quantize:a", passing)
    journal.add(Line("quantize:a", "computed", 1.0))  # its retry went well
    assert journal.failure == ("quantize:b", final)
    assert {line.name: line.status for line in journal.lines} == {"quantize:a": "computed", "quantize:b": "failed"}


def test_who_listens_is_told_of_every_end_once() -> None:
    told: list[Line] = []
    token = ended.set(told.append)
    try:
        journal = Journal()
        journal.add(Line("inputs", "computed", 2.0))
        journal.add(Line("inputs", "reused", 0.1))  # asked for again in the same run
        journal.add(Line("train", "reused", 0.1))
        journal.add(Line("train", "reused", 0.2))
    finally:
        ended.reset(token)
    assert told == [Line("inputs", "computed", 2.0), Line("train", "reused", 0.1)]
