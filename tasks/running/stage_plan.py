"""What a run would compute or reuse: the flow is walked with a plan set, and only what looks is computed."""

from __future__ import annotations

from contextvars import ContextVar

from pydantic import BaseModel, Field

from model_registry.manifest import FileEntry
from model_registry.variant import Record, Variant
from tasks.running.stage_call import StageCall


class PlanLine(Record):
    """One line of ``winnow run --plan``."""

    name: str
    action: str
    reason: str
    notes: tuple[str, ...] = ()
    """What is known of its result already, in sentences: of data, how they were understood."""


class Plan(BaseModel):
    """Collects lines while the flow is walked without computing."""

    lines: list[PlanLine] = Field(default_factory=list)
    pending: set[str] = Field(default_factory=set)
    """Digests of placeholders: what does not exist yet."""
    told: set[tuple[str, str]] = Field(default_factory=set)
    """Names and keys of the lines."""

    def reuse(self, call: StageCall, reason: str) -> None:
        """The call's result is stored."""
        self._tell(call, "reused", reason)

    def looked(self, call: StageCall, why: str) -> None:
        """The call had to be computed for the plan."""
        self._tell(call, "looked", why)

    def compute(self, call: StageCall, why: str) -> tuple[str, tuple[Variant, ...]]:
        """The call would be computed: the reason (``why``, unless an input is new), and variants in its result's place,
        in the order of what the stage yields.

        Nothing of the placeholders is true but their names and formats; what is planned on them is pending too.
        """
        new = [role for role, variant in call.inputs.items() if variant.digest in self.pending]
        reason = f"its {', '.join(new)} will be new" if new else why
        self._tell(call, "computed", reason)
        placeholders = tuple(
            Variant(
                name=label,
                stage=call.stage.name,
                format="torch",
                files=(FileEntry(path=f"{call.name}/{label}", sha256=call.key, size=0),),
                inputs=(),
                outputs=(),
            )
            for label in call.stage.yields
        )
        self.pending.update(v.digest for v in placeholders)
        return reason, placeholders

    def _tell(self, call: StageCall, action: str, reason: str) -> None:
        """A line, the first time: several stages may ask for the same one."""
        if (call.name, call.key) not in self.told:
            self.told.add((call.name, call.key))
            self.lines.append(PlanLine(name=call.name, action=action, reason=reason))


planning: ContextVar[Plan | None] = ContextVar("planning", default=None)
"""Set while the flow is only planned."""
