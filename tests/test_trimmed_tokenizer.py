"""A vocabulary cut down to what texts need: what is cut as before, what is said in shorter tokens, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from tasks.running.errors import DataReadError
from tasks.workloads import trimmed_tokenizer
from tasks.workloads.text_tokenizer import new_causal_tokenizer, new_tokenizer
from tasks.workloads.trimmed_tokenizer import needed_tokens, only_tokens

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
    trimmed = needed_tokens(whole, FEW, size=300, other=FEW)
    new = only_tokens(whole, trimmed.kept)
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
    rare = whole.get_vocab_size() - 2
    trimmed = needed_tokens(whole, FEW, size=320, always=[rare], other=FEW)
    new = only_tokens(whole, trimmed.kept)
    number = new.token_to_id("<|say|>")
    assert trimmed.kept[number] == say and rare in trimmed.kept
    assert new.encode("the quick").ids[0] == number and ids(new, "a<|say|>b").count(number) == 1


def test_tokens_that_other_processors_put_around_texts_stay() -> None:
    whole = new_causal_tokenizer(MANY, size=400)
    sep, cls = whole.get_vocab_size() - 1, whole.get_vocab_size() - 2
    told = json.loads(whole.to_str())
    for kind, more in (
        ("BertProcessing", {}),
        ("RobertaProcessing", {"trim_offsets": True, "add_prefix_space": False}),
    ):
        pair = {"sep": [whole.id_to_token(sep), sep], "cls": [whole.id_to_token(cls), cls]}
        told["post_processor"] = {"type": kind, **pair, **more}
        around = Tokenizer.from_str(json.dumps(told))
        trimmed = needed_tokens(around, FEW, size=320, other=FEW)
        new = only_tokens(around, trimmed.kept)
        assert {sep, cls} <= {*trimmed.kept.tolist()}
        assert [int(trimmed.kept[n]) for n in new.encode("the quick").ids] == around.encode("the quick").ids


def test_bytes_stand_for_characters_that_have_no_token() -> None:
    """As in Llama 2: one character of a script may cost three tokens, and none is lost."""
    byte = {f"<0x{number:02X}>": number + 1 for number in range(256)}
    letters = "abcdefghij\u65e5\u672c"
    vocabulary = {"<unk>": 0, **byte, "\u2581": 257, **{letter: 258 + n for n, letter in enumerate(letters)}}
    merges = [("a", "b"), ("ab", "c"), ("d", "e"), ("\u2581", "abc"), ("f", "g")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    whole.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    whole.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Five of the twelve letters are needed; "c" is never said alone, but without it nothing is merged to "abc".
    trimmed = needed_tokens(whole, ["abc abc de"] * 9, size=269, other=["abc de"])
    new = only_tokens(whole, trimmed.kept)
    assert {"<unk>", "<0x00>", "\u2581", "c", "ab", "abc", "\u2581abc", "de"} <= new.get_vocab().keys()
    assert not {"j", "\u65e5", "fg"} & new.get_vocab().keys()
    assert [int(trimmed.kept[n]) for n in ids(new, "abc abc de")] == ids(whole, "abc abc de")
    for text in ("abc \u65e5 fg x", "j j"):
        assert new.decode(ids(new, text)) == text


def test_texts_of_any_length_are_counted_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new_causal_tokenizer(MANY, size=420)
    once = needed_tokens(whole, FEW, size=300, other=FEW)
    monkeypatch.setattr(trimmed_tokenizer, "_PIECES", 3)
    assert np.array_equal(needed_tokens(whole, FEW, size=300, other=FEW).kept, once.kept)
    monkeypatch.setattr(trimmed_tokenizer, "_PIECE", 50)
    found = needed_tokens(whole, [" ".join(FEW)], size=300, other=FEW)
    assert len({*found.kept.tolist()} & {*once.kept.tolist()}) > 290


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
        needed_tokens(new_causal_tokenizer(MANY, size=420), FEW, size=size, other=other)


def test_tokenizers_that_cannot_be_trimmed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataReadError, match="of the kind 'Unigram'; only byte pairs"):
        needed_tokens(Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)])), FEW, size=300, other=FEW)
    marked = Tokenizer(models.BPE())
    marked.pre_tokenizer = pre_tokenizers.Whitespace()
    marked.train_from_iterator(FEW, BpeTrainer(vocab_size=60, end_of_word_suffix="</w>", show_progress=False))
    with pytest.raises(DataReadError, match="without marks inside words"):
        needed_tokens(marked, FEW, size=300, other=FEW)
    around = new_tokenizer(MANY, size=400)
    told = json.loads(around.to_str())
    told["post_processor"] = None
    monkeypatch.setattr(
        trimmed_tokenizer, "json", SimpleNamespace(loads=lambda _: told | {"post_processor": {"type": "Later"}})
    )
    with pytest.raises(DataReadError, match=r"puts around texts \(Later\)"):
        needed_tokens(around, FEW, size=320, other=FEW)
