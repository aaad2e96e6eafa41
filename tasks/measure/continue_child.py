"""Have texts continued by a variant and by its baseline: the probe runs both with the loop that serves."""

from __future__ import annotations

import numpy as np

from model_registry.decoder_form import TOKENS, DecoderForm
from model_registry.manifest import FileEntry
from model_registry.text_input import DECODER, TOKENIZER
from tasks.evidence.arrays import fetch_arrays
from tasks.evidence.continuations import compare_continuations
from tasks.measure.probe_process import probe_process
from tasks.running.child import Child, Result


def main(child: Child) -> Result:
    """Draw rows of the test split, have their first halves continued greedily, and compare."""
    from tokenizers import Tokenizer

    variant, baseline = child.inputs["variant"], child.inputs["baseline"]
    form = DecoderForm.from_json(child.store.fetch_bytes(variant.file(DECODER)))
    tokenizer = Tokenizer.from_buffer(child.store.fetch_bytes(variant.file(TOKENIZER)))
    rows = fetch_arrays(child.store, FileEntry.model_validate(child.extra["inputs"]))[TOKENS]
    order = np.random.default_rng(child.job.seed).permutation(len(rows))[: child.spec["prompts"]]
    half = rows.shape[1] // 2
    tokens = min(child.spec["tokens"], form.context - half)
    prompts = rows[order, :half].tolist()

    child.progress(0.0, f"{variant.name} and {baseline.name} continue {len(prompts)} texts")
    with probe_process() as probe:
        said = probe.continue_texts(
            child.store,
            child.workdir,
            variant=variant,
            baseline=baseline,
            threads=variant.runtime.intra_op_threads,
            prompts=prompts,
            tokens=tokens,
        )
        probe.settle()

    def text(ids: list[int]) -> str:
        found: str = tokenizer.decode(ids, skip_special_tokens=False)
        return found

    found = compare_continuations(
        [(text(prompt), text(rows[row, half:].tolist())) for prompt, row in zip(prompts, order, strict=True)],
        said["variant"],
        said["baseline"],
        prompt_tokens=half,
        new_tokens=tokens,
        shown=child.spec["shown"],
    )
    return Result(values={"continuations": found.model_dump(mode="json")})
