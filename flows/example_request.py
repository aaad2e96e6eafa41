"""A command that asks the endpoint, with a row of the user's own data, to be pasted as it is."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from flows.lineage import Made, Measured
from flows.ongoing_run import OngoingRun
from model_registry.answer_labels import ONE_PER_WORD
from model_registry.decoder_form import TOKENS
from model_registry.store import Store
from model_registry.text_input import DECODER, TEXT, TEXT_INPUT, TOKENIZER, TextInput, texts_of
from model_registry.variant import Variant
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.split_inputs import split_inputs
from tasks.running.splits import Columns
from tasks.running.task_kind import CHOICES

_INLINE_ELEMENTS = 256
_PROMPT = 16
"""Tokens that are to be continued."""


def curl_line(run: OngoingRun, made: Made, chosen: Measured, url: str) -> str:
    """A command that sends one raw row of the validation split to the endpoint, as a person would paste it."""
    if any(file.path == DECODER for file in chosen.variant.files):
        return _completion(run, made, chosen, url)
    names = {spec.name: spec for spec in chosen.variant.inputs}
    columns = fetch_arrays(run.store, split_inputs(run.job, made.checked)["validation"])
    inputs = _text_rows(run.store, chosen.variant, columns) or [
        {
            "name": name,
            "shape": [1, *columns[name].shape[1:]],
            "datatype": spec.datatype,
            "data": [_json_number(float(v)) for v in np.ravel(columns[name][0])],
        }
        for name, spec in names.items()
    ]
    body: dict[str, object] = {"inputs": inputs}
    named = made.checked.task in (*CHOICES, "labels") or any(f.path == ONE_PER_WORD for f in chosen.variant.files)
    if made.checked.labels and named:
        body["outputs"] = [{"name": "label"}, {"name": "probability"}]
    text = json.dumps(body, separators=(",", ":"))
    if sum(len(item["data"]) for item in inputs) > _INLINE_ELEMENTS:
        return f"curl -s {url}/infer -d @{_request_file(text, made)}"
    return f"curl -s {url}/infer -d {shlex.quote(text)}"


def _completion(run: OngoingRun, made: Made, chosen: Measured, url: str) -> str:
    """A command that has the beginning of a validation row continued."""
    from tokenizers import Tokenizer

    columns = fetch_arrays(run.store, split_inputs(run.job, made.checked)["validation"])
    tokenizer = Tokenizer.from_buffer(run.store.fetch_bytes(chosen.variant.file(TOKENIZER)))
    prompt = tokenizer.decode(columns[TOKENS][0][:_PROMPT].tolist())
    model = url.partition("/v2/models/")[2].partition("/")[0]
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0}
    return f"curl -s {url.partition('/v2/')[0]}/v1/completions -d {shlex.quote(json.dumps(body))}"


def _text_rows(store: Store, variant: Variant, columns: Columns) -> list[dict[str, Any]]:
    """The first row as a client sends it to a variant that reads text; none for other variants."""
    files = {file.path: file for file in variant.files}
    if TEXT_INPUT not in files:
        return []
    source = TextInput.from_json(store.fetch_bytes(files[TEXT_INPUT]))
    ids = columns[source.input][0].tolist()
    texts = texts_of(store.fetch_bytes(files[TOKENIZER]), ids, texts=source.texts)
    shape = [1] if source.texts == 1 else [1, source.texts]
    return [{"name": TEXT, "shape": shape, "datatype": "BYTES", "data": texts}]


def _json_number(value: float) -> int | float | None:
    """As a person would write it; null for a missing value."""
    return None if not math.isfinite(value) else int(value) if value.is_integer() else value


def _request_file(text: str, made: Made) -> Path:
    home = Path(os.environ.get("WINNOW_HOME", ".winnow")).absolute()
    path = home / "requests" / f"{made.checked.fingerprint[:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
