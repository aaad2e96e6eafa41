"""Quantization-aware training: the graph in torch answers as ONNX Runtime does, learns, and is written back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.export.onnx_export import export_onnx
from tasks.export.raw_inputs import RawInputs
from tasks.onnx_models.float_biases import float_biases
from tasks.onnx_models.onnx_cost import onnx_cost
from tasks.onnx_models.onnx_graph import strip
from tasks.qat.float_weights import float_weights
from tasks.qat.int8_parity import check_int8_parity, run_onnx
from tasks.qat.lsq import lsq
from tasks.qat.torch_graph import QatLayer, TorchGraph
from tasks.qat.write_back import write_back
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare
from tasks.running.errors import QatParityFailed, QatUnsupported
from tasks.torch_models.fit_threads import row_macs

pytestmark = pytest.mark.slow  # trains or exports real networks


class Net(nn.Module):
    """A residual sum, depthwise and pointwise convolutions, hard swish, both poolings, and a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.dense = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        x = torch.relu(x + self.point(functional.relu6(self.depth(x))))
        x = functional.hardswish(self.wide(functional.max_pool2d(x, 2)))
        return self.head(torch.relu(self.dense(functional.avg_pool2d(x, 2).flatten(1))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Made:
    """The fp32 file, the int8 file made of it, one calibrated badly, and rows with their classes."""

    fp32: bytes
    int8: bytes
    bad: bytes
    images: np.ndarray
    targets: np.ndarray


def striped(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images of 8 x 8 pixels from 0 to 16, in four classes by where they are bright."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % 4
    images = torch.randint(0, 11, (rows, 1, 8, 8), generator=generator).float()
    for row, side in enumerate(targets.tolist()):
        top, left = 4 * (side // 2), 4 * (side % 2)
        images[row, 0, top : top + 4, left : left + 4] += 4
    return images, targets


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("qat")
    torch.manual_seed(0)
    images, targets = striped(512, 1)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(net(images / 16), targets))
        optimizer.step()
    raw = RawInputs(net.eval(), lambda inputs: {"image": inputs["image"] / 16}, ("image",))
    fp32 = export_onnx(raw, {"image": images}, output="logits")
    good, bad = (statically(fp32, rows, folder) for rows in (images[:64], images[:64] / 4))
    test_images, test_targets = striped(400, 2)
    return Made(fp32, good, bad, test_images.numpy(), test_targets.numpy())


def statically(file: bytes, rows: Tensor, folder: Path, excluded: set[str] | None = None) -> bytes:
    quantized = quantize_statically(
        prepare(file, folder),
        RowReader({"image": rows.numpy()}),
        folder,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
        excluded=frozenset(excluded or ()),
    )
    return strip(quantized, merge_equal=True)


def graph_of(file: bytes, floats: dict[str, np.ndarray] | None = None) -> TorchGraph:
    return TorchGraph(onnx.load_from_string(file), floats)


def ask(module: TorchGraph, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module.eval()(image=torch.from_numpy(images)).numpy())


def train(module: TorchGraph, *, steps: int) -> None:
    images, targets = striped(512, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(image=images), targets))
        optimizer.step()


def test_the_graph_answers_as_onnx_runtime_does(made: Made) -> None:
    written = run_onnx(made.int8, {"image": made.images})
    found = check_int8_parity(ask(graph_of(made.int8), made.images), written, scale=None)
    assert (found.rows, found.beyond, found.flipped) == (400, 0, 0)
    assert found.largest < 0.5 and found.mean < 0.01
    assert found.step == pytest.approx(float(np.ptp(written)) / 255)


def test_training_mode_computes_the_same(made: Made) -> None:
    module = graph_of(made.int8)
    with torch.no_grad():
        training = module.train()(image=torch.from_numpy(made.images)).numpy()
    check_int8_parity(training, ask(module, made.images), scale=None)


def test_nothing_learned_is_written_back_bit_for_bit(made: Made, tmp_path: Path) -> None:
    assert strip(write_back(graph_of(made.int8)), merge_equal=True) == made.int8
    floats = float_weights(onnx.load_from_string(made.int8), made.fp32, tmp_path)
    assert len(floats) == 6
    module = graph_of(made.int8, floats)
    assert strip(write_back(module), merge_equal=True) == made.int8
    for name, original in floats.items():
        latent = module.weight(name).latent.detach().numpy()
        step = module.weight(name).step().detach().numpy()
        assert np.abs((latent - original) / step).max() < 0.02  # ties apart, it starts at the float weight


def test_weights_changed_on_the_way_are_not_taken_from_the_float_file(made: Made, tmp_path: Path) -> None:
    changed = onnx.load_from_string(made.fp32)
    weight = next(i for i in changed.graph.initializer if list(i.dims) == [16, 8, 3, 3])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    assert len(float_weights(onnx.load_from_string(made.int8), changed.SerializeToString(), tmp_path)) == 5


def test_training_mends_a_badly_calibrated_file_and_lands_in_onnx_runtime(made: Made) -> None:
    def accuracy(answers: np.ndarray) -> float:
        return float(np.mean(answers.argmax(1) == made.targets))

    rows = {"image": made.images}
    fp32, bad = accuracy(run_onnx(made.fp32, rows)), accuracy(run_onnx(made.bad, rows))
    assert fp32 > 0.95 and bad < fp32 - 0.1
    module = graph_of(made.bad)
    train(module, steps=60)
    after = strip(write_back(module), merge_equal=True)
    written = run_onnx(after, rows)
    check_int8_parity(ask(module, made.images), written, scale=None)
    assert accuracy(written) > max(bad + 0.1, fp32 - 0.05)
    before, now = onnx.load_from_string(made.bad), onnx.load_from_string(after)
    assert [n.op_type for n in now.graph.node] == [n.op_type for n in before.graph.node]
    assert onnx_cost(now) == onnx_cost(before)
    zeros = [_zero_points(model) for model in (before, now)]
    assert zeros[0] == zeros[1]


def _zero_points(model: ModelProto) -> list[int]:
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    return [int(constants[n.input[2]]) for n in model.graph.node if n.op_type == "QuantizeLinear"]


def test_scales_are_shared_where_values_only_move(made: Made) -> None:
    module = graph_of(made.int8)
    train(module, steps=3)
    model = write_back(module)
    makers = {name: node for node in model.graph.node for name in node.output}
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    after = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == pool.output[0])
    assert makers[pool.input[0]].input[1] == after.input[1]
    assert sum(n.op_type == "QuantizeLinear" for n in model.graph.node) > len(module.scales)


def test_every_layer_and_scale_learns(made: Made) -> None:
    module = graph_of(made.int8)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    train(module, steps=2)
    assert [name for name, value in module.named_parameters() if torch.equal(value, before[name])] == []


def test_constants_that_were_merged_by_accident_part_again(made: Made) -> None:
    model = onnx.load_from_string(made.int8)
    constants = {i.name: i for i in model.graph.initializer}
    biases = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], onnx.TensorProto()).data_type == 6
    ]
    alike = [node for node in biases if list(constants[node.input[0]].dims) == [8]]
    for node in alike[1:]:
        node.input[0] = alike[0].input[0]
    module = TorchGraph(model)
    train(module, steps=3)
    written = write_back(module)
    images = {"image": made.images}
    check_int8_parity(ask(module, made.images), run_onnx(strip(written, merge_equal=True), images), scale=None)


def test_biases_in_float_are_trained_as_onnx_runtime_rounds_them(made: Made) -> None:
    model = onnx.load_from_string(made.int8)
    assert float_biases(model) == 4
    file = strip(model, merge_equal=True)
    module, whole = graph_of(file), graph_of(made.int8)
    assert [layer.whole_bias for layer in module.layers.values() if isinstance(layer, QatLayer)] == 6 * [True]
    np.testing.assert_array_equal(ask(module, made.images), ask(whole, made.images))
    assert strip(write_back(module), merge_equal=True) == file
    train(module, steps=20)
    written = onnx.load_from_string(strip(write_back(module), merge_equal=True))
    values = {i.name: numpy_helper.to_array(i) for i in written.graph.initializer}
    makers = {name: node for node in written.graph.node for name in node.output}
    rounded = 0
    for node in (n for n in written.graph.node if n.op_type == "Conv" and n.input[2] in values):
        data, weight = (values[makers[name].input[1]] for name in node.input[:2])
        steps = values[node.input[2]] / (data * weight)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3 * max(1.0, np.abs(steps).max()))
        rounded += int(np.any(np.abs(steps) > 1))
    assert rounded == 4
    found = check_int8_parity(
        ask(module, made.images), run_onnx(written.SerializeToString(), {"image": made.images}), scale=None
    )
    assert found.beyond == 0 and found.flipped == 0


def test_a_layer_left_in_float_learns_with_its_repeated_scale(made: Made, tmp_path: Path) -> None:
    layers = [n.name for n in prepare(made.fp32, tmp_path).graph.node if n.op_type in ("Conv", "Gemm")]
    file = statically(made.fp32, torch.from_numpy(made.images[:64]), tmp_path, {layers[3], layers[5]})
    module = graph_of(file)
    assert len(module.graph.weights) == 4 and len(module.graph.repeated) == 2
    assert strip(write_back(module), merge_equal=True) == file
    assert len(float_weights(onnx.load_from_string(file), made.fp32, tmp_path)) == 4
    before = {name: value.detach().clone() for name, value in module.trained_floats().items()}
    train(module, steps=3)
    after = module.trained_floats()
    assert len(after) == 4 and not any(torch.equal(after[name], value) for name, value in before.items())
    written = run_onnx(strip(write_back(module), merge_equal=True), {"image": made.images})
    check_int8_parity(ask(module, made.images), written, scale=None)


def test_weights_of_seven_bits_stay_within_them(made: Made) -> None:
    model = onnx.load_from_string(made.int8)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1:
            halved = numpy_helper.to_array(tensor) // (1 if sums_saturate(cpu_class()) else 2)
            tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))
    module = TorchGraph(model)
    train(module, steps=5)
    tensors = [numpy_helper.to_array(i) for i in write_back(module).graph.initializer if i.data_type == 3]
    assert max(int(np.abs(t.astype(int)).max()) for t in tensors if t.ndim > 1) == 64


def test_the_gradient_is_that_of_the_paper() -> None:
    x = torch.tensor([[-9.0, -0.3, 0.0, 0.26, 0.7, 9.0]], requires_grad=True)
    scale = torch.tensor([0.5], requires_grad=True)
    y = lsq(x, scale, -2.0, 3.0, values=12)
    assert y.tolist() == [[-1.0, -0.5, 0.0, 0.5, 0.5, 1.5]]
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    torch.autograd.backward((y * weight).sum())
    assert x.grad is not None and scale.grad is not None
    assert x.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 5.0, 0.0]]
    steps = -2 * 1 + (-1 + 0.6) * 2 + 0 + (1 - 0.52) * 4 + (1 - 1.4) * 5 + 3 * 6
    assert scale.grad.item() == pytest.approx(steps / np.sqrt(12 * 3), rel=1e-5)


def test_a_scale_per_channel_has_gradients_of_its_own() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([[0.1], [0.2], [0.4]], requires_grad=True)
    torch.autograd.backward(lsq(x, scales, -4.0, 4.0, values=5).square().sum())
    for row in range(3):
        one = scales[row].detach().clone().requires_grad_()
        torch.autograd.backward(lsq(x[row], one, -4.0, 4.0, values=5).square().sum())
        assert scales.grad is not None and one.grad is not None
        assert scales.grad[row].item() == pytest.approx(one.grad.item(), rel=1e-4)


def test_an_operator_that_is_not_known_is_named(made: Made) -> None:
    model = onnx.load_from_string(made.int8)
    node = next(n for n in model.graph.node if n.op_type == "HardSigmoid")
    node.op_type, node.name = "Softplus", "act7"
    with pytest.raises(QatUnsupported, match=r"node 'act7' \(Softplus\): operator Softplus is not supported") as caught:
        TorchGraph(model)
    assert caught.value.details == {"node": "act7", "operator": "Softplus"}


def test_a_file_that_is_not_quantized_is_refused(made: Made) -> None:
    with pytest.raises(QatUnsupported, match="no int8 weights and activations behind DequantizeLinear"):
        graph_of(made.fp32)


def test_multiply_accumulates_of_the_layers_are_seen(made: Made) -> None:
    macs = row_macs(graph_of(made.int8), {"image": torch.from_numpy(made.images[:2])})
    assert macs == onnx_cost(onnx.load_from_string(made.fp32), {"image": (1, 1, 8, 8)}).macs


def test_other_answers_fail_the_gate() -> None:
    written = np.random.default_rng(0).normal(size=(50, 4))
    few = written.copy()
    few[3] += 1.0
    assert check_int8_parity(few, written, scale=0.1).beyond == 1
    with pytest.raises(QatParityFailed, match="of 50 validation rows the int8 file answers 50 by more than one step"):
        check_int8_parity(written + 0.11, written, scale=0.1)
    with pytest.raises(QatParityFailed):
        check_int8_parity(np.full_like(written, np.nan), written, scale=0.1)
