"""The contract of a workload, for type checkers and readers; ``workload.py`` beside this file loads one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn


class WorkloadProtocol(Protocol):
    """What a user writes: any class with these two methods, found as ``module:Class`` by the spec.

    Nothing needs to be inherited. Further methods are used where they are there:

    - ``batch(columns) -> (inputs, targets)``: columns of some rows, tensors by name, to the model's inputs by name and
      the targets. Without it every column but ``target`` is an input.
    - ``preprocess(inputs) -> inputs``: raw inputs [N, ...] to what the model takes; becomes part of the exported file.
    - ``augment(inputs, generator) -> inputs``: random changes of a training batch, before ``preprocess``.
    - ``loss(outputs, targets) -> Tensor``: a scalar; by default what fits the task, see
      :data:`tasks.running.task_kind.TaskKind`.
    - ``metric() -> Metric``: by default accuracy, the share of the labels or of the pixels that are right, or squared
      error, as the task is. ``winnow.IOU`` is intersection over union by picture.
    - ``labels() -> list[str]``: names of the classes, in the order of the model's outputs.
    - ``frame(split) -> DataFrame``: what the data checks look at.
    - ``prune_hints() -> dict``: ``{"ignore": [module names], "round_to": 8}``.
    - ``fills_missing = True``, no method: ``preprocess`` fills missing values (NaN) in, so they are reported and do not
      end a run.
    - ``trained = True``, no method: ``model("teacher")`` comes with its trained weights, and a spec that would train
      it is refused.
    - ``tokenizer() -> str``: ``tokenizer.json`` by which texts become the one input, token ids [N, length]; it travels
      with the model, and clients send text. ``texts``, no method: how many a row is, 1 or 2.
    - ``partitions(folder) -> iterator``: the splits in parts, for data larger than the memory, each a dictionary like
      that of ``splits()``, which is then not called. The same parts in the same order each time; equal rows in the same
      one, because repeated samples are looked for within a part. ``folder`` is an empty one for files of your own. With
      ``known() -> dict`` and ``recall(dict)``, plain JSON, what was learned from all rows (class names, scales) is
      handed to the processes that train, so that they need not look again. None in place of parts: ``splits()``.
    - ``blocks(model) -> list``: modules or functions that compute the model one after the other, the first from its
      inputs by name, each other one from one tensor; for ``parallel: {engine: pipeline}``. A model may have a method
      ``blocks()`` itself. None: it has none.
    - ``dynamic_dims() -> dict``: dimensions besides the batch that vary, ``{"tokens": {1: "sequence"}}``.
    - ``settled_scale(scale, teacher, inputs) -> dict``: what a student's scale comes to beside its trained teacher and
      some rows, such as which of the teacher's layers it has; asked once for each student.
    - ``padding() -> dict``: ``{"tokens": 0}``, what rows are filled up with behind their end, along the one dimension
      of that input which varies. Batches of training are then of rows of about one length, and end behind the
      longest. Neither an answer's value nor its shape may depend on what fills a row up.
    """

    def model(self, role: str, **scale: Any) -> nn.Module:
        """A fresh module; ``role`` is "teacher" or "student", ``scale`` comes from the spec.

        It is called with the preprocessed inputs by name and answers one tensor [N, ...].
        """
        ...

    def splits(self) -> dict[str, dict[str, NDArray[np.generic]]]:
        """``train``, ``calibration``, ``validation``, ``test``: arrays [rows, ...] by column, ``target`` among them."""
        ...
