"""``winnow.run``: one spec, from data to a live endpoint, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.calls.run_result import RunResult
from flows.calls.stack_calls import reach_servers
from flows.run_progress import progress_lines

if TYPE_CHECKING:
    from flows.spec import PipelineSpec

Overrides = Mapping[str, Any] | Sequence[str]


def run_spec(spec: str | Path | Mapping[str, Any] | PipelineSpec, overrides: Overrides = ()) -> RunResult:
    """Run the pipeline of a spec. Finished stages are reused: a run that failed or was stopped goes on where it was.

    A line per finished stage is written to standard error.

    Args:
        spec: a YAML file, the name of a shipped spec such as ``"digits"``, or the spec itself as a mapping.
        overrides: changes by key, ``{"prune.ratio": 0.3}`` or ``["prune.ratio=0.3"]``.

    Returns:
        The run, also where the gates refused every variant: look at ``.status``.

    Raises:
        SpecError: the spec is wrong; names every wrong key with its value, the rule and the remedy.
        StackDown: the stack does not run; ``winnow.up()`` starts it.
        WinnowError: a stage failed; the error is the one that the stage raised.
        KeyboardInterrupt: it was interrupted. No process is left, and running again goes on where it was.
    """
    reach_servers()  # before Prefect is imported: it reads its settings then
    from flows.carried_out import carry_out
    from flows.spec import PipelineSpec, load_spec, parse_spec

    changes = [f"{k}={_yaml(v)}" for k, v in overrides.items()] if isinstance(overrides, Mapping) else list(overrides)
    if isinstance(spec, str | Path):
        loaded = load_spec(spec, changes)
    else:
        document = spec.model_dump(mode="json", by_alias=True) if isinstance(spec, PipelineSpec) else dict(spec)
        loaded = parse_spec(document, "the spec", changes, folder=Path.cwd())
    with progress_lines():
        report, page = carry_out(loaded)
    return RunResult(report, page)


def _yaml(value: Any) -> str:
    import json

    return json.dumps(value)  # JSON is YAML
