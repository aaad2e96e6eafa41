"""What is said in many places is defined in one: which class a row of logits answers, and how large a file is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from measurements import measured
from test_architecture import FILES, parsed, relative

from model_registry.manifest import FileEntry
from model_registry.variant import Variant
from tasks.validate.choice import choose
from tasks.validate.gate_spec import GateSpec

ARGMAX = {
    "tasks/workloads/sample_scores.py",  # the definition
    "serving/labelled.py",  # the endpoint, which imports no task: tests/test_sample_scores.py holds it to the same
    # of counts, weights and lengths, not of answers:
    "serving/decoding/token_choice.py",
    "serving/word_labels.py",
    "tasks/data/column_signs.py",
    "tasks/quantize/weight_only.py",
    "tasks/readers/arrow_columns.py",
    "tasks/validate/__init__.py",
    "tasks/workloads/task_check.py",
}
"""Files where the largest of several numbers is looked for."""

UNITS = {
    "model_registry/sizes.py",  # the definition
    "flows/commands/stack_doctor.py",  # about how much memory the stack takes
    # headings of columns and axes, whose numbers are divided by the definition's units:
    "flows/conclusion.py",
    "model_registry/run_page.py",
    "tasks/report/plot_frame.py",
    "tasks/report/search_view.py",
}
"""Files that write a unit of size."""


def texts() -> Iterator[tuple[str, str]]:
    """Every text in the code that is no docstring, with its file."""
    for path in FILES:
        tree = parsed(path)
        told = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in told:
                yield relative(path), node.value


def test_the_class_that_is_answered_is_found_in_one_place() -> None:
    found = {
        relative(path)
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in ("argmax", "nanargmax")
    }
    assert found == ARGMAX


def test_units_of_size_are_written_in_one_place() -> None:
    assert {path for path, text in texts() if re.search(r"\b[kKMG]i?B\b", text)} == UNITS


def test_the_size_of_a_variant_is_that_of_its_model_file() -> None:
    again = [relative(path) for path in FILES if re.search(r'file\("model\.onnx"\)\.size', path.read_text())]
    assert again == ["model_registry/variant.py"]
    files = tuple(FileEntry(path=name, sha256="0" * 64, size=size) for name, size in (("model.onnx", 10), ("a", 5)))
    variant = Variant(name="v", stage="export", format="onnx", files=files, inputs=(), outputs=())
    assert (variant.model_bytes, variant.size) == (10, 15)


def test_a_choice_by_size_says_it_as_the_report_does() -> None:
    baseline = measured("teacher.fp32", bytes=400_000)
    small = measured("small", baseline, bytes=207_700, flips=(0, 0))
    chosen = choose(GateSpec(objective="size", margin=0.2), [small], baseline, {})
    assert "small has the smallest file (208 kB)" in chosen.reason
