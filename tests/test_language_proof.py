"""What is proven of a language model: bits per byte, speed, questions, and what it says beside its baseline."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from measurements import measured, run_report
from memory_store import Memory
from playwright.sync_api import sync_playwright
from test_causal_lm import questions
from test_report import Page
from token_models import TEXT, token_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from flows.language_limits import refuse_misplaced
from flows.spec import PipelineSpec, parse_spec
from model_registry.manifest import FileEntry
from model_registry.measurement import Speedup, Throughput, TokenSpeed
from model_registry.text_input import TOKENIZER
from serving.decoding.token_worker import token_loop
from serving.engine import Engine
from serving.engines.engine_frames import Asked
from serving.exceptions import EngineRunError
from serving.limits import GenerationBounds
from serving.probe_tokens import TIMED, continue_greedily, time_loops
from tasks.evidence.choice_scores import choice_scores, right_answers
from tasks.evidence.continuations import Continuations, compare_continuations
from tasks.evidence.text_bytes import bits_per_byte, token_lengths
from tasks.quantize import QuantizeSpec
from tasks.report.pages import render_card, render_html
from tasks.report.run_report import RunReport
from tasks.running.errors import DataReadError, GateFailed, SpecError
from tasks.running.splits import DataRef, LanguageRef, MetricRef
from tasks.validate import GateSpec
from tasks.validate.choice import failing_gates, scored
from tasks.validate.gate_rows import gate_rows
from tasks.workloads.choice_questions import ChoiceQuestion, encode_questions, read_questions
from tasks.workloads.text_tokenizer import new_causal_tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
ODD = "café \N{GRINNING FACE} \N{CJK UNIFIED IDEOGRAPH-4E2D}\n\tdog, the dog"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Path]:
    folder = tmp_path_factory.mktemp("proof-model")
    variant = token_model(folder, context=64)
    return Engine(folder / "variant", variant), folder / "variant"


@pytest.fixture(scope="module")
def tokenizer(engine: tuple[Engine, Path]) -> Tokenizer:
    return Tokenizer.from_file(str(engine[1] / TOKENIZER))


# -- bits per byte ------------------------------------------------------------------------------------------------
def by_pieces() -> Tokenizer:
    """Of the kind of Llama 2: spaces are underlines, what is unknown is spelt in bytes."""
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [SPACE, "d", "o", "g", "do", "dog", f"{SPACE}dog"]
    merges = [("d", "o"), ("do", "g"), (SPACE, "dog")]
    vocabulary = {word: number for number, word in enumerate(["<unk>", *spelt, *words])}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("</s>", special=True)])
    made.add_tokens([AddedToken("<tab>", special=False)])
    return made


@pytest.mark.parametrize("make", [lambda: new_causal_tokenizer([TEXT * 3], size=300), by_pieces])
def test_tokens_stand_for_the_bytes_of_their_text(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    lengths = token_lengths(tokenizer.to_str().encode())
    ids = tokenizer.encode(ODD).ids
    assert tokenizer.decode(ids) == ODD and len(ids) > 12
    assert lengths[ids].sum() == len(ODD.encode())
    for special in ("</s>", "<|endoftext|>"):
        if (end := tokenizer.token_to_id(special)) is not None:
            assert lengths[end] == 0
    if (tab := tokenizer.token_to_id("<tab>")) is not None:
        assert lengths[tab] == 5


class Files(Memory):
    """A store with the files of one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def fetch_bytes(self, entry: FileEntry) -> bytes:
        return (self.folder / entry.path).read_bytes()


def test_a_token_of_eight_bits(engine: tuple[Engine, Path], tokenizer: Tokenizer) -> None:
    store = Files(engine[1])
    ids = np.array([tokenizer.encode(TEXT).ids])
    outputs = np.full((1, ids.shape[1] - 1), -8 * math.log(2))
    text = len(TEXT.encode()) - len(tokenizer.decode(ids[0, :1].tolist()))  # nothing is said of the first token
    found = bits_per_byte(store, engine[0].variant, outputs, ids)
    assert found == pytest.approx(8 * outputs.size / text)
    plain = engine[0].variant.model_copy(update={"files": ()})
    assert bits_per_byte(store, plain, outputs, ids) is None


# -- speed --------------------------------------------------------------------------------------------------------
def test_both_loops_are_timed_in_turns(engine: tuple[Engine, Path]) -> None:
    prompts = np.random.default_rng(0).integers(1, 300, (3, 64)).tolist()
    loops = [token_loop(*engine, TIMED) for _ in range(2)]
    found = time_loops(loops[0], loops[1], prompts, rounds=8, seconds=0.3, seed=0)
    assert (found.prompt_tokens, found.new_tokens) == (64 - 16 - 1, 16)  # the context holds 64
    assert found.ttft_interval[0] <= found.ttft_ms <= found.ttft_interval[1]
    assert found.prefill.value == pytest.approx(1e3 * found.prompt_tokens / found.ttft_ms, rel=0.5)
    assert found.decode_speedup is not None  # of the same model; what else the machine does decides how near to 1
    low, high = found.decode_speedup.interval
    assert 0.02 < low <= found.decode_speedup.value <= high < 50
    alone = time_loops(loops[0], None, prompts, rounds=5, seconds=0.0, seed=0)
    assert alone.decode_speedup is None and alone.prefill_speedup is None


def test_prompts_that_do_not_fit_are_an_error(engine: tuple[Engine, Path]) -> None:
    with pytest.raises(EngineRunError, match="prompt 1 is refused: the prompt has 30 tokens and 8 more"):
        continue_greedily(token_loop(*engine, GenerationBounds(context=32)), [[5] * 8, [5] * 30], 8)


def speed(decode: float, ttft: float, speedup: float | None = None) -> TokenSpeed:
    faster = speedup and Speedup(value=speedup, interval=(speedup * 0.9, speedup * 1.1), verdict="faster")
    return TokenSpeed(
        prompt_tokens=64, new_tokens=16, prefill=Throughput(value=1e3, interval=(9e2, 2e3)),
        decode=Throughput(value=decode, interval=(decode, decode)), ttft_ms=ttft, ttft_interval=(ttft, ttft),
        prefill_speedup=faster, decode_speedup=faster,
    )  # fmt: skip


BASE = measured("teacher.fp32", bits_per_byte=1.0, token_speed=speed(20, 100))
FAST = measured("small", BASE, p50=0.5, bytes=1000, bits_per_byte=1.02, token_speed=speed(99, 1, 2.0))
"""Twice as fast in turns; the machine was idle when it was measured, and is not meant to matter."""


@pytest.mark.parametrize(
    ("limits", "fails"),
    [
        ({"min_tokens_per_second": 39.9, "max_ttft_ms": 50.1}, []),
        ({"min_tokens_per_second": 40.1}, ["decoding"]),
        ({"max_ttft_ms": 49.9}, ["first_token"]),
    ],
)
def test_limits_of_speed_look_at_the_baseline_s_own_and_the_speed_up(
    limits: dict[str, float], fails: list[str]
) -> None:
    assert [row.gate for row in failing_gates(GateSpec(margin=1.0, **limits), FAST, BASE)] == fails


def test_a_speed_that_was_not_measured_passes_no_gate() -> None:
    unknown = measured("older", BASE)
    spec = GateSpec(margin=1.0, min_tokens_per_second=1e-9, max_ttft_ms=1e9)
    assert [row.gate for row in failing_gates(spec, unknown, BASE)] == ["decoding", "first_token"]


# -- questions ----------------------------------------------------------------------------------------------------
def test_questions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    good = {"question": "Q", "choices": ["a", "b"], "answer": "b"}
    file.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, "answer": 0}))
    assert [q.answer for q in read_questions(str(file))] == [1, 0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "must be an object with question, choices, answer"),
        ('{"question": "x"}', "it lacks choices, answer"),
        ('{"question": 3, "choices": ["a", "b"], "answer": 0}', "question 3 must be a text"),
        ('{"question": "x", "choices": ["a"], "answer": 0}', "must be two texts or more"),
        ('{"question": "x", "choices": ["a", " "], "answer": 0}', "none of them empty"),
        ('{"question": "x", "choices": ["a", "a"], "answer": 0}', "the same text twice"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 2}', "answer 2 must be one of the choices, or its number"),
        ('{"question": "x", "choices": ["a", "b"], "answer": "c"}', "answer 'c' must be"),
        ('{"question": "x", "choices": ["a", "b"], "answer": true}', "answer True must be"),
        ("", "holds no line"),
    ],
)
def test_lines_that_are_no_questions(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(DataReadError, match=says):
        read_questions(str(tmp_path / "q.jsonl"))


def test_a_question_longer_than_the_context_is_named(tokenizer: Tokenizer) -> None:
    asked = [ChoiceQuestion("a", ("b", "c"), 0), ChoiceQuestion("dog " * 70, ("x", "y"), 0)]
    with pytest.raises(
        DataReadError, match=r"question 2 of q has 7[0-9] tokens with choice 'x', and the model context"
    ):
        encode_questions(asked, tokenizer, begin=1, context=64, source="q")


def test_a_choice_is_scored_as_the_endpoint_echoes_it(engine: tuple[Engine, Path], tokenizer: Tokenizer) -> None:
    asked = [ChoiceQuestion("The quick", ("brown fox", "dog"), 0), ChoiceQuestion("", ("dog and", "fox"), 1)]
    rows = encode_questions(asked, tokenizer, begin=1, context=64, source="q")
    scores = engine[0].run({"tokens": rows.tokens})["log_probabilities"]
    texts = [("The quick", " brown fox"), ("The quick", " dog"), ("", "dog and"), ("", "fox")]
    assert rows.bytes.tolist() == [len(choice) for _, choice in texts]
    for row, (question, choice) in enumerate(texts):
        ids = [*([] if question else [1]), *tokenizer.encode(question + choice).ids]
        order = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0.0}
        loop, told = token_loop(*engine), list[dict[str, Any]]()
        assert loop.ask(Asked(1, orjson.dumps(order), -1, 0, 0.0)) is None
        while not loop.idle:
            told += [token for part in loop.turn() for token in orjson.loads(part.body)["tokens"]]
        spoken = [token["logprob"] for token in told][rows.begins[row] :]
        assert b"".join(bytes(token["bytes"]) for token in told[rows.begins[row] :]).decode() == choice
        ours = scores[row, rows.begins[row] - 1 : rows.ends[row] - 1]
        np.testing.assert_allclose(ours.sum(), sum(spoken), atol=1e-3)


def test_the_likeliest_choice_is_the_answer_and_a_tie_is_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = encode_questions(
        read_questions(str(questions(tmp_path / "q.jsonl", 12))), tokenizer, begin=1, context=64, source="q"
    )
    drawn = np.random.default_rng(0).normal(-3, 1, (len(rows.tokens), rows.tokens.shape[1] - 1)).astype(np.float32)
    found = right_answers(rows, drawn)
    for question in range(12):
        mine = np.flatnonzero(rows.question == question)
        sums = np.array([drawn[r, rows.begins[r] - 1 : rows.ends[r] - 1].sum(dtype=np.float64) for r in mine])
        answer = int(np.flatnonzero(rows.right[mine])[0])
        assert found[0][question] == (sums.argmax() == answer)
        assert found[1][question] == ((sums / rows.bytes[mine]).argmax() == answer)
    assert not right_answers(rows, np.zeros_like(drawn))[0].any()


@pytest.mark.parametrize(("count", "limit", "fails"), [(1500, 0.02, []), (1500, 0.001, ["choices"]), (40, 0.2, [])])
def test_a_gate_looks_at_what_is_lost_of_right_answers(count: int, limit: float, fails: list[str]) -> None:
    right = (np.arange(count) % 2).astype(np.float64)
    worse = right * (np.arange(count) != 1)
    found = choice_scores((worse, worse), (right, right), digest=BASE.digest)
    assert found.to_baseline is not None and (found.to_baseline.worse, found.to_baseline.samples) == (1, count)
    variant = scored(FAST, role="chosen").model_copy(update={"choices": found})
    spec = GateSpec(margin=1.0, max_choice_drop=limit)
    rows = gate_rows(spec, variant, scored(BASE, role="baseline"), FAST, baseline_costs=BASE)
    assert [row.gate for row in rows if row.severity == "critical" and not row.within] == fails
    assert ("enough_questions" in {row.gate for row in rows}) is (count < 1000)


# -- limits -------------------------------------------------------------------------------------------------------
def spec(**budget: float) -> PipelineSpec:
    return parse_spec({"schema": 1, "model": "m", "workload": {"path": "mine:Mine"}, "budget": budget}, "spec.yaml")


def data(language: LanguageRef | None, metric: str = "nats") -> DataRef:
    named = MetricRef(name=metric, better="lower", builtin=False)
    return DataRef(fingerprint="f", splits=(), columns={}, task="other", metric=named, language=language)


def test_limits_of_language_models_are_gates() -> None:
    made = spec(max_nats_increase=0.01, max_choice_drop=0.02, min_tokens_per_second=20, max_ttft_ms=300)
    gates = made.gates
    assert (gates.margin, gates.max_choice_drop, gates.min_tokens_per_second, gates.max_ttft_ms) == (
        0.01,
        0.02,
        20,
        300,
    )
    assert parse_spec(made.model_dump(mode="json", by_alias=True), "again") == made
    refuse_misplaced(made, data(LanguageRef(count=1000)))
    refuse_misplaced(spec(max_accuracy_drop=0.01), data(None, "accuracy"))


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"max_nats_increase": 0}, "budget.max_nats_increase: 0 is refused"),
        ({"max_choice_drop": 1.5}, "budget.max_choice_drop: 1.5 is refused"),
        ({"min_tokens_per_second": -1}, "budget.min_tokens_per_second: -1 is refused"),
        ({"max_ttft_ms": "soon"}, "budget.max_ttft_ms: 'soon' is refused"),
        ({"max_nats_increase": 0.1, "max_accuracy_drop": 0.1}, "are the same limit; remove one"),
        ({"max_nats_increase": 0.1, "max_relative_drop": 0.1}, "both limit the loss"),
    ],
)
def test_limits_that_are_refused(budget: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        spec(**budget)


def test_small_keys_and_values_are_for_what_keeps_them() -> None:
    made = spec(max_accuracy_drop=0.01)
    small = made.model_copy(update={"quantize": QuantizeSpec(kv_cache="int8")})
    refuse_misplaced(small, data(LanguageRef()))
    with pytest.raises(SpecError, match=r"quantize.kv_cache int8: only a model that continues text keeps keys"):
        refuse_misplaced(small, data(None, "accuracy"))


@pytest.mark.parametrize(
    ("budget", "known", "says"),
    [
        (
            {"max_nats_increase": 0.1},
            data(None),
            "budget.max_nats_increase 0.1: only a language model has such a limit",
        ),
        (
            {"min_tokens_per_second": 9, "max_ttft_ms": 8},
            data(None),
            "min_tokens_per_second 9, budget.max_ttft_ms 8: on",
        ),
        ({"max_nats_increase": 0.1}, data(LanguageRef(), "words"), "is judged by words; use max_accuracy_drop"),
        ({"max_choice_drop": 0.02}, data(LanguageRef()), "the workload has none; name a file of them as the argument"),
        ({"max_choice_drop": 0.02}, data(LanguageRef(count=50)), "can never be proven on 50 questions.*at least 149"),
    ],
)
def test_limits_where_nothing_can_be_looked_at(budget: dict[str, float], known: DataRef, says: str) -> None:
    with pytest.raises((SpecError, GateFailed), match=says):
        refuse_misplaced(spec(**budget), known)


# -- what they say ------------------------------------------------------------------------------------------------
def said(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


def compared() -> Continuations:
    chosen = ["same", "<b>x</b>", "", "dog \N{RIGHT-TO-LEFT OVERRIDE}"]
    baseline = ["same", "<b>y</b>", "", "dog"]
    texts = [("<script>alert(1)</script>", "goes on\x00"), *[(f"prompt {n}\n  indented", "text") for n in range(3)]]
    return compare_continuations(
        texts, [*map(said, chosen)], [*map(said, baseline)], prompt_tokens=8, new_tokens=8, shown=4
    )


def test_continuations_part_where_a_token_differs() -> None:
    found = compared()
    assert [each.tokens for each in found.shown] == [4, 3, 0, 3]
    assert [(each.same, each.baseline, each.chosen) for each in found.shown[:2]] == [
        ("same", "", ""),
        ("<b>", "y</b>", "x</b>"),
    ]
    assert (
        found.shown[3].chosen == " \N{REPLACEMENT CHARACTER}" and found.shown[0].text[-1] == "\N{REPLACEMENT CHARACTER}"
    )
    assert found.alike.value == 0.5 and found.kept.value == pytest.approx((1 + 3 / 8 + 1 + 3 / 5) / 4)


def language_report() -> RunReport:
    report = run_report(continuations=compared())
    rows = list[Any]()
    for row in report.variants:
        fast = speed(20.0, 100.0, None if row.digest == report.baseline else 2.0)
        rows.append(row.model_copy(update={"bits_per_byte": 1.234, "token_speed": fast}))
    assert report.decision is not None
    right = (np.arange(40) % 2).astype(np.float64)
    asked = [
        each.model_copy(
            update={
                "bits_per_byte": 1.2,
                "choices": choice_scores(
                    (right, right), None if each.role == "baseline" else (right, right), digest="x"
                ),
            }
        )
        for each in report.decision.scored
    ]
    decision = report.decision.model_copy(update={"scored": tuple(asked)})
    return report.model_copy(update={"variants": tuple(rows), "decision": decision})


def test_the_page_shows_both_sides_and_runs_nothing_of_them() -> None:
    report = language_report()
    html = render_html(report)
    page = Page(html)
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html and "&lt;b&gt;" in html
    text = " ".join(page.text)
    for shown in (
        "bits per byte",
        "Questions, asked once",
        "After 50.0 % of 4 prompts",
        "The endpoint continues texts",
    ):
        assert shown in text
    card = render_card(report)
    assert "1.2 bits per byte" in card and "After 50.0 % of 4 beginnings" in card
    assert "As a language model" not in render_html(run_report())
    assert RunReport.from_json(report.to_json()) == report


@pytest.mark.slow
def test_the_page_fits_a_narrow_screen(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_html(language_report()))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width, side_by_side in ((400, False), (1400, True)):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(f"file://{tmp_path}/report.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            left, right = (side.bounding_box() for side in page.locator(".sides").first.locator("> div").all())
            assert left and right and (left["y"] == right["y"]) is side_by_side
        browser.close()
