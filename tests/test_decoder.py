"""Models that continue text: read from folders and GGUF files, written as ONNX, made small; each against formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from decoder_folders import CONFIGS, CONTEXT, HEADS, KV_HEADS, LAYERS, SIZE, VOCABULARY, decoder_folder, next_logits
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from model_registry.decoder_form import LOGITS, MOST, SEEN, DecoderForm, log_probabilities, score_tokens
from model_registry.manifest import describe_files
from model_registry.text_input import DECODER
from model_registry.variant import Variant
from serving.engine import Engine
from serving.engines.batch_certificate import certify
from serving.exceptions import EngineLoadError
from tasks.export.decoder_onnx import decoder_form, write_decoder
from tasks.export.decoder_parity import check_decoder_parity
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.quantize.answer_rounding import input_products, inverse_root, round_by_answers
from tasks.quantize.decoder_cache import channel_scales, shrink_cache
from tasks.quantize.decoder_forms import decoder_forms, decoder_scores
from tasks.quantize.decoder_weights import decoder_products, quantize_decoder, table_of
from tasks.quantize.weight_only import round_blocks
from tasks.running.errors import DataReadError, ParityFailed
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.workloads.causal_decoder import CausalDecoder
from tasks.workloads.decoder_folder import read_decoder_folder
from tasks.workloads.gguf_decoder import GgufFile, read_chat_template

TOKENS = [5, 17, 17, 250, 3, 99, 120, 8, 41, 299, 7, 64]


def decoder(folder: Path, kind: str) -> CausalDecoder:
    found = read_decoder_folder(decoder_folder(folder, kind))
    model = found.into(CausalDecoder(found.shape))
    return model.eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_s_decoder_answers_as_the_papers_formulas_do(tmp_path: Path, kind: str) -> None:
    model = decoder(tmp_path, kind)
    wanted = next_logits(kind, TOKENS)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        np.testing.assert_allclose(model.logits(model.states(tokens))[0], wanted, atol=2e-4, rtol=1e-4)
        scores = model(tokens)[0]
    expected = log_probabilities(wanted[:-1].astype(np.float32), np.array(TOKENS[1:]))
    np.testing.assert_allclose(scores, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_file_answers_as_the_model_does_whole_in_steps_and_beside_others(tmp_path: Path, kind: str) -> None:
    model = decoder(tmp_path, kind)
    rows = torch.randint(0, VOCABULARY, (3, 30), generator=torch.Generator().manual_seed(0))
    found = check_decoder_parity(model, write_decoder(model), decoder_form(model), rows, tolerance=1e-4)
    assert len(found) == 1 + 2 * 5 + 3
    assert max(parity.difference for parity in found) < 1e-4


def test_a_file_of_other_weights_is_found_out(tmp_path: Path) -> None:
    model = decoder(tmp_path, "qwen2")
    data, rows = write_decoder(model), torch.tensor([TOKENS] * 3)
    with torch.no_grad():
        model.words.weight[17] *= 1.1
    with pytest.raises(ParityFailed, match="log-probabilities of the exported decoder differ"):
        check_decoder_parity(model, data, decoder_form(model), rows, tolerance=1e-4)


def test_equal_weights_give_equal_bytes_and_a_student_has_its_teacher_s_layers(tmp_path: Path) -> None:
    found = read_decoder_folder(decoder_folder(tmp_path, "llama"))
    whole, again = (found.into(CausalDecoder(found.shape)) for _ in range(2))
    assert write_decoder(whole) == write_decoder(again)
    student = found.into(CausalDecoder(found.shape, [0, 2]))
    assert decoder_form(student).layers == 2
    assert torch.equal(student.layers["2"].up.weight, whole.layers["2"].up.weight)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "t5"}, "is of type 't5'; models of the types llama, mistral"),
        ({"auto_map": {"x": "y"}}, "code of its own"),
        ({"hidden_act": "snake"}, "activation 'snake'; known are"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "scales its places by 'yarn'"),
        ({"attention_bias": True}, "biases in its attention"),
        ({"partial_rotary_factor": 0.5}, "turns 50% of each head's features"),
        ({"num_hidden_layers": 4}, "lack 'layers.3.norm1.weight'"),
        ({"intermediate_size": 97}, r"layers.0.gate.weight in .* is \[96, 64\]; its config asks for \[97, 64\]"),
        ({"hidden_size": None}, "."),
    ],
)
def test_folders_that_are_refused_say_why(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    folder = decoder_folder(tmp_path, "llama", **change)
    if change.get("hidden_size", 0) is None:
        config = json.loads((folder / "config.json").read_text())
        del config["hidden_size"]
        (folder / "config.json").write_text(json.dumps(config))
        says = "does not say 'hidden_size'"
    with pytest.raises(DataReadError, match=says):
        read_decoder_folder(folder)


def test_what_ends_an_answer_and_a_longer_reach_of_places(tmp_path: Path) -> None:
    folder = decoder_folder(tmp_path, "llama", rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_theta=5000.0)
    (folder / "generation_config.json").write_text('{"eos_token_id": [4, 9]}')
    shape = read_decoder_folder(folder).shape
    assert (shape.begin, shape.end, shape.context) == (1, (4, 9), CONTEXT)
    assert shape.rotation is not None
    assert shape.rotation[1] == pytest.approx(5000.0 ** (-2 / SIZE) / 2)
    assert read_decoder_folder(decoder_folder(tmp_path / "m", "mistral")).shape.context == 32  # its window
    assert read_decoder_folder(decoder_folder(tmp_path / "g", "gpt2")).shape.end == (2, 3)


# -- GGUF -------------------------------------------------------------------------------------------------------------
PIECES = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "1", "2", "th", "the", "Ġthe", "<|end|>"]
_GGUF = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf(path: Path, kind: str = "llama", **change: Any) -> Path:
    """The decoder of the folder "llama" as llama.cpp's converter writes it, matrices in 8 bits."""
    from decoder_folders import FEATURES, HIDDEN, tensors

    writer = GGUFWriter(path, kind)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(FEATURES)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(change.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(change.get("pre", "smollm"))
    pieces = [*PIECES, *(f"[{n}]" for n in range(VOCABULARY - len(PIECES)))]
    writer.add_token_list(pieces)
    writer.add_token_types([3 if piece == "<|end|>" else 1 for piece in pieces])
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_eos_token_id(PIECES.index("<|end|>"))
    writer.add_chat_template("{{ messages[0].content }}")
    for name, value in tensors("llama").items():
        name = name.removeprefix("model.")
        known = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
        theirs = {**known, "lm_head.weight": "output.weight"}.get(name, "")
        if not theirs:
            _, number, rest = name.split(".", 2)
            theirs = f"blk.{number}.{_GGUF[rest.removesuffix('.weight')]}.weight"
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(_GGUF[rest.removesuffix(".weight")])
            if heads:  # pairs of features become neighbours
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if value.ndim == 2:
            kept = GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, quantize(value, kept), raw_dtype=kept)
        else:
            writer.add_tensor(theirs, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_has_the_folder_s_weights_its_tokenizer_and_its_template(tmp_path: Path) -> None:
    file = GgufFile(gguf(tmp_path / "model.gguf"))
    found, wanted = file.decoder(), read_decoder_folder(decoder_folder(tmp_path / "folder", "llama"))
    assert found.shape.end == (PIECES.index("<|end|>"),)
    assert not found.shape.tied
    for name, weight in wanted.weights.items():
        torch.testing.assert_close(found.weights[name], weight, atol=0.01, rtol=0.01)
    tokenizer = file.tokenizer()
    assert tokenizer.encode("in the 12").tokens == ["i", "n", "Ġthe", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("the end<|end|>").ids) == "the end"
    assert file.chat_template() == "{{ messages[0].content }}"


def test_gguf_files_that_are_refused_say_why(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(DataReadError, match="is no GGUF file"):
        GgufFile(tmp_path / "no.gguf")
    with pytest.raises(DataReadError, match="is of type 'mamba'; types that can be read: llama"):
        GgufFile(gguf(tmp_path / "kind.gguf", "mamba"))
    with pytest.raises(
        DataReadError, match=r"tokenizer of the kind 'llama', 'default'; put the model's tokenizer\.json"
    ):
        GgufFile(gguf(tmp_path / "sentencepiece.gguf", tokenizer="llama", pre="default")).tokenizer()


@pytest.mark.parametrize(
    ("name", "content", "template"),
    [
        ("chat_template.jinja", "{{ x }}", "{{ x }}"),
        ("tokenizer_config.json", '{"chat_template": "{{ y }}"}', "{{ y }}"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ z }}"}]}',
            "{{ z }}",
        ),
        ("tokenizer_config.json", "{}", None),
        ("other.json", "{}", None),
    ],
)
def test_the_chat_template_of_a_folder(tmp_path: Path, name: str, content: str, template: str | None) -> None:
    (tmp_path / name).write_text(content)
    assert read_chat_template(tmp_path) == template


# -- small weights ----------------------------------------------------------------------------------------------------
ROWS = np.random.default_rng(1).integers(0, VOCABULARY, (4, 24))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2"])
def test_small_weights_answer_nearly_the_same(tmp_path: Path, kind: str) -> None:
    model = decoder(tmp_path, kind)
    file, form = write_decoder(model), decoder_form(model)
    wanted = decoder_scores(file, form, ROWS)
    made, skipped = decoder_forms(
        file, form, ROWS, wanted, ["weights8", "static", "weights4", "dynamic"], "float32", lambda *_: None
    )
    assert [each.method for each in made] == ["weights8", "weights4", "dynamic"]
    assert "weights8, weights4, mixed and dynamic make small forms" in skipped["static"]
    eight, four, rows = made
    assert eight.facts["error"] < 0.01 < four.facts["error"] < 0.2
    assert eight.facts["parameters"] == four.facts["parameters"] == onnx_cost(onnx.load_from_string(file)).parameters
    assert eight.facts["share"] == 1.0 and not eight.any_cpu
    tied = kind != "llama"
    assert len(eight.data) < (0.33 if tied else 0.36) * len(file)
    assert len(four.data) < len(eight.data)
    assert rows.facts["error"] < 0.05 and rows.facts["share"] == 1.0 and rows.facts["fp32_layers"] == []
    assert len(rows.data) < 0.5 * len(file), "a tiny graph has more nodes than weights"


def test_the_head_multiplies_with_the_very_bytes_that_tokens_are_looked_up_in(tmp_path: Path) -> None:
    model = decoder(tmp_path, "qwen2")
    plain = onnx.load_from_string(write_decoder(model))
    assert table_of(plain) == "words"
    small = quantize_decoder(plain, dict.fromkeys(decoder_products(plain), 8))
    by_kind = {node.op_type: node for node in small.graph.node}
    head = next(node for node in small.graph.node if node.output[0] == "logits")
    assert head.op_type == "MatMulNBits" and head.input[1] == by_kind["GatherBlockQuantized"].input[0]
    assert "words" not in {i.name for i in small.graph.initializer}
    assert sum(i.name == "words_int8" for i in small.graph.initializer) == 1


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_keys_and_values_in_int8_answer_nearly_the_same_and_in_whatever_pieces_the_same(
    tmp_path: Path, kind: str
) -> None:
    model = decoder(tmp_path, kind)
    file, form = write_decoder(model), decoder_form(model)
    plain = onnx.load_from_string(file)
    graph, small = shrink_cache(plain, form, channel_scales(plain, form, ROWS))
    assert small.token_bytes * 4 == form.token_bytes
    assert onnx_cost(graph).parameters == onnx_cost(plain).parameters
    data = graph.SerializeToString()
    found, wanted = decoder_scores(data, small, ROWS), decoder_scores(file, form, ROWS)
    assert 0 < np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).mean()

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names, cache = [LOGITS, *small.present], dict[str, Any]()
    whole = session.run(names, small.feeds(ROWS, wanted=24))
    assert {value.dtype for value in whole[1:]} == {np.dtype(np.int8)}
    for at in range(24):  # one token after the other
        feeds = small.feeds(ROWS[:, at : at + 1], wanted=1) | cache
        feeds |= {SEEN: np.full(len(ROWS), at, np.int32), MOST: np.array(at + 1, np.int32)}
        logits, *present = session.run(names, feeds)
        cache = dict(zip(small.past, present, strict=True))
        np.testing.assert_allclose(logits[:, 0], whole[0][:, at], atol=1e-4)

    (made,), _ = decoder_forms(file, form, ROWS, wanted, ["weights8"], "int8", lambda *_: None)
    assert DecoderForm.from_json(made.assets[DECODER]) == small and made.facts["kv_cache"] == "int8"
    assert made.facts["error"] < 0.05


def test_a_channel_that_is_never_there_has_a_scale_too(tmp_path: Path) -> None:
    model = decoder(tmp_path, "qwen2")
    attention = model.layers["0"].attention
    with torch.no_grad():
        attention.value.weight[:3] = 0.0  # type: ignore[operator, union-attr]
        attention.value.bias[:3] = 0.0  # type: ignore[operator, union-attr]
    plain, form = onnx.load_from_string(write_decoder(model)), decoder_form(model)
    scales = channel_scales(plain, form, ROWS)[form.past[1]]
    np.testing.assert_array_equal(scales[:3], 1.0)
    assert (scales[3:] > 0).all() and np.isfinite(scales).all()


def test_ids_outside_the_table_never_reach_it(tmp_path: Path) -> None:
    """GatherBlockQuantized answers zeros for them; who asks checks them first."""
    model = decoder(tmp_path, "qwen2")
    plain = onnx.load_from_string(write_decoder(model))
    small = quantize_decoder(plain, dict.fromkeys(decoder_products(plain), 8)).SerializeToString()
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"token 300 is none of the model's, which are 0 to 299"):
        score_tokens(
            lambda names, feeds: session.run(list(names), dict(feeds)), decoder_form(model), np.array([[1, VOCABULARY]])
        )


# -- as a variant -----------------------------------------------------------------------------------------------------
def variant(folder: Path, data: bytes, form: DecoderForm, **change: Any) -> Variant:
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    (folder / DECODER).write_bytes(form.to_json())
    files = tuple(describe_files(folder / name, name) for name in ("model.onnx", DECODER))
    said = {"inputs": form.inputs, "outputs": form.outputs, **change}
    return Variant(name="small", stage="quantize", format="onnx", files=files, **said)


@pytest.fixture
def small(tmp_path: Path) -> tuple[bytes, DecoderForm]:
    model = decoder(tmp_path / "folder", "qwen2")
    plain = onnx.load_from_string(write_decoder(model))
    data = quantize_decoder(plain, dict.fromkeys(decoder_products(plain), 8)).SerializeToString()
    return data, decoder_form(model)


def test_the_engine_runs_it_like_any_model_and_no_row_depends_on_its_neighbours(
    tmp_path: Path, small: tuple[bytes, DecoderForm]
) -> None:
    data, form = small
    engine = Engine(tmp_path / "v", variant(tmp_path / "v", data, form))
    engine.warm_up()
    assert engine.graph_outputs == ("log_probabilities",)
    found = engine.run({"tokens": ROWS})["log_probabilities"]
    assert found.shape == (4, 23)
    np.testing.assert_array_equal(found, decoder_scores(data, form, ROWS))
    assert certify(engine, data).kind == "exact"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda form: form.model_copy(update={"layers": 2}), "tells of the inputs .* and the graph has"),
        (
            lambda form: form.model_copy(update={"kv_cache": "int8"}),
            r"keeps keys and values as tensor\(float\), and .* tells of tensor\(int8\)",
        ),
        (lambda form: form.model_copy(update={"vocabulary": 301}), "answers logits of 300 tokens, and .* tells of 301"),
    ],
)
def test_a_file_that_is_not_what_is_said_of_it_is_refused(
    tmp_path: Path, small: tuple[bytes, DecoderForm], change: Callable[[DecoderForm], DecoderForm], says: str
) -> None:
    data, form = small
    with pytest.raises(EngineLoadError, match=says):
        Engine(tmp_path / "v", variant(tmp_path / "v", data, change(form)))


def test_four_bits_are_rounded_by_what_a_layer_answers(tmp_path: Path) -> None:
    """Inputs that vary together: the error of one weight is made up for by others."""
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((2000, 8)) @ draw.standard_normal((8, 64)) + 0.1 * draw.standard_normal((2000, 64))
    matrix = draw.standard_normal((24, 64)).astype(np.float32)
    values, scales = round_by_answers(matrix, inverse_root(inputs.T @ inputs), 32)
    assert values.min() >= -8 and values.max() <= 7 and scales.shape == (24, 2)
    nearest, theirs = round_blocks(np.ascontiguousarray(matrix.T), 32)

    def error(numbers: Any, by: Any) -> float:
        wrong = matrix - numbers * np.repeat(by, 32, axis=1)
        return float(np.square(inputs @ wrong.T).mean())

    assert error(values, scales) < 0.5 * error(nearest.T, theirs.T)
    asleep = inputs * (np.arange(64) != 5)  # an input that is never there
    assert np.isfinite(round_by_answers(matrix, inverse_root(asleep.T @ asleep), 32)[1]).all()


def test_what_layers_are_asked_is_what_the_model_s_are(tmp_path: Path) -> None:
    model = decoder(tmp_path, "qwen2")
    found = input_products(onnx.load_from_string(write_decoder(model)), decoder_form(model), ROWS)
    with torch.no_grad():
        hidden = model.words(torch.from_numpy(ROWS))
        asked = model.layers["0"].norm1(hidden).reshape(-1, hidden.shape[-1]).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found["layers_0_qkv_weight"], asked.T @ asked, rtol=1e-3, atol=1e-3)
    assert found.keys() == decoder_products(onnx.load_from_string(write_decoder(model))).keys()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_units_of_the_dense_parts_can_be_pruned_and_nothing_else(tmp_path: Path, kind: str) -> None:
    model, rows = decoder(tmp_path, kind), torch.from_numpy(ROWS)
    pruner = ChannelPruner(model, {"tokens": rows}, ratio=0.5, round_to=32)
    pruner.step()
    assert {name.rpartition(".")[2] for name, _, _ in pruner.plan} <= {"up", "gate"}
    for name, linear in model.named_modules():
        if name.endswith(".up") and isinstance(linear, torch.nn.Linear):
            assert linear.out_features in (32, 128)
    check_decoder_parity(model, write_decoder(model), decoder_form(model), rows, tolerance=1e-4)
