"""The released variant for other machines: every target that the spec names, with its proof or the reason for none."""

from __future__ import annotations

from flows.ongoing_run import OngoingRun
from model_registry.target_form import TargetForm
from model_registry.variant import Variant
from tasks.compile import compile_target, target_form
from tasks.running.errors import CANDIDATE_FAILURES, TargetUnsupported
from tasks.running.splits import DataRef


def make_targets(run: OngoingRun, variant: Variant, data: DataRef) -> None:
    """Compile for each target and note it in the report. The release stands whatever becomes of them."""
    forms = []
    for target in run.spec.targets:
        try:
            form = target_form(compile_target(run.job, target, data=data, variant=variant))
        except (TargetUnsupported, *CANDIDATE_FAILURES) as error:
            run.journal.failures.clear()
            form = TargetForm(target=target, digest=variant.digest, state="refused", reason=error.message)
        if form.state == "refused":
            run.warn(f"there is no proven form for target {target}: {form.reason}")
        forms.append(form)
    run.update(targets=tuple(forms))
