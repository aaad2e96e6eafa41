"""Writes answers in parts that are made once: nearly all answers of a model differ in their numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import orjson

from serving.protocol import answer
from serving.tensors import DATATYPES, Array, to_raw

_MOST_KEPT = 1024
Form = Literal["numbers", "text", "half"]


class AnswerWriter:
    """Gives what :func:`serving.protocol.answer` gives, for one model and version."""

    def __init__(self, model: str, version: str) -> None:
        self._model, self._version = model, version
        self._prefix = orjson.dumps({"model_name": model, "model_version": version})[:-1]
        self._parts: dict[tuple[str, tuple[int, ...], np.dtype[Any]], tuple[bytes, Form]] = {}

    def __call__(self, outputs: Mapping[str, Array], identity: str | None, binary: frozenset[str]) -> tuple[bytes, int]:
        """The body of the answer, and the bytes of its JSON part, -1 where it is nothing else.

        Raises:
            Unsupported: an output is FP16, and is wanted in JSON.
        """
        parts = [self._prefix]
        if identity is not None:
            parts += (b',"id":', orjson.dumps(identity))
        raws, before = list[bytes](), b',"outputs":['
        for name, array in outputs.items():
            described, form = self._described(name, array)
            parts += (before, described)
            before = b","
            if name not in binary:
                if form == "half":
                    return answer(self._model, self._version, outputs, identity, binary)
                data = _texts(array) if form == "text" else array.ravel()
                parts += (b',"data":', orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY), b"}")
            else:
                raw = to_raw(array)
                raws.append(raw)
                parts.append(b',"parameters":{"binary_data_size":%d}}' % len(raw))
        parts.append(b"]}" if outputs else b',"outputs":[]}')
        if not raws:
            return b"".join(parts), -1
        head = b"".join(parts)
        return b"".join((head, *raws)), len(head)

    def _described(self, name: str, array: Array) -> tuple[bytes, Form]:
        """The output without its numbers, and in which form these are."""
        key = name, array.shape, array.dtype
        found = self._parts.get(key)
        if found is None:
            datatype = DATATYPES[array.dtype]
            described = orjson.dumps({"name": name, "datatype": datatype, "shape": array.shape})
            form: Form = "text" if datatype == "BYTES" else "half" if datatype == "FP16" else "numbers"
            found = described[:-1], form
            if len(self._parts) >= _MOST_KEPT:
                self._parts.clear()
            self._parts[key] = found
        return found


def _texts(array: Array) -> list[str]:
    return [element.decode(errors="replace") for element in array.ravel()]
