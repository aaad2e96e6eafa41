"""A decoder as one ONNX file whose keys and values go in and out, written operator by operator.

An exporter that traces needs a minute for the graph of a small decoder, fixes the batch, loses the mask, and hides the
head's weights behind a transposition; this takes a second, and quantizers find every matrix. Attention and norms are
ONNX Runtime's own operators (domain com.microsoft): GroupQueryAttention keeps keys and values in one buffer that grows
in place. See :mod:`model_registry.decoder_form` for what goes in and out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor, nn

from model_registry.decoder_form import LOGITS, MOST, SEEN, TOKENS, WANTED, DecoderForm
from tasks.workloads.causal_decoder import CausalDecoder, DecoderLayer

OPSET = 20
_OURS = "com.microsoft"


def decoder_form(model: CausalDecoder) -> DecoderForm:
    """What goes with the file."""
    shape = model.shape
    return DecoderForm(
        vocabulary=shape.vocabulary,
        layers=len(model.layers),
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        context=shape.context,
        begin=shape.begin,
        end=shape.end,
    )


def write_decoder(model: CausalDecoder) -> bytes:
    """The decoder as ONNX. Equal weights give equal bytes."""
    data: bytes = _Writer(model).made().SerializeToString(deterministic=True)
    return data


class _Graph:
    """Nodes and constants as they come."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}

    def _constant(self, name: str, *parts: Tensor | NDArray[np.generic] | None, axis: int = 0) -> str:
        arrays = [part.detach().cpu().numpy() if isinstance(part, Tensor) else part for part in parts]
        self.constants[name] = np.ascontiguousarray(np.concatenate(arrays, axis=axis))  # type: ignore[arg-type]
        return name

    def _number(self, name: str, value: np.generic) -> str:
        self.constants[name] = np.array(value)
        return name

    def _node(self, kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        return self._nodes(kind, inputs, [output], **attributes)[0]

    def _nodes(self, kind: str, inputs: Iterable[str], outputs: Sequence[str], **attributes: Any) -> Sequence[str]:
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return outputs


class _Writer(_Graph):
    """Writes the parts of a decoder in their order."""

    def __init__(self, model: CausalDecoder) -> None:
        super().__init__()
        self.model, self.shape, self.form = model, model.shape, decoder_form(model)
        self.stream = ""
        """What the layers add to."""

    def made(self) -> ModelProto:
        self._embed()
        normed = self._norm("layers_0_norm1", self._layer(0).norm1)
        for number in range(self.form.layers):
            normed = self._one(number, normed)
        self._head(normed)
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            _inputs(self.form),
            _outputs(self.form),
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_OURS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    # -- parts ----------------------------------------------------------------------------------------------------
    def _embed(self) -> None:
        words = self._constant("words", self.model.words.weight)
        self.stream = self._node("Gather", [words, TOKENS], "embedded")
        if self.shape.scaled:
            root = self._number("embedding_scale", np.float32(math.sqrt(self.shape.features)))
            self.stream = self._node("Mul", [self.stream, root], "embedded_scaled")
        if self.model.places is not None:
            self.stream = self._node("Add", [self.stream, self._placed(self.model.places)], "placed")
        else:
            assert self.shape.rotation is not None
            angles = np.outer(
                np.arange(self.shape.context, dtype=np.float32), np.array(self.shape.rotation, np.float32)
            )
            self.constants["cosines"], self.constants["sines"] = np.cos(angles), np.sin(angles)

    def _placed(self, table: nn.Embedding) -> str:
        """Rows of the table of places: what was seen, up to each token."""
        one = self._number("one", np.int64(1))
        length = self._node("Gather", [self._node("Shape", [TOKENS], "sizes"), one], "length")
        steps = self._node("Range", [self._number("zero", np.int64(0)), length, one], "steps")
        last = self._node("Cast", [SEEN], "last", to=TensorProto.INT64)
        first = self._node("Add", [self._node("Sub", [last, length], "before"), one], "first")
        self.constants["column"] = np.array([1], np.int64)
        # Of a text that is shorter than others beside it the first tokens are at the beginning all the same.
        first = self._node("Max", [first, "zero"], "first_inside")
        rows = self._node("Add", [self._node("Unsqueeze", [first, "column"], "firsts"), steps], "places_of")
        return self._node("Gather", [self._constant("places", table.weight), rows], "places_added")

    def _one(self, number: int, normed: str) -> str:
        """A layer, from the norm of the stream to that which the next one begins with."""
        layer, name = self._layer(number), f"layers_{number}"
        added = self._linear(f"{name}_out", self._attention(number, normed), [layer.attention.out])
        normed = self._norm(f"{name}_norm2", layer.norm2, added)
        up = [layer.up] if layer.gate is None else [layer.gate, layer.up]
        wide = self._linear(f"{name}_up", normed, up)
        if layer.gate is not None:
            gate, wide = self._nodes("Split", [wide], [f"{name}_gate", f"{name}_wide"], axis=-1, num_outputs=2)
            wide = self._node("Mul", [self._active(name, gate), wide], f"{name}_gated")
        else:
            wide = self._active(name, wide)
        added = self._linear(f"{name}_down", wide, [layer.down])
        if number + 1 < self.form.layers:
            return self._norm(f"layers_{number + 1}_norm1", self._layer(number + 1).norm1, added)
        return self._norm("norm", self.model.norm, added)

    def _attention(self, number: int, normed: str) -> str:
        attention, name = self._layer(number).attention, f"layers_{number}"
        past, present = self.form.past[2 * number :][:2], self.form.present[2 * number :][:2]
        parts = [attention.query, attention.key, attention.value]
        if attention.query_norm is None or attention.key_norm is None:
            asked = [self._linear(f"{name}_qkv", normed, parts), "", ""]
        else:
            query, key, value = (
                self._linear(f"{name}_{part}", normed, [linear])
                for part, linear in zip(("query", "key", "value"), parts, strict=True)
            )
            query = self._by_head(f"{name}_query", query, attention.query_norm)
            asked = [query, self._by_head(f"{name}_key", key, attention.key_norm), value]
        turns = ["cosines", "sines"] if self.shape.rotation is not None else []
        found, _, _ = self._nodes(
            "GroupQueryAttention",
            [*asked, *past, SEEN, MOST, *turns],
            [f"{name}_attended", *present],
            domain=_OURS,
            num_heads=self.shape.heads,
            kv_num_heads=self.shape.kv_heads,
            do_rotary=int(bool(turns)),
        )
        return found

    def _by_head(self, name: str, value: str, norm: nn.RMSNorm) -> str:
        """Queries or keys [N, length, heads x size], normed by head."""
        self.constants["by_head"] = np.array([0, 0, -1, self.shape.head_size], np.int64)
        self.constants["joined"] = np.array([0, 0, -1], np.int64)
        split = self._node("Reshape", [value, "by_head"], f"{name}_heads")
        weight = self._constant(f"{name}_norm", norm.weight)
        normed = self._node(
            "SimplifiedLayerNormalization", [split, weight], f"{name}_normed", axis=-1, epsilon=self.shape.epsilon
        )
        return self._node("Reshape", [normed, "joined"], f"{name}_joined")

    def _head(self, normed: str) -> None:
        """Logits of the last tokens alone: the head is a fifth of a small model's work."""
        self.constants["middle"], self.constants["far"] = np.array([1], np.int64), np.array([1 << 62], np.int64)
        start = self._node("Neg", [WANTED], "start")
        last = self._node("Slice", [normed, start, "far", "middle"], "asked")
        if self.model.head is None:
            self._node("FusedMatMul", [last, "words"], LOGITS, domain=_OURS, transB=1)
        else:
            self._node("MatMul", [last, self._constant("head", self.model.head.weight.T)], LOGITS)

    # -- pieces ---------------------------------------------------------------------------------------------------
    def _layer(self, number: int) -> DecoderLayer:
        layer = list(self.model.layers.values())[number]
        assert isinstance(layer, DecoderLayer)
        return layer

    def _linear(self, name: str, value: str, parts: Sequence[nn.Linear]) -> str:
        """One product for several layers that are asked the same."""
        weight = self._constant(f"{name}_weight", *(part.weight.T for part in parts), axis=1)
        biases = [part.bias for part in parts]
        if biases[0] is None:
            return self._node("MatMul", [value, weight], f"{name}_product")
        product = self._node("MatMul", [value, weight], f"{name}_product")
        return self._node("Add", [product, self._constant(f"{name}_bias", *biases)], f"{name}_biased")

    def _norm(self, name: str, norm: nn.Module, added: str = "") -> str:
        """The norm of the stream, to which something is added first."""
        assert isinstance(norm, nn.RMSNorm | nn.LayerNorm)
        assert norm.weight is not None
        weights = [self._constant(f"{name}_weight", norm.weight)]
        full = isinstance(norm, nn.LayerNorm)
        if full:
            assert isinstance(norm.bias, Tensor)
            weights.append(self._constant(f"{name}_bias", norm.bias))
        kind = "LayerNormalization" if full else "SimplifiedLayerNormalization"
        if not added:
            return self._node(kind, [self.stream, *weights], f"{name}_normed", axis=-1, epsilon=self.shape.epsilon)
        self.nodes.append(
            helper.make_node(
                f"Skip{kind}",
                [self.stream, added, *weights],
                [f"{name}_normed", "", "", f"{name}_stream"],
                name=f"{name}_normed",
                domain=_OURS,
                epsilon=self.shape.epsilon,
            )
        )
        self.stream = f"{name}_stream"
        return f"{name}_normed"

    def _active(self, name: str, value: str) -> str:
        kind = self.shape.activation
        if kind == "silu":
            return self._node("QuickGelu", [value], f"{name}_active", domain=_OURS, alpha=1.0)
        if kind == "relu":
            return self._node("Relu", [value], f"{name}_active")
        return self._node("Gelu", [value], f"{name}_active", approximate="tanh" if kind == "gelu_new" else "none")


def _inputs(form: DecoderForm) -> list[ValueInfoProto]:
    cache: list[int | str | None] = ["batch", form.kv_heads, "before", form.head_size]
    return [
        helper.make_tensor_value_info(TOKENS, TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info(SEEN, TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info(MOST, TensorProto.INT32, []),
        helper.make_tensor_value_info(WANTED, TensorProto.INT64, [1]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in form.past),
    ]


def _outputs(form: DecoderForm) -> list[ValueInfoProto]:
    cache: list[int | str | None] = ["batch", form.kv_heads, "after", form.head_size]
    logits: list[int | str | None] = ["batch", "asked", form.vocabulary]
    return [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, logits),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in form.present),
    ]
