"""VGG, ResNet-20 and MobileNetV2: as large as documented, for images of any size, exportable, prunable, int8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.export.onnx_export import export_onnx
from tasks.export.parity import check_parity
from tasks.export.raw_inputs import RawInputs
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_share import int8_share
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.torch_cost import torch_cost
from tasks.torch_models.torch_variant import parameter_count
from tasks.workloads.mobilenet import MobileNetClassifier
from tasks.workloads.resnet import ResNet20
from tasks.workloads.vgg import VggClassifier

pytestmark = pytest.mark.slow  # trains or exports real networks

NETWORKS = [VggClassifier, ResNet20, MobileNetClassifier]
SHAPE = (3, 32, 32)
Network = type[VggClassifier] | type[ResNet20] | type[MobileNetClassifier]


@pytest.mark.parametrize(
    ("network", "classes", "parameters", "macs"),
    [
        (VggClassifier, 36, 983_652, 118_760_448),
        (ResNet20, 10, 272_474, 40_813_184),
        (MobileNetClassifier, 36, 556_900, 17_094_656),
    ],
)
def test_they_are_as_large_as_documented(network: Network, classes: int, parameters: int, macs: int) -> None:
    cost = torch_cost(network(SHAPE, classes), {"image": torch.rand(2, *SHAPE)})
    assert (cost.parameters, cost.macs) == (parameters, macs)


def layers(model: nn.Module) -> int:
    """Convolutions and dense layers, as the paper counts them: without those of shortcuts."""
    found = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return len([name for name in found if "shortcut" not in name])


def test_depth_adds_layers_and_never_takes_the_last_of_a_stage() -> None:
    depths = (0.01, 0.5, 1.0, 2.0)
    assert [layers(ResNet20(SHAPE, 10, depth=d)) for d in depths] == [8, 14, 20, 38]
    assert [layers(VggClassifier(SHAPE, 10, depth=d)) for d in depths] == [6, 6, 9, 16]
    assert [layers(MobileNetClassifier(SHAPE, 10, depth=d)) for d in depths] == [17, 26, 38, 73]
    for depth in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be greater than 0"):
            ResNet20(SHAPE, 10, depth=depth)


def test_stride_halves_the_resolution_for_a_quarter_of_the_computing() -> None:
    inputs = {"image": torch.rand(2, *SHAPE)}
    whole, half = (torch_cost(ResNet20(SHAPE, 10, stride=stride), inputs) for stride in (1, 2))
    assert half.parameters == whole.parameters
    assert half.macs == pytest.approx(whole.macs / 4, rel=0.01)


@pytest.mark.parametrize("network", NETWORKS)
def test_width_scales_every_layer(network: Network) -> None:
    assert parameter_count(network(SHAPE, 10, width=0.5)) < 0.28 * parameter_count(network(SHAPE, 10))
    assert network(SHAPE, 10, width=0.001)(image=torch.rand(2, *SHAPE)).shape == (2, 10)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 96, 64), (1, 1, 1), (2, 3, 9), (1, 1, 40)])
def test_images_of_any_size_are_classified(network: Network, shape: tuple[int, int, int]) -> None:
    model = network(shape, 5, width=0.25).eval()
    assert model(image=torch.rand(3, *shape)).shape == (3, 5)
    assert not isinstance(model, VggClassifier) or model.dense.in_features <= 48 * 2 * 2


@pytest.mark.parametrize("network", NETWORKS)
def test_they_are_pruned_exported_and_quantized_whole(network: Network, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = network(SHAPE, 10, width=0.5, depth=0.5)
    raw = torch.rand(32, *SHAPE) * 255
    model.train()(image=raw / 255)  # BatchNorm gets to know the inputs
    before = torch_cost(model, {"image": raw[:2]})
    pruner = ChannelPruner(model, {"image": raw[:2]}, ratio=0.5)
    pruner.step()
    after = torch_cost(model, {"image": raw[:2]})
    assert after.parameters < 0.32 * before.parameters and after.macs < 0.35 * before.macs
    assert pruner.outputs == ("head",) and not pruner.untraced

    module = RawInputs(model, lambda inputs: {"image": inputs["image"] / 255}, ("image",))
    file = export_onnx(module, {"image": raw}, output="logits")
    assert [p.batch for p in check_parity(module, file, {"image": raw}, tolerance=1e-4)] == [1, 2, 7]

    prepared = prepare(file, tmp_path)
    quantized = quantize_statically(
        prepared,
        RowReader({"image": raw.numpy()}),
        tmp_path,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
    )
    share = int8_share(prepared, quantized, {"image": (1, *SHAPE)})
    assert (share.share, share.fp32_layers) == (1.0, ())
