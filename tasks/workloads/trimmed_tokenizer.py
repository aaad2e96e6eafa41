"""A pretrained decoder's vocabulary, cut down to the tokens that its texts need most; every text can still be said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice, pairwise
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
_SPACE = "\u2581"
"""What stands for a space in tokenizers of that kind; its bytes would be given back as they are."""
LONGEST = 0.1
"""How many more tokens other texts may have by a trimmed vocabulary, as a share: beyond that it costs more than it
saves."""
_COUNTED = 1 << 24
"""Tokens that are counted at most: rare ones beyond that tell nothing."""
_PIECE, _PIECES = 1 << 16, 64
"""Letters that are cut into tokens at a time, as pieces of a text and the number of these: a token found takes a
hundred bytes."""


class NeededTokens(NamedTuple):
    """``kept``: numbers of tokens, ascending. ``reading``: what is lost."""

    kept: NDArray[np.int64]
    reading: Reading


def needed_tokens(
    tokenizer: Tokenizer, texts: Sequence[str], *, size: int, always: Collection[int] = (), other: Sequence[str]
) -> NeededTokens:
    """Special tokens, bytes, and of all others the most frequent ones in these texts.

    A token is kept with those that it is merged from, so texts whose tokens are all kept are cut as before; others
    are cut into shorter tokens, down to bytes.

    Args:
        tokenizer: that neither fills up nor cuts.
        size: tokens that are kept, at most.
        always: numbers of further tokens that are kept.
        other: texts that nothing is counted in; shorter tokens must not make them longer than by :data:`LONGEST`.

    Raises:
        DataReadError: the tokenizer is none of byte pairs, or the size does not suffice for bytes and special tokens,
            or for other texts.
    """
    told = json.loads(tokenizer.to_str())
    kept = {*_required(told), *always}
    vocabulary: dict[str, int] = told["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    if len(kept) > size:
        raise DataReadError(
            f"vocabulary {size} is less than the {len(kept)} of bytes, single characters and special tokens that this "
            "tokenizer cannot do without"
        )
    counts = Counter[int]()
    for ids in islice(_encoded(tokenizer, texts), _COUNTED // _PIECE):
        counts.update(ids)
    ranks = {_pair(merge): rank for rank, merge in reversed([*enumerate(told["model"]["merges"])])}
    for number in sorted(names, key=lambda number: (-counts[number], number)):
        parts = (*names[number], *_merged(names[number], ranks))
        more = kept | {vocabulary[part] for part in parts if part in vocabulary} | {number}
        if len(more) <= size:
            kept = more
        if len(kept) == size:
            break
    order = np.array(sorted(kept), np.int64)
    longer = _length(only_tokens(tokenizer, order), other) / max(1, _length(tokenizer, other)) - 1.0
    found = (
        f"{len(order)} of {tokenizer.get_vocab_size()} tokens are kept, which makes texts of calibration {longer:.1%} "
        "longer"
    )
    if longer > LONGEST:
        raise DataReadError(f"vocabulary {size} is too small: {found}, and {LONGEST:.0%} are allowed at most; raise it")
    return NeededTokens(order, Reading(facts=(f"{found}.",)))


def only_tokens(tokenizer: Tokenizer, kept: NDArray[np.int64]) -> Tokenizer:
    """The tokenizer with these tokens alone, which get new numbers in the same order.

    Args:
        kept: ascending, as :func:`needed_tokens` found them.
    """
    told = json.loads(tokenizer.to_str())
    model, numbers = told["model"], {int(former): number for number, former in enumerate(kept)}
    model["vocab"] = {token: numbers[former] for token, former in model["vocab"].items() if former in numbers}
    merges = [_pair(merge) for merge in model["merges"]]
    model["merges"] = [list(pair) for pair in merges if all(p in model["vocab"] for p in (*pair, "".join(pair)))]
    for token in told["added_tokens"]:
        token["id"] = numbers[int(token["id"])]
    told["post_processor"] = _renumbered(told.get("post_processor"), numbers.__getitem__)
    return tokenizer_of(json.dumps(told, ensure_ascii=False))


def _required(told: Mapping[str, Any]) -> Iterator[int]:
    """What a tokenizer cannot do without."""
    model, vocabulary = told["model"], told["model"]["vocab"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise DataReadError(
            f"the tokenizer is of the kind {model.get('type')!r}; only byte pairs (BPE) without marks inside words can "
            "be trimmed: leave `vocabulary` out"
        )
    atoms = [*_BYTES, _SPACE] if model.get("byte_fallback") else [token for token in vocabulary if len(token) == 1]
    for token in (*atoms, model.get("unk_token")):
        if token in vocabulary:
            yield vocabulary[token]
    for token in told["added_tokens"]:
        yield int(token["id"])
    around = list[int]()
    _renumbered(told.get("post_processor"), lambda number: around.append(number) or number)  # type: ignore[func-returns-value]
    yield from around


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Tokens of the pieces of texts."""
    pieces = (text[at : at + _PIECE] for text in texts for at in range(0, len(text), _PIECE))
    while some := [*islice(pieces, _PIECES)]:
        for encoded in tokenizer.encode_batch_fast(some, add_special_tokens=False):
            yield encoded.ids


def _length(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    return sum(map(len, _encoded(tokenizer, texts)))


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


def _renumbered(processor: Any, number: Callable[[int], int]) -> Any:
    """What a tokenizer puts around texts, by other numbers."""
    if not processor:
        return processor
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_renumbered(each, number) for each in processor["processors"]]}
    if kind == "TemplateProcessing":
        known = {
            name: {**token, "ids": [number(former) for former in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": known}
    if kind in ("RobertaProcessing", "BertProcessing"):
        pairs = {name: [processor[name][0], number(processor[name][1])] for name in ("sep", "cls")}
        return {**processor, **pairs}
    if kind == "ByteLevel":
        return processor
    raise DataReadError(f"what the tokenizer puts around texts ({kind}) is not known here: leave `vocabulary` out")
