"""onnxruntime-genai in an environment of its own: builds its forms of a GGUF file, and answers a JSON line for another.

    python peer_genai.py build FILE.gguf FOLDER
    python peer_genai.py answer FOLDER/int4

A question is ``{"prompt": [ids], "tokens": N}``, answered by ``{"prompt_seconds", "step_seconds": [N]}``, or
``{"score": [ids]}``, by ``{"scores": [of each id after the first]}``. Run by ``against_genai.py``; imports nothing of
ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

FORMS = ("int4", "int8")
_OPTIONS = ("accuracy_level=4", "block_size=32", "shared_embeddings=true")


def build(file: Path, folder: Path) -> None:
    """The weights as a folder of transformers, and both forms of it, one thread each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

    source = folder / "hf"
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(source)
    plain = GgufConfig(gguf_file=file.name, dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=plain
    )
    ours = {"quantization_config", "transformers_version"}
    config = LlamaConfig(**{key: value for key, value in read.config.to_dict().items() if key not in ours})
    config.architectures = ["LlamaForCausalLM"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(source)
    for form in FORMS:
        made = folder / form
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(made)]
        builder += ["-p", form, "-e", "cpu", "-c", str(folder / "cache"), "--extra_options", *_OPTIONS]
        subprocess.run(builder, check=True, stdout=sys.stderr)
        settings = made / "genai_config.json"
        said = json.loads(settings.read_text())
        one = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "session.intra_op.allow_spinning": "0"}
        said["model"]["decoder"].setdefault("session_options", {}).update(one)
        settings.write_text(json.dumps(said))


def answer(folder: str) -> None:
    """Answer questions until there are no more."""
    import onnxruntime_genai as genai

    genai.disable_telemetry_events()
    model = genai.Model(folder)

    def generator(length: int) -> Any:
        wanted = genai.GeneratorParams(model)
        wanted.set_search_options(max_length=length, do_sample=False)
        return genai.Generator(model, wanted)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "score" in asked:
            ids = np.array(asked["score"], np.int32)
            made = generator(len(ids) + 1)
            made.append_tokens(ids[None])
            logits = np.asarray(made.get_output("logits"), np.float64)[0]
            top = logits.max(axis=-1, keepdims=True)
            told = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
            found = {"scores": told[np.arange(len(ids) - 1), ids[1:]].tolist()}
        else:
            made = generator(len(asked["prompt"]) + asked["tokens"] + 2)
            began = time.perf_counter()
            made.append_tokens(np.array([asked["prompt"]], np.int32))
            made.generate_next_token()
            times = [time.perf_counter()]
            for _ in range(asked["tokens"]):
                made.generate_next_token()
                times.append(time.perf_counter())
            found = {"prompt_seconds": times[0] - began, "step_seconds": np.diff(times).tolist()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    build(Path(sys.argv[2]), Path(sys.argv[3])) if sys.argv[1] == "build" else answer(sys.argv[2])
