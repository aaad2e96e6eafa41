"""Print a run's report.json as Markdown for the job's summary page: ``python job_summary.py report/report.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def summary(report: dict[str, Any]) -> str:
    """A table of the variants, what was chosen, and why the run failed if it did."""
    lines = [f"### {report['model']}: {report['status']}", ""]
    if report.get("version"):
        lines += [f"Version {report['version']}, run `{report['run_id']}`", ""]
    if report.get("error"):
        error = report["error"]
        lines += [f"**{error['stage']}**: {error['type']}", "", "```", error["message"], "```", ""]
    if report["variants"]:
        metric = report["metric"]["name"]
        lines += [f"| variant | {metric} | 95 % interval | KB | p50 ms | p95 ms |", "|---|--:|---|--:|--:|--:|"]
        for row in report["variants"]:
            low, high = row["metric"]["interval"]
            mark = " **(chosen)**" if row["digest"] == report.get("chosen") else ""
            lines.append(
                f"| {row['name']}{mark} | {row['metric']['value']:.4f} | {low:.4f} to {high:.4f} "
                f"| {row['bytes'] / 1000:.1f} | {row['p50_ms']:.3f} | {row['p95_ms']:.3f} |"
            )
        lines.append("")
    lines += [f"- {stage['name']}: {stage['status']}, {stage['seconds']:.1f} s" for stage in report["stages"]]
    return "\n".join(lines)


def main(path: Path) -> None:
    """The report's summary; a sentence where there is no report, which is when nobody knows the run."""
    text = path.read_text() if path.is_file() else ""
    try:
        report = json.loads(text)
    except json.JSONDecodeError:
        report = None
    print(summary(report) if isinstance(report, dict) else "The run left no report; see the log above.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
