"""A vocabulary cut down to what texts need: what is cut as before, what is said in shorter tokens, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from tasks.running.errors import DataReadError
from tasks.workloads.text_tokenizer import new_causal_tokenizer, new_tokenizer
from tasks.workloads.trimmed_tokenizer import trim_vocabulary

WORDS = [
    "the",
    "quick",
    "brown",
    "foxes",
    "are",
    "jumping",
    "over",
    "lazy",
    "dogs",
    "while",
    "wizards",
    "mix",
    "potions",
]
MANY = [" ".join(np.random.default_rng(seed).choice(WORDS, 30)) for seed in range(40)]
FEW = [" ".join(np.random.default_rng(seed).choice(WORDS[:8], 30)) for seed in range(40)]
STRANGE = "na\u00efve \u65e5\u672c \U0001f600 x\x00y"


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


def test_texts_of_tokens_that_are_kept_are_cut_as_before_and_all_others_can_be_said() -> None:
    whole = new_causal_tokenizer(MANY, size=420)
    trimmed = trim_vocabulary(whole, FEW, size=300, other=FEW)
    new = Tokenizer.from_str(trimmed.tokenizer)
    assert new.get_vocab_size() == len(trimmed.kept) == 300 < whole.get_vocab_size()
    assert all(new.id_to_token(n) == whole.id_to_token(int(kept)) for n, kept in enumerate(trimmed.kept))
    assert any(len(token) > 4 for token in new.get_vocab())  # words, not bytes alone
    for text in FEW:
        assert [int(trimmed.kept[number]) for number in ids(new, text)] == ids(whole, text)
    for text in (*MANY, STRANGE):
        assert new.decode(ids(new, text)) == text
    assert len(ids(new, MANY[0])) > len(ids(whole, MANY[0]))
    assert trimmed.reading.facts[0].startswith(f"300 of {whole.get_vocab_size()} tokens are kept, which makes texts")
    assert "0.0% longer" in trimmed.reading.facts[0]


def test_what_is_put_around_texts_and_named_tokens_get_new_numbers() -> None:
    whole = new_causal_tokenizer(MANY, size=400)
    whole.add_special_tokens([AddedToken("<|say|>", special=True)])
    say = whole.token_to_id("<|say|>")
    around = processors.TemplateProcessing(single="<|say|> $A", special_tokens=[("<|say|>", say)])
    whole.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), around])
    whole.enable_padding(pad_id=say, pad_token="<|say|>")
    rare = whole.get_vocab_size() - 2
    trimmed = trim_vocabulary(whole, FEW, size=320, always=[rare], other=FEW)
    new = Tokenizer.from_str(trimmed.tokenizer)
    number = new.token_to_id("<|say|>")
    assert trimmed.kept[number] == say and rare in trimmed.kept
    assert new.encode("the quick").ids[0] == number and ids(new, "a<|say|>b").count(number) == 1
    assert (new.padding or {})["pad_id"] == number


def test_bytes_stand_for_characters_that_have_no_token() -> None:
    byte = {f"<0x{number:02X}>": number + 1 for number in range(256)}
    vocabulary = {"<unk>": 0, **byte, **{letter: 257 + n for n, letter in enumerate("abcde\u65e5\u672c")}}
    vocabulary |= {"ab": 264, "abc": 265, "de": 266}
    whole = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=[("a", "b"), ("ab", "c"), ("d", "e")], unk_token="<unk>", byte_fallback=True
        )
    )
    whole.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trimmed = trim_vocabulary(whole, ["abcabc"], size=263, always=[0], other=["abc"])
    new = Tokenizer.from_str(trimmed.tokenizer)
    assert {"ab", "abc", "<0x00>"} <= new.get_vocab().keys() and "\u65e5" not in new.get_vocab()
    assert len(ids(new, "abc")) == 1 and new.decode(ids(new, "abc\u65e5")) == "abc\u65e5"


@pytest.mark.parametrize(
    ("size", "other", "says"),
    [
        (
            257,
            FEW,
            r"^vocabulary 257 is too small: 257 of \d+ tokens are kept, which makes texts of calibration .* longer",
        ),
        (280, [STRANGE * 20 + MANY[0]], r"too small: .* and 10% are allowed at most; raise it"),
        (100, FEW, r"^vocabulary 100 is less than the 257 of bytes"),
    ],
)
def test_a_vocabulary_that_is_trimmed_too_far_is_refused(size: int, other: list[str], says: str) -> None:
    with pytest.raises(DataReadError, match=says):
        trim_vocabulary(new_causal_tokenizer(MANY, size=420), FEW, size=size, other=other)


def test_tokenizers_that_cannot_be_trimmed_are_refused() -> None:
    with pytest.raises(DataReadError, match="of the kind 'Unigram'; only byte pairs"):
        trim_vocabulary(Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)])), FEW, size=300, other=FEW)
    marked = Tokenizer(models.BPE())
    marked.pre_tokenizer = pre_tokenizers.Whitespace()
    marked.train_from_iterator(FEW, BpeTrainer(vocab_size=60, end_of_word_suffix="</w>", show_progress=False))
    with pytest.raises(DataReadError, match="without marks inside words"):
        trim_vocabulary(marked, FEW, size=300, other=FEW)
    around = new_tokenizer(MANY, size=400)
    told = json.loads(around.to_str())
    told["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
    with pytest.raises(DataReadError, match=r"puts around texts \(BertProcessing\)"):
        trim_vocabulary(Tokenizer.from_str(json.dumps(told)), FEW, size=320, other=FEW)
