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

    @property
    def joins(self) -> bool:
        """Whether requests may be run together."""
        return self._joins

    def chunks(self, rows: Sequence[int]) -> Iterator[slice]:
        """Which requests of these numbers of rows, all of one shape, go through the model together."""
        start = total = 0
        for number, count in enumerate(rows):
            if number > start and (not self._joins or total + count > self.most_rows):
                yield slice(start, number)
                start, total = number, 0
            total += count
        if rows:
            yield slice(start, len(rows))

    def run_rows(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Outputs:
        """The outputs of all rows, in as many runs as they take.

        Raises:
            EngineRunError: the model failed.
        """
        rows = len(next(iter(inputs.values())))
        if rows <= self.most_rows or not self._joins:
            return self._engine.run(inputs, wanted)
        parts = [
            self._engine.run({name: array[at : at + self.most_rows] for name, array in inputs.items()}, wanted)
            for at in range(0, rows, self.most_rows)
        ]
        return {name: _joined([part[name] for part in parts]) for name in wanted}

    def in_order(self, names: set[str]) -> list[str]:
        """Names of outputs in the model's order."""
        return sorted(names, key=self._order.__getitem__)

    def run(self, requests: Sequence[InferRequest]) -> list[Outputs | EngineRunError]:
        """The outputs of the requests of one group. One that fails harms no other: then each is run alone."""
        try:
            return list(self._together(requests))
        except EngineRunError as error:
            if len(requests) == 1:
                return [error]
        return [self.run([request])[0] for request in requests]

    def runs(self, rows: int) -> int:
        """How many runs of the model a group of that many rows takes."""
        return -(-rows // self.most_rows) if self._joins and rows > self.most_rows else 1

    def _together(self, requests: Sequence[InferRequest]) -> list[Outputs]:
        if len(requests) == 1:
            first = requests[0]
            return [self.run_rows(first.inputs, first.outputs) if first.rows else self._run_whole(first)]
        names = {name for request in requests for name in request.outputs}
        inputs = {name: _joined([request.inputs[name] for request in requests]) for name in requests[0].inputs}
        found = self.run_rows(inputs, self.in_order(names))
        answers, at = list[Outputs](), 0
        for request in requests:
            answers.append({name: found[name][at : at + request.rows] for name in request.outputs})
            at += request.rows
        return answers

    def _run_whole(self, request: InferRequest) -> Outputs:
        """Of a model without a batch dimension."""
        return self._engine.run(request.inputs, request.outputs)


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
