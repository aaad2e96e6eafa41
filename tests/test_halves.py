"""An ONNX model in two halves: where it may be cut, and that two processes answer as one does."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper
from small_int8_nets import ROWS, convolutions, float_file, int8

from tasks.compile.graph_cut import best_cuts, cuts, halves, require_cuts
from tasks.compile.halves_target import rates, served
from tasks.compile.second_half import receive_array, send_array, session
from tasks.running.errors import TargetUnsupported

pytestmark = pytest.mark.slow


@pytest.fixture
def quantized(tmp_path: Path) -> ModelProto:
    return int8(convolutions(), tmp_path, powers_of_two=False)[0]


def test_an_int8_model_is_cut_at_bytes(quantized: ModelProto) -> None:
    found = cuts(quantized)
    kinds = {node.output[0]: node.op_type for node in quantized.graph.node}
    assert "QuantizeLinear" in {kinds[cut.tensor] for cut in found}
    best = best_cuts(found)[0]
    assert kinds[best.tensor] == "QuantizeLinear", "of equal halves the one that sends least"
    whole = sum(cut.before + cut.after for cut in found) / len(found)
    assert max(best.before, best.after) < 0.8 * whole


def test_two_processes_answer_as_one(quantized: ModelProto, tmp_path: Path) -> None:
    (wanted,) = onnxruntime.InferenceSession(quantized.SerializeToString()).run(None, {"x": ROWS})
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    for path, half in zip((first, second), halves(quantized, best_cuts(cuts(quantized))[0]), strict=True):
        path.write_bytes(half.SerializeToString())
    (tmp_path / "whole.onnx").write_bytes(quantized.SerializeToString())
    with served(second) as port:
        (between,) = session(str(first)).run(None, {"x": ROWS})
        with socket.create_connection(("127.0.0.1", port)) as line:
            for _ in range(3):
                send_array(line, between)
            answers = [receive_array(line) for _ in range(3)]
            assert all(answer is not None and np.array_equal(answer, wanted) for answer in answers)
        speed = rates(tmp_path / "whole.onnx", first, port, {"x": ROWS})
    assert speed["whole"] > 0 and speed["halves"] > 0


def test_a_float_model_is_cut_too(tmp_path: Path) -> None:
    file = float_file(convolutions())
    import onnx

    found = require_cuts(cuts(onnx.load_from_string(file)))
    assert len(found) > 2 and all(cut.row_bytes > 0 for cut in found)


def test_a_graph_without_a_waist_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3])
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 3])
    model = helper.make_model(helper.make_graph(nodes, "g", [value], [output]))
    with pytest.raises(TargetUnsupported, match="nowhere in this graph is there a single tensor"):
        require_cuts(cuts(model))


def test_what_is_no_array_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((1 << 40).to_bytes(8, "big"))
        with pytest.raises(ValueError, match="are the most"):
            receive_array(theirs)
        ours.close()
        assert receive_array(theirs) is None
