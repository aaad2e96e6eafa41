"""Who is a control: known by what it was made from, never by its name."""

from __future__ import annotations

from typing import Any

from measurements import measured
from search_pieces import outcome, setup

from flows.lineage import Made, MadeStep
from model_registry.manifest import FileEntry
from model_registry.variant import Variant
from tasks.running.stage import Outcome


def variant(name: str, weights: str) -> Variant:
    file = FileEntry(path="f", sha256=weights * 64, size=1)
    return Variant(name=name, stage="distill", format="onnx", files=(file,), inputs=(), outputs=())


def made_of(*steps: MadeStep) -> Made:
    """Everything measured, a teacher first."""
    teacher = variant("teacher", "0")
    base = measured("teacher", digest=teacher.digest)

    def measurement(v: Variant) -> Outcome:
        form = base if v is teacher else measured(v.name, base, digest=v.digest)
        return of(v).model_copy(update={"values": {"measurement": form.model_dump(mode="json", by_alias=True)}})

    variants = [v for step in steps for v in step.variants]
    return Made(
        outcome("data"), setup().data, (MadeStep(of(teacher)), *steps), tuple(map(measurement, [teacher, *variants]))
    )


def of(*variants: Variant) -> Outcome:
    return outcome(variants[0].name).model_copy(update={"variants": variants})


def released(made: Made) -> list[Any]:
    return [m.name for m in made.candidates]


def test_a_control_and_all_that_is_made_of_it_are_never_released_whatever_they_are_called() -> None:
    student, control, whole, exported, packed = (variant(n, w) for n, w in zip("abcde", "12345", strict=True))
    made = made_of(
        MadeStep(of(student, control), (), (control.digest,)),
        MadeStep(of(whole), (student,)),
        MadeStep(of(exported), (control,)),
        MadeStep(of(packed), (exported,)),
    )
    assert made.controls == {control.digest, exported.digest, packed.digest}
    assert released(made) == ["a", "c"]


def test_a_student_may_be_called_control() -> None:
    assert released(made_of(MadeStep(of(variant("control-room", "1"))))) == ["control-room"]


def test_what_a_student_is_too_is_no_control() -> None:
    """The teacher taught nothing: both have the same weights, and the student may be released."""
    student, control = variant("student", "1"), variant("control", "1")
    made = made_of(MadeStep(of(student)), MadeStep(of(control), (), (control.digest,)))
    assert not made.controls and student.digest == control.digest


def test_findings_tell_the_task_and_what_was_left_out() -> None:
    step = of(variant("student", "1")).model_copy(
        update={"stage": "quantize", "values": {"skipped": {"bf16": "no CPU"}}}
    )
    task = {"says": "binary: one logit a row", "warnings": ["every target is 0: there is nothing to tell apart"]}
    settled = outcome("rehearse").model_copy(update={"values": {"task": task}})
    made = made_of(MadeStep(step)).with_task(settled)
    assert made.findings == ("Task binary: one logit a row.", "Left out: bf16 of quantize: no CPU.")
    assert made.warnings == ("every target is 0: there is nothing to tell apart",)


def test_how_bits_were_mixed_stands_beside_the_variant() -> None:
    made, others = variant("student.mixed", "1"), variant("student.weights8", "2")
    groups = {"up of layer 0": {"bits": 4, "block": 32, "bytes": 900, "damage": 0.0041}}
    facts = {made.digest: {"name": made.name, "groups": groups}, others.digest: {"name": others.name}}
    step = of(made, others).model_copy(update={"stage": "quantize", "values": {"variants": facts}})
    params = {row.variant.name: row.params for row in made_of(MadeStep(step)).rows()}
    assert params["student.mixed"] == {"grid of up of layer 0": "4 bits in blocks of 32, 0.0041 nats"}
    assert params["student.weights8"] == {}
