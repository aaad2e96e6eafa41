"""A pretrained decoder's vocabulary, cut down to the tokens that its texts need most; every text can still be said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.readers.reading import Reading
from tasks.running.errors import DataReadError
from tasks.workloads.text_tokenizer import tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""What a character is said by that has no token, where a tokenizer falls back on its bytes."""
LONGEST = 0.1
"""How many more tokens other texts may have by a trimmed vocabulary, as a share: beyond that it costs more than it
saves."""


class TrimmedVocabulary(NamedTuple):
    """``tokenizer``: as JSON. ``kept``: former numbers of its tokens, in their order. ``reading``: what is lost."""

    tokenizer: str
    kept: NDArray[np.int64]
    reading: Reading


def trim_vocabulary(
    tokenizer: Tokenizer, texts: Sequence[str], *, size: int, always: Collection[int] = (), other: Sequence[str]
) -> TrimmedVocabulary:
    """Keep special tokens, bytes, and of all others the most frequent ones in these texts.

    A token is kept with those that it is merged from, so texts whose tokens are all kept are cut as before; others
    are cut into shorter tokens, down to bytes.

    Args:
        size: tokens that are kept, at most.
        always: numbers of further tokens that are kept.
        other: texts that nothing is counted in; shorter tokens must not make them longer than by :data:`LONGEST`.

    Raises:
        DataReadError: the tokenizer is none of byte pairs, or the size does not suffice for bytes and special tokens,
            or for other texts.
    """
    told = json.loads(tokenizer.to_str())
    model = told["model"]
    _require_byte_pairs(model)
    vocabulary: dict[str, int] = model["vocab"]
    merges = [_pair(merge) for merge in model["merges"]]
    names = {number: token for token, number in vocabulary.items()}
    special = {token["content"]: int(token["id"]) for token in told["added_tokens"]}
    atoms = _BYTES if model.get("byte_fallback") else [token for token in vocabulary if len(token) == 1]
    kept = {vocabulary[token] for token in atoms if token in vocabulary} | {*special.values()} | {*always}
    if len(kept) > size:
        raise DataReadError(
            f"vocabulary {size} is less than the {len(kept)} of bytes, single characters and special tokens that this "
            "tokenizer cannot do without"
        )
    counts = Counter(number for encoded in tokenizer.encode_batch_fast(list(texts)) for number in encoded.ids)
    ranks = {pair: rank for rank, pair in reversed([*enumerate(merges)])}
    for number in sorted(names, key=lambda number: (-counts[number], number)):
        more = kept | {vocabulary[part] for part in _merged(names[number], ranks)} | {number}
        if len(more) <= size:
            kept = more
        if len(kept) == size:
            break
    order = sorted(kept)
    numbers = {former: number for number, former in enumerate(order)}
    model["vocab"] = {names[former]: numbers[former] for former in order if former in names}
    model["merges"] = [list(pair) for pair in merges if _known(pair, model["vocab"])]
    for token in told["added_tokens"]:
        token["id"] = numbers[int(token["id"])]
    told["post_processor"] = _renumbered(told.get("post_processor"), numbers)
    if told.get("padding"):
        told["padding"]["pad_id"] = numbers[int(told["padding"]["pad_id"])]
    trimmed = json.dumps(told, ensure_ascii=False)
    longer = _length(tokenizer_of(trimmed), other) / max(1, _length(tokenizer, other)) - 1.0
    found = f"{len(order)} of {len(names)} tokens are kept, which makes texts of calibration {longer:.1%} longer"
    if longer > LONGEST:
        raise DataReadError(f"vocabulary {size} is too small: {found}, and {LONGEST:.0%} are allowed at most; raise it")
    return TrimmedVocabulary(trimmed, np.array(order, np.int64), Reading(facts=(f"{found}.",)))


def _length(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    return sum(len(encoded.ids) for encoded in tokenizer.encode_batch_fast(list(texts)))


def _require_byte_pairs(model: Mapping[str, Any]) -> None:
    kind = model.get("type")
    if kind != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise DataReadError(
            f"the tokenizer is of the kind {kind!r}; only byte pairs (BPE) without marks inside words can be trimmed: "
            "leave `vocabulary` out"
        )


def _pair(merge: Any) -> tuple[str, str]:
    """Of a file's line; older ones have one text with a space in it."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _merged(token: str, ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """What is merged on the way to a token, in the order in which a text is."""
    parts = [*token]
    while True:
        pairs = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        yield parts[at]


def _known(pair: tuple[str, str], vocabulary: Mapping[str, int]) -> bool:
    return all(part in vocabulary for part in (*pair, "".join(pair)))


def _renumbered(processor: Any, numbers: Mapping[int, int]) -> Any:
    """What a tokenizer puts around texts, by the new numbers."""
    if not processor:
        return processor
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_renumbered(each, numbers) for each in processor["processors"]]}
    if kind == "TemplateProcessing":
        known = {
            name: {**token, "ids": [numbers[number] for number in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": known}
    if kind == "ByteLevel":
        return processor
    raise DataReadError(f"what the tokenizer puts around texts ({kind}) is not known here: leave `vocabulary` out")
