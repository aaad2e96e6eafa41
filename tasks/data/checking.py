"""Runs the expectations and says in plain words what they found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.expectations.expectation import Expectation
from numpy.typing import NDArray

from tasks.data.frames import REPEATS

SHOWN = 10
"""Rows named in a finding."""


Assets = dict[str, tuple[pd.DataFrame, list[Expectation]]]
"""Frames, and what is expected of them."""


@dataclass(frozen=True)
class Finding:
    """One expectation that was not met, or that could not run."""

    check: str
    asset: str
    """The split, or the table of types, columns or classes."""
    column: str
    severity: Literal["critical", "warning"]
    says: str
    remedy: str
    count: int = 0
    rows: tuple[int, ...] = ()
    """At most ten of the row numbers, from 0, in the order of the split."""
    examples: tuple[str, ...] = ()
    """What was found in these rows."""
    source_rows: tuple[str, ...] = ()
    """Where these rows stand in the user's file, or their files, where that is known."""
    could_not_run: str = ""

    def __str__(self) -> str:
        where = f"{self.check}: {self.asset}" + (f", {self.column}" if self.column else "")
        if self.could_not_run:
            return f"{where}: could not run, the data was not judged: {self.could_not_run}"
        numbers = [f"row {row}" for row in self.rows]
        if self.source_rows:
            numbers = [f"{row} = {source}" for row, source in zip(numbers, self.source_rows, strict=True)]
        shown = ", ".join(f"{row} ({found})" for row, found in zip(numbers, self.examples, strict=False))
        more = f" and {self.count - len(self.rows)} more" if self.rows and self.count > len(self.rows) else ""
        return f"{where}: {self.says!r} does not hold: {shown or '; '.join(self.examples)}{more}. Remedy: {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {"text": str(self)}


@dataclass
class Checked:
    """All results: what was found, how much was asked, and Great Expectations' own results for the page."""

    findings: list[Finding] = field(default_factory=list)
    passed: int = 0
    results: dict[str, ExpectationSuiteValidationResult] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """How many critical checks failed, and how many could not run."""
        critical = self.of("critical")
        stuck = sum(bool(finding.could_not_run) for finding in critical)
        failed = len(critical) - stuck
        parts = [f"{failed} critical check{'s' * (failed != 1)} failed"] if failed else []
        parts += [f"{stuck} critical check{'s' * (stuck != 1)} could not run"] if stuck else []
        return " and ".join(parts)

    def sort(self) -> None:
        """Bring the findings that stop a run to the front."""
        self.findings.sort(key=lambda finding: finding.severity != "critical")

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]


def run_checks(assets: Assets, source_rows: Mapping[str, NDArray[Any]] | None = None) -> Checked:
    """Validate every frame against its expectations.

    Args:
        assets: frame and expectations by name (a split, ``types``, ``classes``).
        source_rows: per split, where its rows come from.
    """
    checked = Checked(results=validate_frames(assets))
    for name, result in checked.results.items():
        for one in result.to_json_dict()["results"]:
            if one["success"]:
                checked.passed += 1
            else:
                checked.findings.append(finding_of(name, one, assets[name][0], (source_rows or {}).get(name)))
    checked.sort()
    return checked


def validate_frames(assets: Assets) -> dict[str, ExpectationSuiteValidationResult]:
    """Great Expectations' own results by name, of those that are expected something of."""
    # Notes about metrics of columns that are not there; we report these ourselves.
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("splits")
    results = {}
    for name, (frame, expectations) in assets.items():
        if not expectations:
            continue
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        results[name] = definition.run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "COMPLETE", "partial_unexpected_count": SHOWN},
        )
    return results


def finding_of(
    asset: str, one: dict[str, Any], frame: pd.DataFrame, source: NDArray[Any] | None, *, first: int = 0
) -> Finding:
    """What an expectation's result says, as JSON, of the frame whose first row has this number in its split."""
    config, result = one["expectation_config"], one["result"]
    arguments, meta = config["kwargs"], config["meta"]
    column = str(arguments.get("column") or arguments.get("column_A") or "")
    rows = tuple(int(row) for row in (result.get("unexpected_index_list") or [])[:SHOWN])
    trouble = _exception(one.get("exception_info") or {})
    if trouble:
        trouble += f" There are {[str(name) for name in frame.columns if name not in REPEATS]}"
    examples = _examples(column, rows, result, frame)
    numbered = REPEATS[0] in frame  # the rows of the tables of types, columns and classes are no samples
    return Finding(
        check=meta["check"],
        asset=asset,
        column=column,
        severity=config["severity"],
        says=meta["says"],
        remedy=meta["remedy"],
        count=int(result.get("unexpected_count") or 0),
        rows=rows if numbered and not trouble else (),
        examples=() if trouble else examples,
        source_rows=() if trouble or source is None else tuple(_source(source[row - first]) for row in rows),
        could_not_run=trouble,
    )


def _examples(column: str, rows: tuple[int, ...], result: dict[str, Any], frame: pd.DataFrame) -> tuple[str, ...]:
    if rows and "split" in frame:
        return tuple(", ".join(f"{k} {_short(v)}" for k, v in frame.loc[row].items()) for row in rows)
    if rows and REPEATS[0] not in frame:  # a row per column
        signs = frame.loc[list(rows), ["column", column]].values
        return tuple(f"{_short(name)}: {sign}" for name, sign in signs)
    if rows:
        return tuple(_short(frame.loc[row, column]) for row in rows)
    if result.get("missing_list") or result.get("partial_missing_list"):
        missing = result.get("missing_list") or result["partial_missing_list"]
        return (f"none of {', '.join(_short(value) for value in missing[:SHOWN])}",)
    return (_short(result.get("observed_value")),)


def _source(where: Any) -> str:
    return f"source row {where}" if np.issubdtype(type(where), np.integer) else str(where)


def _exception(info: dict[str, Any]) -> str:
    """The message where the expectation raised, in any of the two forms Great Expectations reports it."""
    for part in [info, *(value for value in info.values() if isinstance(value, dict))]:
        if part.get("raised_exception"):
            return str(part.get("exception_message")).removeprefix("Error: ").strip()
    return ""


def _short(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "missing" if value != value else f"{value:.6g}"
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
