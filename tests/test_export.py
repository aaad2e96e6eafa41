"""Export: one stripped, deterministic file with the preprocessing inside; parity; refusals that name the line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tasks.export.onnx_export import OPSET, export_onnx
from tasks.export.parity import check_parity
from tasks.export.raw_inputs import Inputs, RawInputs
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import signature, strip
from tasks.running.errors import ExportRefused, ParityFailed

pytestmark = pytest.mark.slow  # trains or exports real networks


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(image))), 2)
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), Gate())

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.block(x)
        return answer


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4) + 1


class CountedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) * 2


class TwoAnswers(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(5, 1)

    def forward(self, number: Tensor, kind: Tensor) -> Tensor:
        mixed: Tensor = self.mix(torch.cat([number, self.embed(kind)], dim=1))
        return mixed.squeeze(1)


def scaled(inputs: Inputs) -> Inputs:
    return {name: value / 16 - 0.5 for name, value in inputs.items()}


def unchanged(inputs: Inputs) -> Inputs:
    return inputs


def small() -> tuple[RawInputs, Inputs]:
    torch.manual_seed(0)
    net = SmallNet()
    net.norm.running_mean = torch.rand(4)
    return RawInputs(net, scaled, ("image",)), {"image": torch.rand(9, 1, 8, 8) * 16}


def test_export_is_one_stripped_file_with_preprocessing_inside() -> None:
    module, inputs = small()
    data = export_onnx(module, inputs, output="logits")
    model = onnx.load_from_string(data)
    (image,), (logits,) = signature(model)
    assert (image.name, image.datatype, image.shape) == ("image", "FP32", (-1, 1, 8, 8))
    assert (logits.name, logits.datatype, logits.shape) == ("logits", "FP32", (-1, 10))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert not model.metadata_props and not model.graph.value_info and not model.producer_name
    assert all(not n.name and not n.doc_string and not n.metadata_props for n in model.graph.node)
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    assert __file__.encode() not in data and b"site-packages" not in data
    weights = 4 * 9 + 4 + 640 + 10
    assert len(data) < weights * 4 + 900
    parity = check_parity(module, data, inputs, tolerance=1e-4)
    assert [p.batch for p in parity] == [1, 2, 7]
    assert max(p.difference for p in parity) < 1e-5
    session = onnxruntime.InferenceSession(data)
    raw = inputs["image"].numpy()
    with torch.no_grad():
        wanted = module.model(inputs["image"] / 16 - 0.5).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"image": raw})[0], wanted, atol=1e-5)


def test_export_is_the_same_bytes_again_and_from_another_folder(tmp_path: Path) -> None:
    module, inputs = small()
    first = export_onnx(module, inputs, output="logits")
    assert export_onnx(module, inputs, output="logits") == first
    root = Path(__file__).parent.parent
    elsewhere = tmp_path / "checkout"
    (elsewhere / "tests").mkdir(parents=True)
    for name in ("tasks", "model_registry"):
        (elsewhere / name).symlink_to(root / name)
    (elsewhere / "tests" / "test_export.py").write_text(Path(__file__).read_text())
    script = (
        "import hashlib; from tests.test_export import small, export_onnx; module, inputs = small(); "
        "print(hashlib.sha256(export_onnx(module, inputs, output='logits')).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == hashlib.sha256(first).hexdigest()


def test_two_inputs_of_different_types() -> None:
    torch.manual_seed(1)
    module = RawInputs(TwoInputs(), unchanged, ("number", "kind"))
    inputs = {"number": torch.rand(4, 2), "kind": torch.tensor([0, 1, 4, 2])}
    data = export_onnx(module, inputs, output="prediction")
    specs, (answer,) = signature(onnx.load_from_string(data))
    assert [(s.name, s.datatype, s.shape) for s in specs] == [("number", "FP32", (-1, 2)), ("kind", "INT64", (-1,))]
    assert (answer.name, answer.shape) == ("prediction", (-1,))
    assert len(check_parity(module, data, inputs, tolerance=1e-4)) == 3


class Halved(nn.Module):
    """At half its length, as a search may cut it: of two or three steps one is left."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 4, 3, padding=1)

    def forward(self, signal: Tensor) -> Tensor:
        return torch.relu(self.mix(nn.functional.avg_pool1d(signal, 2))).mean(2)


def test_half_of_a_free_length_is_free_too() -> None:
    module = RawInputs(Halved(), unchanged, ("signal",))
    inputs = {"signal": torch.rand(5, 3, 12)}
    written = export_onnx(module, inputs, output="answer", dynamic={"signal": {2: "steps"}})
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "steps"]
    for steps in (2, 3, 12, 31):
        signal = torch.rand(2, 3, steps)
        (found,) = session.run(None, {"signal": signal.numpy()})
        np.testing.assert_allclose(found, module(signal).detach().numpy(), atol=1e-6)


def test_a_branch_on_values_is_refused_with_its_line() -> None:
    module = RawInputs(Branching(), unchanged, ("x",))
    with pytest.raises(ExportRefused, match=r"in 'block.1' \(Gate\) at test_export.py:\d+ `if x.sum\(\) > 0:`"):
        export_onnx(module, {"x": torch.rand(4, 4)}, output="logits")


def test_a_fixed_batch_is_refused_with_its_line() -> None:
    module = RawInputs(FixedBatch(), unchanged, ("x",))
    with pytest.raises(ExportRefused, match=r"two rows but not for three.*`return x.reshape\(2, 4\) \+ 1`"):
        export_onnx(module, {"x": torch.rand(4, 4)}, output="logits")


def test_a_batch_size_made_a_number_is_refused_with_its_line() -> None:
    module = RawInputs(CountedBatch(), unchanged, ("x",))
    with pytest.raises(ExportRefused, match=r"at test_export.py:\d+ in forward a size became a number \(len"):
        export_onnx(module, {"x": torch.rand(4, 4)}, output="logits")


def test_more_than_one_answer_is_refused() -> None:
    module = RawInputs(TwoAnswers(), unchanged, ("x",))
    with pytest.raises(
        ExportRefused, match=r"TwoAnswers answered tuple \(float32\[2, 4\], float32\[2, 4\]\) for two rows"
    ):
        export_onnx(module, {"x": torch.rand(4, 4)}, output="logits")


def test_parity_names_batch_and_difference() -> None:
    module, inputs = small()
    data = export_onnx(module, inputs, output="logits")
    bias = module.get_parameter("model.head.bias")
    with torch.no_grad():
        bias[3] += 0.5
    with pytest.raises(ParityFailed, match=r"at batch 1 .* differs from the model by 0.5, allowed is 0.0001") as caught:
        check_parity(module, data, inputs, tolerance=1e-4)
    assert caught.value.details["batch"] == 1
    with torch.no_grad():
        bias[3] = float("nan")
    with pytest.raises(ParityFailed, match="by nan"):
        check_parity(module, data, inputs, tolerance=1e-4)


def test_cost_counts_parameters_and_macs() -> None:
    module, inputs = small()
    model = onnx.load_from_string(export_onnx(module, inputs, output="logits"))
    cost = onnx_cost(model, {"image": (1, 1, 8, 8)})
    assert cost.macs == 4 * 64 * 9 + 640
    assert cost.parameters == 4 * 9 + 4 + 640 + 10
    assert cost.uncounted == ()


def test_strip_keeps_branches_and_drops_the_dead() -> None:
    text = """
    < ir_version: 10, opset_import: ["" : 20, "unused" : 1], producer_name: "me" >
    long_graph_name (float[N] some_input) => (float[N] some_output)
    < float[1] shared_constant = {2}, float[3] dead_weights = {1, 2, 3} >
    {
        total = ReduceSum <keepdims = 0> (some_input)
        zero = Constant <value = float {0}> ()
        positive = Greater (total, zero)
        unneeded = Add (some_input, dead_weights)
        some_output = If (positive) <
            then_branch = first () => (float[N] doubled) { doubled = Mul (some_input, shared_constant) },
            else_branch = second () => (float[N] halved) { halved = Div (some_input, shared_constant) }
        >
    }
    """
    model = onnx.parser.parse_model(text)
    data = strip(model)
    small = onnx.load_from_string(data)
    assert [n.op_type for n in small.graph.node] == ["ReduceSum", "Greater", "If"]
    assert sorted(list(i.dims) for i in small.graph.initializer) == [[], [1]]
    assert [o.domain for o in small.opset_import] == [""]
    assert strip(small) == data
    shuffled = onnx.load_from_string(data)
    del shuffled.graph.initializer[:]
    shuffled.graph.initializer.extend(reversed(small.graph.initializer))
    assert strip(shuffled) == data
    session = onnxruntime.InferenceSession(data)
    assert session.run(None, {"some_input": np.array([1, 2], np.float32)})[0].tolist() == [2, 4]
    assert session.run(None, {"some_input": np.array([-1, -2], np.float32)})[0].tolist() == [-0.5, -1]


def test_strip_knows_both_spellings_of_the_standard_domain() -> None:
    text = '<ir_version: 8, opset_import: ["ai.onnx" : 20]> g (float[N] x) => (float[N] y) { y = ai.onnx.Relu (x) }'
    small = onnx.load_from_string(strip(onnx.parser.parse_model(text)))
    assert [(o.domain, o.version) for o in small.opset_import] == [("", 20)]
    assert onnxruntime.InferenceSession(small.SerializeToString()).run(None, {"x": np.array([-1], np.float32)})[0] == 0
