"""Stored documents are read across versions: later fields are passed over, a newer schema is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from measurements import measured
from pydantic import Field, ValidationError

from model_registry.ledger import Intent
from model_registry.measurement import Measurement
from model_registry.variant import Frozen, NewerRecord, Record, Variant


class Inner(Frozen):
    number: int = 1


class Outer(Record):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict)


def stored(record: Record, change: Any) -> bytes:
    document = json.loads(record.to_json())
    change(document)
    return json.dumps(document).encode()


def test_fields_that_came_later_are_passed_over_wherever_they_stand() -> None:
    def later(document: dict[str, Any]) -> None:
        document["later"] = {"a": 1}
        document["inner"]["later"] = 2
        document["many"][0]["later"] = [3]
        document["by_name"]["x"]["later"] = None

    record = Outer(many=(Inner(number=2),), by_name={"x": Inner(number=3)})
    assert Outer.from_json(stored(record, later)) == record
    form = measured("teacher")
    assert Measurement.from_json(stored(form, lambda d: d["hardware"].update(later=1))) == form


def test_what_a_person_writes_is_still_checked_for_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="later"):
        Outer.model_validate({"inner": {"later": 2}})


def test_a_newer_schema_is_refused_by_name_and_a_damaged_record_is_damaged() -> None:
    with pytest.raises(NewerRecord, match=r"a stored Outer has schema 2, .* update this installation"):
        Outer.from_json(stored(Outer(), lambda d: d.update(schema=2)))
    for wrong in ({"schema": 0}, {"schema": "x"}, {"inner": 5}):
        with pytest.raises(ValidationError):
            Outer.from_json(stored(Outer(), lambda d, w=wrong: d.update(w)))
    with pytest.raises(ValidationError):
        Intent.from_json(b"")


def test_a_later_field_that_would_change_a_variants_behaviour_is_no_match_for_its_digest() -> None:
    variant = Variant(name="v", stage="train", format="torch", files=(), inputs=(), outputs=())
    assert Variant.from_json(stored(variant, lambda d: d.update(note="x"))) == variant
    with pytest.raises(ValidationError, match="digest"):
        Variant.from_json(stored(variant, lambda d: d.update(digest="0" * 64)))
