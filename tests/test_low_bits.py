"""Weights of 4 bits that are trained on a teacher's distributions: the grid of the file, the loss, the file again."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from decoder_folders import VOCABULARY
from digits_world import store_splits
from onnx import ModelProto
from test_causal_lm import texts
from test_decoder import ROWS, decoder
from test_fit import Memory, assert_same
from test_language_proof import data as language_data
from torch import Tensor
from torch.nn import functional

from flows.language_limits import refuse_misplaced
from flows.spec import parse_spec
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.export import ExportSpec, export
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.onnx_models.block_rows import pack_rows4, round_rows8, unpack_rows
from tasks.qat import QatSpec, qat
from tasks.qat.low_bits import put_back, take_rounded
from tasks.qat.low_bits_parity import check_low_bits, small_scores
from tasks.quantize import QuantizeSpec, quantize
from tasks.quantize.answer_rounding import by_answers, input_products
from tasks.quantize.decoder_cache import channel_scales, shrink_cache
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder, table_of
from tasks.running.errors import QatParityFailed, QatUnsupported, SpecError
from tasks.running.launch import kept_processes
from tasks.running.splits import TARGET, Columns, DataRef, LanguageRef
from tasks.running.stage import Job, Parallel, WorkloadRef
from tasks.torch_models import taught_decoder
from tasks.torch_models.fit import Fitted, fit
from tasks.torch_models.model_structure import ModelStructure
from tasks.torch_models.objective import Hard
from tasks.torch_models.taught_decoder import TaughtDecoder, teaching_loss
from tasks.torch_models.torch_variant import build, save
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.causal_decoder import CausalDecoder, DecoderShape
from tasks.workloads.causal_lm import CausalLM
from tasks.workloads.decoder_folder import frequencies
from tasks.workloads.workload import Workload, load_workload

LENGTH = 24


def continued(model: CausalDecoder, rows: int, seed: int) -> np.ndarray:
    """Texts as the model itself writes them: what it foretells of them is all that can be known."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.shape.vocabulary, (rows, 1), generator=draw)
    with torch.no_grad():
        while tokens.shape[1] < LENGTH:
            likely = model.logits(model.states(tokens)[:, -1]).softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(likely, 1, generator=draw)], dim=1)
    return tokens.numpy()


def small_file(model: CausalDecoder, rows: np.ndarray, *, table: int = 8) -> ModelProto:
    """As quantization makes it: 4 bits by what is answered to the rows."""
    plain = onnx.load_from_string(write_decoder(model))
    asked = input_products(plain, decoder_form(model), rows)
    names = {*decoder_products(plain), *filter(None, [table_of(plain)])}
    bits = {name: table if name == table_of(plain) else 4 for name in names}
    return quantize_decoder(plain, bits, by_answers(asked))


def split(rows: np.ndarray) -> Columns:
    return {"tokens": rows, TARGET: rows}


def train(taught: TaughtDecoder, train: np.ndarray, validation: np.ndarray, **more: Any) -> Fitted:
    workload = Workload(CausalLM("nothing is read"), WorkloadRef(path="winnow:CausalLM"))
    return fit(
        taught,
        TrainingData(workload, split(train), split(validation)),
        Training(epochs=3, batch_size=16, learning_rate=0.02, weight_decay=0.0, amp="off"),
        objective=Hard(lambda outputs, _: outputs.mean()),
        device="cpu",
        **more,
    )


@pytest.fixture(scope="module")
def teacher() -> CausalDecoder:
    """A decoder so small that it learns in seconds, with weights large enough to foretell something."""
    shape = DecoderShape(
        vocabulary=64,
        features=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_size=16,
        hidden=64,
        context=64,
        rotation=frequencies(16, 10_000.0),
    )
    torch.manual_seed(0)
    model = CausalDecoder(shape).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(8 if weight.ndim == 2 else 1)
    return model


@pytest.fixture(scope="module")
def small(teacher: CausalDecoder) -> ModelProto:
    return small_file(teacher, continued(teacher, 32, seed=1))


# -- the grid ---------------------------------------------------------------------------------------------------------
def test_packed_rows_are_read_again() -> None:
    draw = np.random.default_rng(0)
    four = draw.integers(-8, 8, (3, 64)).astype(np.int8)
    packed, _ = pack_rows4(four, np.ones((3, 2), np.float32))
    np.testing.assert_array_equal(unpack_rows(packed, 4), four)
    matrix = draw.standard_normal((3, 64)).astype(np.float32)
    packed, scales = round_rows8(matrix, 32)
    np.testing.assert_allclose(unpack_rows(packed, 8) * scales.repeat(32, 1), matrix, atol=scales.max() / 2)


@pytest.mark.parametrize(("kind", "table"), [("llama", 8), ("llama", 4), ("qwen2", 4), ("qwen3", 8), ("gpt2", 8)])
def test_the_model_has_the_file_s_weights_and_gives_them_back(tmp_path: Path, kind: str, table: int) -> None:
    model = decoder(tmp_path, kind)
    file = small_file(model, ROWS, table=table)
    trainable = take_rounded(model, file)
    assert check_low_bits(model, file, decoder_form(model), ROWS) < 1e-4
    assert put_back(model, file).SerializeToString() == file.SerializeToString()
    scales = channel_scales(onnx.load_from_string(write_decoder(model)), decoder_form(model), ROWS)
    assert check_low_bits(model, *shrink_cache(file, decoder_form(model), scales), ROWS) < 1e-4
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim == 2]
    assert trainable == sum(p.numel() for p in weights)
    tables = sum(p.numel() == VOCABULARY * 64 for p in weights)
    assert tables == (table == 4) + (kind == "llama")  # of which the head is not the table


def test_a_file_of_another_model_or_without_4_bits_is_refused(teacher: CausalDecoder, small: ModelProto) -> None:
    with pytest.raises(
        QatUnsupported, match=r"weight '.*' of the decoder's file is \[.*\], which no layers of the model"
    ):
        take_rounded(CausalDecoder(teacher.shape, [0]), small)
    plain = onnx.load_from_string(write_decoder(teacher))
    with pytest.raises(QatUnsupported, match="train what weights4 or mixed made"):
        take_rounded(copy.deepcopy(teacher), quantize_decoder(plain, dict.fromkeys(decoder_products(plain), 8)))


def test_a_file_that_does_not_answer_as_trained_is_found_out(teacher: CausalDecoder, small: ModelProto) -> None:
    student, rows = copy.deepcopy(teacher), continued(teacher, 4, seed=0)
    take_rounded(student, small)
    with torch.no_grad():
        student.norm.weight[3] *= 1.5  # type: ignore[index,operator]
    with pytest.raises(QatParityFailed, match="foretells 4 otherwise than the model that is trained"):
        check_low_bits(student, small, decoder_form(student), rows)


# -- the loss ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
def test_the_loss_and_its_gradients_are_the_formula_s(monkeypatch: pytest.MonkeyPatch, alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    states, wanted = (torch.randn(7, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    head, theirs = (torch.randn(5, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    said = torch.tensor([0, 4, 1, 1, 3, 2, 0])

    def formula(states: Tensor, head: Tensor) -> Tensor:
        learned = functional.log_softmax(states @ head.T, -1)
        target = functional.log_softmax(wanted @ theirs.T, -1)
        divergence = functional.kl_div(learned, target, log_target=True, reduction="batchmean")
        return alpha * divergence + (1 - alpha) * functional.nll_loss(learned, said)

    found = list[list[Tensor]]()
    monkeypatch.setattr(taught_decoder, "_LOGITS", 10)  # two places at a time
    for loss in (formula, lambda s, h: teaching_loss(s, h, wanted, theirs, said, alpha=alpha)):
        mine = [states.clone().requires_grad_(), head.clone().requires_grad_()]
        value = loss(*mine)
        torch.autograd.backward(3 * value)
        found.append([value.detach(), *(each.grad for each in mine if each.grad is not None)])
    for expected, answer in zip(*found, strict=True):
        torch.testing.assert_close(answer, expected)


# -- training ---------------------------------------------------------------------------------------------------------
def test_training_takes_back_what_4_bits_cost_and_an_interrupted_one_ends_in_the_same_weights(
    teacher: CausalDecoder, small: ModelProto
) -> None:
    rows, validation, judged = (continued(teacher, count, seed=seed) for count, seed in ((512, 2), (16, 3), (256, 4)))
    form = decoder_form(teacher)

    def nats(file: ModelProto | bytes) -> float:
        data = file if isinstance(file, bytes) else file.SerializeToString()
        return -float(small_scores(data, form, judged).mean())

    def taught() -> TaughtDecoder:
        student = copy.deepcopy(teacher)
        take_rounded(student, small)
        return TaughtDecoder(student, teacher, alpha=1.0)

    whole = taught()
    fitted = train(whole, rows, validation)
    made = put_back(whole.decoder, small)
    check_low_bits(whole.decoder, made, form, judged[:4])
    best, before, after = nats(write_decoder(teacher)), nats(small), nats(made)
    assert before > best + 0.01
    assert after - best < 0.7 * (before - best), (best, before, after)
    assert [len(i.raw_data) for i in made.graph.initializer] == [len(i.raw_data) for i in small.graph.initializer]

    checkpoints, stopped, resumed = Memory(kill_at=2), taught(), taught()
    with pytest.raises(KeyboardInterrupt):
        train(stopped, rows, validation, checkpoints=checkpoints)
    checkpoints.kill_at = 0
    again = train(resumed, rows, validation, checkpoints=checkpoints)
    assert again.resumed_at == 2 and again.history == fitted.history
    assert_same(whole, resumed)
    assert not any("teacher" in name for name in whole.state_dict())


# -- as a stage -------------------------------------------------------------------------------------------------------
@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    with kept_processes():
        yield


SCALE = {"width": 0.34}


def trained_decoder(store: Store, folder: Path) -> tuple[Job, DataRef, TrainingData, Variant]:
    """What stages ask for: a job, texts, the same as they are trained on, and a decoder of :data:`SCALE`."""
    ref = WorkloadRef(path="winnow:CausalLM", arguments={"source": str(texts(folder / "texts")), "tokens": 16})
    workload = load_workload(ref)
    columns = workload.splits()
    model = build(workload, "teacher", SCALE)
    trained = TrainingData(workload, columns["train"], columns["validation"])
    fit(model, trained, Training(epochs=2, batch_size=32, learning_rate=3e-3), device="cpu")
    structure, sample = ModelStructure(role="teacher", scale=SCALE), columns["validation"]
    teacher = save(store, model, workload=workload, structure=structure, sample=sample, name="teacher", stage="train")
    job = Job(run_id="test-run", model="small", store=store.uri, workload=ref, device="cpu")
    data = store_splits(store, columns).model_copy(update={"task": "other", "language": LanguageRef()})
    return job, data, trained, teacher


@pytest.mark.usefixtures("processes")
def test_a_decoder_s_variant_is_trained(store: Store, tmp_path: Path) -> None:
    job, data, _, teacher = trained_decoder(store, tmp_path)
    fp32 = export.task.fn(job, ExportSpec(), data=data, parent=teacher).variant
    quantizing = QuantizeSpec(methods=("weights4", "mixed"), max_bytes=fp32.size // 3)
    made = quantize.task.fn(job, quantizing, data=data, parent=fp32)
    low, mixed = (made.by_role(method) for method in quantizing.methods)
    assert low is not None and mixed is not None

    spec = QatSpec(epochs=2, batch_size=16, learning_rate=0.01, alpha=1.0)
    found = qat.task.fn(job, spec, data=data, parent=low, teacher=teacher, float_parent=teacher)
    variant, values = found.variant, found.values
    assert (found.name, variant.name, variant.stage) == ("qat:teacher.weights4", "teacher.weights4-qat", "qat")
    assert variant.digest != low.digest
    assert {f.path: f for f in variant.files[1:]} == {f.path: f for f in low.files[1:]}
    cost, given = values["variants"][variant.digest], made.values["variants"][low.digest]
    assert (cost["parameters"], cost["macs"], cost["bytes"]) == (given["parameters"], given["macs"], given["bytes"])
    assert values["parity"]["rows"] == 4 and values["parity"]["largest"] < 1e-3
    assert values["trainable"] > 100_000
    assert values["validation"]["qat"] == pytest.approx(values["val_metric"], abs=0.05)
    assert values["validation"]["qat"] < values["validation"]["parent"] + 0.01
    entry = found.file("teacher.weights4-qat.history.jsonl")
    assert entry is not None
    assert [json.loads(line)["epoch"] for line in store.fetch_bytes(entry).splitlines()] == [1, 2]
    with pytest.raises(QatUnsupported, match="is a decoder, and what it was made of or its teacher is no torch model"):
        qat.task.fn(job, spec, data=data, parent=low, teacher=teacher, float_parent=fp32)
    split_up = job.model_copy(update={"parallel": Parallel(exact=False, processes=2)})
    with pytest.raises(QatUnsupported, match="torch's engines do not train weights on a grid"):
        qat.task.fn(split_up, spec, data=data, parent=low, teacher=teacher, float_parent=teacher)

    assert fp32.size // 4 < mixed.file("model.onnx").size <= fp32.size // 3
    found = qat.task.fn(job, spec, data=data, parent=mixed, teacher=teacher, float_parent=teacher)
    assert (found.name, found.variant.name) == ("qat:teacher.mixed", "teacher.mixed-qat")
    assert found.variant.file("model.onnx").size == mixed.file("model.onnx").size
    assert 50_000 < found.values["trainable"] < values["trainable"] * 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"quantize": {"methods": ["weights8"]}}, r"quantize.methods is \[weights8\]; add one of them, or remove qat"),
        ({}, r"weights4 or mixed makes .* quantize.methods is \[\]; add one"),
        (
            {"quantize": {"methods": ["weights4"]}, "search": {"minutes": 5}},
            "a search trains no language model's 4 bits",
        ),
    ],
)
def test_training_4_bits_that_are_not_there_is_refused_before_anything_is_computed(
    more: dict[str, Any], says: str
) -> None:
    asked = {"schema": 1, "model": "x", "workload": {"path": "winnow:CausalLM"}, "qat": {}, "budget": {}} | more
    with pytest.raises(SpecError, match=says):
        refuse_misplaced(parse_spec(asked, "here"), language_data(LanguageRef()))
