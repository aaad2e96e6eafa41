"""The gates as Great Expectations: a table of measurements with a column per gate, critical where a gate refuses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd

from tasks.evidence.decision import GateResult, GateRow


def run_gates(variant: str, rows: Sequence[GateRow]) -> tuple[GateResult, ...]:
    """Validate the variant's row of numbers; a gate holds if its number is there and keeps the limit.

    Great Expectations skips missing values in a range check, so each gate also demands that its number is one: without
    that a metric of NaN would pass every gate.

    Args:
        variant: label of the row.
        rows: at least one gate.
    """
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    frame = pd.DataFrame([{"variant": variant} | {row.gate: float(row.value) for row in rows}])
    suite = gx.ExpectationSuite(name="gates", expectations=[e for row in rows for e in _expectations(row)])
    asset = context.data_sources.add_pandas("measurements").add_dataframe_asset("test")
    definition = gx.ValidationDefinition(
        name="gates", data=asset.add_batch_definition_whole_dataframe("all"), suite=context.suites.add(suite)
    )
    result = context.validation_definitions.add(definition).run(batch_parameters={"dataframe": frame})
    failed = {one["expectation_config"]["meta"]["gate"] for one in _results(result) if not one["success"]}
    return tuple(GateResult(**row.model_dump(), passed=row.gate not in failed) for row in rows)


def _expectations(row: GateRow) -> list[Any]:
    arguments = {"column": row.gate, "severity": row.severity, "meta": {"gate": row.gate}}
    limit = {"max_value": row.limit} if row.at_most else {"min_value": row.limit}
    return [
        gxe.ExpectColumnValuesToNotBeNull(**arguments),
        gxe.ExpectColumnValuesToBeBetween(**arguments, **limit),
    ]


def _results(result: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = result.to_json_dict()["results"]
    return results
