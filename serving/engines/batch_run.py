"""Runs requests of one turn together, where the model's certificate allows it, in runs of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from serving.engine import Engine
from serving.engines.batch_certificate import BatchCertificate
from serving.exceptions import EngineRunError
from serving.protocol import InferRequest
from serving.tensors import Array

_RUN_SECONDS = 0.01
"""What a run takes at most, as far as the rows decide it: others wait no longer before theirs begins."""

Outputs = Mapping[str, Array]


class BatchRunner:
    """Runs requests for an engine.

    Args:
        most_rows: of one run: a model's memory grows with its largest run and never shrinks.
    """

    def __init__(self, engine: Engine, certificate: BatchCertificate, most_rows: int) -> None:
        self._engine, self._joins = engine, certificate.joins
        self._order = {spec.name: number for number, spec in enumerate(engine.outputs)}
        by_time = int(_RUN_SECONDS / certificate.seconds) if certificate.seconds else most_rows
        self.most_rows = max(1, min(most_rows, by_time))

    def groups(self, requests: Sequence[InferRequest]) -> Iterator[list[int]]:
        """Numbers of the requests that go through the model together, all of them once."""
        open_: dict[tuple[object, ...], tuple[list[int], int]] = {}
        for number, request in enumerate(requests):
            if not (self._joins and request.rows):
                yield [number]
                continue
            key = tuple((name, array.shape[1:]) for name, array in sorted(request.inputs.items()))
            members, rows = open_.get(key, ([], 0))
            if members and rows + request.rows > self.most_rows:
                yield members
                members, rows = [], 0
            open_[key] = ([*members, number], rows + request.rows)
        for members, _ in open_.values():
            yield members

    def run(self, requests: Sequence[InferRequest]) -> list[Outputs | EngineRunError]:
        """The outputs of the requests of one group. One that fails harms no other: then each is run alone."""
        try:
            return list(self._together(requests))
        except EngineRunError as error:
            if len(requests) == 1:
                return [error]
        return [self.run([request])[0] for request in requests]

    def runs(self, requests: Sequence[InferRequest]) -> int:
        """How many runs of the model a group takes."""
        rows = sum(request.rows for request in requests)
        return -(-rows // self.most_rows) if self._joins and rows > self.most_rows else 1

    def _together(self, requests: Sequence[InferRequest]) -> list[Outputs]:
        first = requests[0]
        rows = sum(request.rows for request in requests)
        if len(requests) == 1 and (rows <= self.most_rows or not self._joins):
            return [self._engine.run(first.inputs, first.outputs)]
        wanted = sorted({name for request in requests for name in request.outputs}, key=self._order.__getitem__)
        inputs = {name: _joined([request.inputs[name] for request in requests]) for name in first.inputs}
        parts = [
            self._engine.run({name: array[at : at + self.most_rows] for name, array in inputs.items()}, wanted)
            for at in range(0, rows, self.most_rows)
        ]
        found = {name: _joined([part[name] for part in parts]) for name in wanted}
        answers, at = list[Outputs](), 0
        for request in requests:
            answers.append({name: found[name][at : at + request.rows] for name in request.outputs})
            at += request.rows
        return answers


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
