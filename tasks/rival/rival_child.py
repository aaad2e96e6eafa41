"""The rival stage in its process."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from model_registry.sizes import size_text
from tasks.evidence.number_text import metric_text, ms_text, seconds_text
from tasks.rival.bag_of_words import bag_of_words
from tasks.rival.boosted_trees import Table, Trees, boosted_trees, log_odds
from tasks.running.child import Child, Result
from tasks.running.splits import Columns, read_split
from tasks.running.task_kind import CHOICES
from tasks.workloads.workload import Workload, load_workload, own_tokenizer


def main(child: Child) -> Result:
    """Train the trees on the training split and judge them by the workload's own metric on the test split."""
    workload = load_workload(child.job.workload, child.data.known)
    if (tokenizer := own_tokenizer(workload)) is not None:
        return Result(values=_words(child, workload, tokenizer[0]))
    (train, targets), (test, wanted) = (
        _table(workload, read_split(child.store, child.data, n)) for n in ("train", "test")
    )
    if train is None or test is None:
        why = "the inputs are no table of numbers [rows, columns] with one target a row"
        return Result(values={"refused": why, "text": f"no trees were trained beside it: {why}"})
    child.progress(0.1, f"trees on {len(train)} rows of {train.shape[1]} columns")
    classes = int(max(targets.max(), wanted.max())) + 1 if child.data.task in CHOICES else None
    trees = boosted_trees(train, targets, test, classes=classes, seed=child.job.seed, **child.spec)
    answers = log_odds(trees.answers) if child.data.task == "binary" else trees.answers
    metric = workload.metric(wanted, answers)
    value = float(workload.scores(answers, wanted).mean())
    facts = {"seconds": trees.seconds, "rounds": trees.rounds, "bytes": trees.bytes, "row_ms": trees.row_ms}
    text = _sentence(trees, metric.name, value, rows=len(train))
    return Result(values={"metric": metric.name, "value": value, **facts, "text": text})


def _words(child: Child, workload: Workload, tokenizer: str) -> dict[str, Any]:
    """A bag of words, where a text has one of several classes."""
    if child.data.task not in CHOICES:
        why = f"the task is {child.data.task}, not one class a text"
        return {"refused": why, "text": f"no bag of words was trained beside it: {why}"}
    columns = {name: read_split(child.store, child.data, name) for name in ("train", "test")}
    (train, targets), (test, wanted) = (_table(workload, columns[name]) for name in ("train", "test"))
    assert train is not None and test is not None  # one input of ids [rows, length]
    child.progress(0.1, f"a bag of words of {len(train)} texts")
    pad = int((json.loads(tokenizer).get("padding") or {}).get("pad_id", 0))
    classes = int(max(targets.max(), wanted.max())) + 1
    bag = bag_of_words(train, targets, test, pad=pad, classes=classes, seed=child.job.seed)
    answers = log_odds(bag.answers) if child.data.task == "binary" else bag.answers
    metric, value = workload.metric(wanted, answers).name, float(workload.scores(answers, wanted).mean())
    text = (
        "for comparison: a bag of words (logistic regression on tokens and pairs of neighbours), trained on the same "
        f"{len(train):,} texts in {seconds_text(bag.seconds)}, has {metric} {metric_text(value, metric)} on the test "
        f"split; its weights take {size_text(bag.bytes)}, and a row alone {ms_text(bag.row_ms)} ms. An encoder that "
        "does not beat it should not be served"
    )
    facts = {"seconds": bag.seconds, "bytes": bag.bytes, "row_ms": bag.row_ms}
    return {"metric": metric, "value": value, **facts, "text": text}


def _table(workload: Workload, columns: Columns) -> tuple[Table | None, Table]:
    """Inputs side by side [rows, columns], None where they are no table; and the targets."""
    inputs, targets = workload.batch({name: torch.from_numpy(values) for name, values in columns.items()})
    wanted: Any = targets.numpy()
    parts = [value.reshape(len(value), -1).numpy() for value in inputs.values() if value.ndim <= 2]
    fits = len(parts) == len(inputs) and wanted.size == len(wanted)
    return (np.concatenate(parts, axis=1) if fits else None), wanted.reshape(len(wanted), -1)[:, 0]


def _sentence(trees: Trees, metric: str, value: float, *, rows: int) -> str:
    return (
        f"for comparison: gradient-boosted trees of scikit-learn ({trees.rounds} rounds), trained on the same "
        f"{rows:,} rows in {seconds_text(trees.seconds)}, have {metric} {metric_text(value, metric)} on the test "
        f"split; their nodes take {size_text(trees.bytes)}, and a row alone {ms_text(trees.row_ms)} ms"
    )
