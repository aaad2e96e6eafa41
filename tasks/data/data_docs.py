"""Great Expectations' Data Docs as one page that a browser opens by itself.

The site that Great Expectations builds loads styles, scripts and an image with the installation's id from the network.
Here its own renderers make the tables; the frame around them is ours, without script or link to anywhere.
"""

from __future__ import annotations

import html
import re

from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaSectionView

from tasks.data.checking import Checked, Finding

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--good:#1a7f37;--bad:#cf222e;--warn:#9a6700}
@media(prefers-color-scheme:dark){:root{--good:#3fb950;--bad:#f85149;--warn:#d29922}}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}h5{font-size:1rem;margin:0}
table{border-collapse:collapse;width:100%;margin:.4rem 0}
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:left;vertical-align:top}
thead[hidden]{display:none}
summary{cursor:pointer;padding:.5rem .8rem;background:var(--soft);border-radius:.4rem;font-weight:600}
details{margin:.5rem 0}details>div{padding:.2rem .8rem}
.ge-section{margin-top:1rem}.alert{font-weight:600}
.badge{background:var(--soft);border:1px solid var(--line);border-radius:.3rem;padding:0 .35rem;font-size:.9em}
.text-danger,.bad{color:var(--bad)}.text-success,.good{color:var(--good)}.text-warning,.warn{color:var(--warn)}
.fa-check-circle::before{content:"\\2713"}.fa-times::before{content:"\\2717"}
.fa-exclamation-triangle::before{content:"\\26a0"}
.ge-section .table{table-layout:fixed}.ge-section .table>thead{display:none}
.ge-section .table>tbody>tr>td:first-child{width:1.5rem}.ge-section .table>tbody>tr>td:last-child{width:16rem}
i{font-style:normal;font-weight:700}.table-bordered{width:auto;font-size:.9em}
a[data-toggle],.collapse{display:none}
code{font-size:.92em;overflow-wrap:anywhere}
"""


_UUID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=\b)")
"""Of elements that open and close, which are hidden here; the same data shall give the same page."""


def data_docs_page(title: str, facts: dict[str, str], checked: Checked) -> str:
    """The page: verdict, findings, a table of checks by split, then Great Expectations' results per split.

    Args:
        title: what the data is, for the heading.
        facts: shown below it as name and value.
        checked: the results.
    """
    critical, warnings = checked.of("critical"), checked.of("warning")
    if critical:
        verdict = f'<strong class="bad">{checked.headline}</strong>'
    elif warnings:
        verdict = f'<strong class="warn">usable, with {len(warnings)} warning{"s" * (len(warnings) != 1)}</strong>'
    else:
        verdict = '<strong class="good">all checks passed</strong>'
    told = "".join(f"<tr><th>{_text(k)}</th><td><code>{_text(v)}</code></td></tr>" for k, v in facts.items())
    findings = "".join(f'<li class="{_tone(f)}">{_text(str(f))}</li>' for f in checked.findings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        # Nothing in the data can make the page run or load anything.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{_text(title)}</h1><p>{verdict}: {checked.passed} of {checked.passed + len(checked.findings)} "
        f"expectations met</p><table>{told}</table>"
        + (f"<h2>Findings</h2><ul>{findings}</ul>" if findings else "")
        + "<h2>Checks by split</h2>"
        + _overview(checked)
        + "<h2>Expectations and what was observed</h2>"
        + "".join(_details(name, result) for name, result in checked.results.items())
        + "</body></html>"
    )


def _overview(checked: Checked) -> str:
    """A line per check, a column per split: met, warned, failed."""
    cells: dict[tuple[str, str], str] = {}
    for asset, result in checked.results.items():
        for one in result.results:
            check = str(one.expectation_config.meta["check"])
            if one.success:
                cells.setdefault((check, asset), '<td class="good">✓</td>')
    for finding in reversed(checked.findings):  # critical ones last: they win
        mark = "?" if finding.could_not_run else "✗" if finding.severity == "critical" else "⚠"
        cells[finding.check, finding.asset] = f'<td class="{_tone(finding)}">{mark}</td>'
    checks = list(dict.fromkeys(check for check, _ in cells))
    head = "".join(f"<th>{_text(asset)}</th>" for asset in checked.results)
    lines = ""
    for check in checks:
        line = "".join(cells.get((check, asset), "<td></td>") for asset in checked.results)
        lines += f"<tr><th>{_text(check)}</th>{line}</tr>"
    return f"<table><thead><tr><th>check</th>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _details(name: str, result: ExpectationSuiteValidationResult) -> str:
    document = ValidationResultsPageRenderer().render(result)
    view = DefaultJinjaSectionView()
    # The first section holds run times and identifiers; they would differ from run to run.
    sections = "".join(
        view.render({"section": section.to_json_dict(), "section_loop": {"index": index}})
        for index, section in enumerate(document.sections[1:])
    )
    sections = _UUID.sub("", sections)
    met = sum(bool(one.success) for one in result.results)
    total = len(result.results)
    tone, shown = ("good", "") if met == total else ("bad", " open")
    heading = f'{_text(name)}: <span class="{tone}">{met} of {total}</span>'
    return f"<details{shown}><summary>{heading}</summary><div>{sections}</div></details>"


def _tone(finding: Finding) -> str:
    return "bad" if finding.severity == "critical" else "warn"


def _text(value: str) -> str:
    return html.escape(value)
