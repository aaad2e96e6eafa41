"""8 and 4 bits mixed in one decoder, to a size: the choice is the best there is, and the file is as small as asked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_decoder import ROWS, decoder, variant
from test_language_proof import data as language_data

from flows.language_limits import refuse_misplaced, refuse_size, trainable
from flows.spec import parse_spec
from model_registry.decoder_form import DecoderForm
from model_registry.text_input import DECODER
from serving.engine import Engine
from serving.engines.batch_certificate import certify
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.qat.low_bits import put_back, take_rounded
from tasks.qat.low_bits_parity import check_low_bits
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.quantize.divergence import Divergence
from tasks.quantize.least_damage import least_damage
from tasks.quantize.mixed_grids import MixedGrids
from tasks.quantize.quantized_forms import QuantizedForm
from tasks.running.errors import SpecError
from tasks.running.splits import LanguageRef
from tasks.running.stage import Outcome
from tasks.workloads.causal_decoder import CausalDecoder


def mixed(model: CausalDecoder, max_bytes: int, *, kv_cache: Any = "float32") -> tuple[list[QuantizedForm], str | None]:
    """The form of that size, or why there is none."""
    file, form = write_decoder(model), decoder_form(model)
    wanted = decoder_scores(file, form, ROWS)
    made, skipped = decoder_forms(
        file, form, ROWS, wanted, ["mixed", "weights8"], kv_cache, lambda *_: None, max_bytes=max_bytes
    )
    return made, skipped.get("mixed")


def sizes(model: CausalDecoder) -> MixedGrids:
    return MixedGrids(onnx.load_from_string(write_decoder(model)))


# -- the choice -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(30))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    draw = np.random.default_rng(seed)
    choices = [
        [(int(size), float(damage)) for size, damage in zip(draw.integers(1, 9, 3), draw.random(3), strict=True)]
        for _ in range(5)
    ]
    for limit in (4, 15, 20, 60):
        every = [
            (sum(damage for _, damage in taken), sum(size for size, _ in taken))
            for taken in itertools.product(*choices)
            if sum(size for size, _ in taken) <= limit
        ]
        found = least_damage(choices, limit)
        if found is None:
            assert not every
            continue
        taken = [options[number] for options, number in zip(choices, found, strict=True)]
        assert sum(size for size, _ in taken) <= limit
        assert sum(damage for _, damage in taken) == pytest.approx(min(every)[0])


def test_of_equal_damages_the_smaller_size_is_taken_and_nothing_where_nothing_fits() -> None:
    assert least_damage([[(8, 0.0), (4, 0.0)], [(8, 0.0), (4, 0.1)]], 16) == (1, 0)
    assert least_damage([[(8, 0.0)], [(8, 0.0)]], 15) is None
    assert least_damage([], 0) == ()


def test_the_divergence_is_the_formula_s(tmp_path: Path) -> None:
    model, other = decoder(tmp_path / "a", "qwen2"), decoder(tmp_path / "b", "qwen2")
    with torch.no_grad():
        other.layers["1"].up.weight.mul_(1.2)  # type: ignore[operator,union-attr]
        said, heard = (each.logits(each.states(torch.from_numpy(ROWS)))[:, :-1] for each in (model, other))
        formula = torch.nn.functional.kl_div(
            heard.log_softmax(-1), said.log_softmax(-1), log_target=True, reduction="sum"
        )
    apart = Divergence(write_decoder(model), decoder_form(model), ROWS)
    assert apart.places == ROWS[:, 1:].size
    assert apart.of(write_decoder(other)) == pytest.approx(float(formula) / apart.places, rel=1e-3)
    assert apart.of(write_decoder(model)) == 0.0


# -- the files --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "kv_cache"), [("llama", "float32"), ("qwen2", "int8"), ("gpt2", "float32")])
def test_the_file_is_as_small_as_asked_and_better_where_it_may_be_larger(
    tmp_path: Path, kind: str, kv_cache: str
) -> None:
    model = decoder(tmp_path, kind)
    known = sizes(model)
    file, form = write_decoder(model), decoder_form(model)
    apart, lost = Divergence(file, form, ROWS), list[float]()
    for share in (0.2, 0.6):
        asked = int(known.smallest + share * (known.largest - known.smallest)) + 3000 * (kv_cache == "int8")
        (made, eight), _ = mixed(model, asked, kv_cache=kv_cache)
        facts = made.facts
        assert facts["bytes"] == len(made.data) <= asked < eight.facts["bytes"]
        assert (facts["quantized"], facts["share"]) == (facts["quantizable"], 1.0)
        assert {group["bits"] for group in facts["groups"].values()} == {4, 8}
        assert {"table of tokens", "out of layer 0", "down of layer 2"} <= facts["groups"].keys()
        assert all(group["damage"] == 0 for group in facts["groups"].values() if group["bits"] == 8)
        small = DecoderForm.from_json(made.assets[DECODER])
        assert small.kv_cache == kv_cache
        if kv_cache == "float32":
            lost.append(apart.of(made.data))
    assert lost == sorted(lost, reverse=True)


def test_what_fits_in_8_bits_has_8_bits_and_what_cannot_be_so_small_is_told_the_smallest(tmp_path: Path) -> None:
    model = decoder(tmp_path, "qwen2")
    known = sizes(model)
    (whole, eight), _ = mixed(model, known.largest)
    assert whole.data == eight.data and known.largest - 2000 < len(whole.data) <= known.largest
    (eight,), why = mixed(model, known.smallest - 1)
    assert why is not None and f"is less than the {known.smallest} that this model takes" in why
    (small, _), why = mixed(model, known.smallest)
    assert why is None and known.smallest - 2000 < len(small.data) <= known.smallest


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalDecoder, QuantizedForm]:
    model = decoder(tmp_path_factory.mktemp("half"), "qwen2")
    known = sizes(model)
    (made, _), _ = mixed(model, (known.smallest + known.largest) // 2)
    return model, made


def test_no_row_depends_on_its_neighbours(tmp_path: Path, half: tuple[CausalDecoder, QuantizedForm]) -> None:
    model, made = half
    engine = Engine(tmp_path / "v", variant(tmp_path / "v", made.data, decoder_form(model)))
    engine.warm_up()
    together = engine.run({"tokens": ROWS})["log_probabilities"]
    for number in range(len(ROWS)):
        alone = engine.run({"tokens": ROWS[number : number + 1]})["log_probabilities"]
        np.testing.assert_array_equal(alone[0], together[number])
    assert certify(engine, made.data).kind == "exact"


def test_training_takes_the_4_bits_and_leaves_the_8(tmp_path: Path, half: tuple[CausalDecoder, QuantizedForm]) -> None:
    _, made = half
    model = decoder(tmp_path, "qwen2")
    file = onnx.load_from_string(made.data)
    kinds = {(group["bits"], group["block"]) for group in made.facts["groups"].values()}
    assert len(kinds) > 1
    trainable = take_rounded(model, file)
    assert 0 < trainable < sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert check_low_bits(model, file, decoder_form(model), ROWS) < 1e-4
    assert put_back(model, file).SerializeToString() == file.SerializeToString()


# -- the spec ---------------------------------------------------------------------------------------------------------
def asked(**more: Any) -> dict[str, Any]:
    return {"schema": 1, "model": "x", "workload": {"path": "winnow:CausalLM"}} | more


def test_the_size_is_the_budget_s_where_no_other_is_said() -> None:
    spec = parse_spec(asked(quantize={"methods": ["mixed"]}, budget={"max_bytes": 5000}), "here")
    assert spec.quantize is not None and spec.quantize.max_bytes == 5000
    spec = parse_spec(asked(quantize={"methods": ["mixed"], "max_bytes": 4000}, budget={"max_bytes": 5000}), "here")
    assert spec.quantize is not None and spec.quantize.max_bytes == 4000
    spec = parse_spec(asked(quantize={"methods": ["weights8"]}, budget={"max_bytes": 5000}), "here")
    assert spec.quantize is not None and spec.quantize.max_bytes is None


@pytest.mark.parametrize(
    ("quantizing", "says"),
    [
        ({"methods": ["mixed"]}, "methods has mixed, which needs a size: say max_bytes here or in the budget"),
        ({"methods": ["weights8"], "max_bytes": 4000}, "max_bytes 4000 is the size that mixed makes"),
        ({"methods": ["mixed"], "max_bytes": 0}, "quantize.max_bytes"),
    ],
)
def test_a_size_without_mixed_bits_and_mixed_bits_without_a_size_are_refused(
    quantizing: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        parse_spec(asked(quantize=quantizing), "here")


def test_bits_of_what_is_no_language_model_are_not_mixed() -> None:
    spec = parse_spec(asked(quantize={"methods": ["mixed"], "max_bytes": 4000}), "here")
    refuse_misplaced(spec, language_data(LanguageRef()))
    with pytest.raises(SpecError, match="makes none; use weights8 or weights4"):
        refuse_misplaced(spec, language_data(None))


def outcome(**values: Any) -> Outcome:
    known = {"stage": "quantize", "name": "quantize", "status": "computed", "key": "k", "version": "v"}
    return Outcome(**known, seconds=0.0, values=values)


def test_a_size_that_no_model_can_have_is_refused() -> None:
    spec = parse_spec(asked(quantize={"methods": ["mixed"], "max_bytes": 4000}), "here")
    skipped = outcome(skipped={"mixed": "max_bytes 4000 is less than the 5000"})
    with pytest.raises(SpecError, match=r"quantize\.methods mixed: max_bytes 4000 is less than the 5000"):
        refuse_size(spec, [skipped, skipped])
    refuse_size(spec, [skipped, outcome(skipped={})])
    refuse_size(spec, [])


@pytest.mark.parametrize(("bits", "trained"), [((8, 8), False), ((8, 4), True)])
def test_a_file_that_has_8_bits_everywhere_is_not_trained(
    tmp_path: Path, half: tuple[CausalDecoder, QuantizedForm], bits: tuple[int, ...], trained: bool
) -> None:
    model, form = half
    made = variant(tmp_path, form.data, decoder_form(model))
    groups = {str(number): {"bits": each} for number, each in enumerate(bits)}
    found = outcome(variants={made.digest: {"groups": groups}}).model_copy(
        update={"variants": (made,), "roles": {"mixed": made.digest, "static": made.digest}}
    )
    assert trainable(found, language_data(LanguageRef())) == ((made,) if trained else ())
    planned = found.model_copy(update={"values": {}})
    assert trainable(planned, language_data(LanguageRef())) == trainable(planned, language_data(None)) == (made,)
