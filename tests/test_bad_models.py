"""Models that cannot be exported as they are: refused with module, line and remedy; unusual ones that work, work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from model_registry.cpu_class import cpu_class, sums_saturate
from tasks.export.onnx_export import export_onnx
from tasks.export.parity import check_parity
from tasks.export.raw_inputs import Inputs, RawInputs
from tasks.onnx_models.onnx_graph import strip
from tasks.quantize.agreement import agree, top_answers
from tasks.quantize.calibration import RowReader
from tasks.quantize.int8_dynamic import quantize_dynamically
from tasks.quantize.int8_share import int8_share
from tasks.quantize.int8_static import quantize_statically
from tasks.quantize.prepared_graph import prepare
from tasks.running.errors import ExportRefused, WorkloadError
from tasks.torch_models.fit_rows import call_model


class Wrapped(nn.Module):
    """The bad part lies inside a larger model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.inner(self.first(x))
        return answer


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.max().item())


class CountedByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0])):
            x = x + 1
        return x


class UntilSmall(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x / 2
        return x


class RowByRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 if row[0] > 0 else row for row in x])


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.numpy())


@pytest.mark.parametrize(
    ("inner", "line"),
    [
        (Item, "return x * float(x.max().item())"),
        (CountedByValue, "for _ in range(int(x[0, 0])):"),
        (UntilSmall, "while x.norm() > 1:"),
        (RowByRow, "return torch.stack([row * 2 if row[0] > 0 else row for row in x])"),
        (ThroughNumpy, "return x + torch.from_numpy(x.numpy())"),
    ],
)
def test_what_depends_on_values_is_refused_with_module_line_and_remedy(
    inner: Callable[[], nn.Module], line: str
) -> None:
    module = RawInputs(Wrapped(inner()), lambda inputs: inputs, ("x",))
    with pytest.raises(ExportRefused) as caught:
        export_onnx(module, {"x": torch.rand(4, 4)}, output="logits")
    text = str(caught.value)
    assert "model Wrapped cannot be traced by torch.export" in text
    assert f"in 'inner' ({inner.__name__}) at test_bad_models.py:" in text and f"`{line}`" in text
    assert text.endswith("no Python branch on values, no .numpy(), .item() or fixed batch")


class Preprocessing:
    def preprocess(self, inputs: Inputs) -> Inputs:
        largest = inputs["x"].max().item()
        return {"x": inputs["x"] / (largest if largest > 0 else 1)}


def _preprocess(inputs: Inputs) -> Inputs:
    return Preprocessing().preprocess(inputs)


@pytest.mark.parametrize("preprocess", [Preprocessing().preprocess, _preprocess])
def test_a_line_of_the_preprocessing_is_named_too(preprocess: Callable[[Inputs], Inputs]) -> None:
    module = RawInputs(nn.Identity(), preprocess, ("x",))
    module.model.forward = lambda x: x
    with pytest.raises(ExportRefused, match=r"in the preprocessing at test_bad_models\.py:\d+ `return .*largest > 0"):
        export_onnx(module, {"x": torch.rand(4, 4)}, output="logits")


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x, [x.sum(1)]


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x, "features": x * 2}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Pair(), "tuple (float32[2, 4], list (float32[2]))"),
        (Named(), "dict {logits: float32[2, 4], features: float32[2, 4]}"),
    ],
)
def test_several_outputs_are_refused_by_what_they_are(model: nn.Module, told: str) -> None:
    with pytest.raises(ExportRefused) as refused:
        export_onnx(RawInputs(model, lambda inputs: inputs, ("x",)), {"x": torch.rand(4, 4)}, output="logits")
    with pytest.raises(WorkloadError) as earlier:  # where training meets it first
        call_model(model, {"x": torch.rand(2, 4)})
    for error in (refused, earlier):
        assert f"answered {told} " in str(error.value) and "one tensor" in str(error.value)
        assert "return that one from forward(), or wrap the model in workload.model()" in str(error.value)


# -- weights that are used more than once -----------------------------------------------------------------------
class TiedEmbedding(nn.Module):
    """Embedding and classifier share a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.mix(self.embed(tokens))).mean(1))
        return logits


class ConvTwice(nn.Module):
    """One convolution, called twice, the second time before a BatchNorm that is folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.norm.running_mean = torch.rand(8)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.stem(image))))
        logits: Tensor = self.head(torch.relu(self.norm(self.again(x))).mean((2, 3)))
        return logits


class DenseTwice(nn.Module):
    """One square layer, called twice: a weight transposed twice is what it was, and wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.again(torch.relu(self.again(x)))))
        return logits


class Computed(nn.Module):
    """Weights that are computed of others at every call."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.conv, self.head = norm(nn.Conv2d(1, 8, 3)), norm(nn.Linear(8, 3))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.conv(image)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("make", "inputs", "layers"),
    [
        *(
            (partial(Computed, norm), {"image": torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))}, 2)
            for norm in (parametrizations.weight_norm, parametrizations.spectral_norm)
        ),
        (TiedEmbedding, {"tokens": torch.arange(64 * 6).reshape(64, 6) % 50}, 2),
        (ConvTwice, {"image": torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))}, 4),
        (DenseTwice, {"x": torch.rand(64, 8, generator=torch.Generator().manual_seed(0))}, 3),
    ],
)
def test_shared_and_computed_weights_go_through_export_and_int8(
    make: Callable[[], nn.Module], inputs: Inputs, layers: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = RawInputs(make(), lambda given: given, tuple(inputs))
    file = export_onnx(module, inputs, output="logits")
    assert max(p.difference for p in check_parity(module, file, inputs, tolerance=1e-4)) < 1e-5
    columns = {name: values.numpy() for name, values in inputs.items()}
    wanted = top_answers(file, columns)
    prepared = prepare(file, tmp_path)
    shapes = {name: (1, *values.shape[1:]) for name, values in columns.items()}
    static = quantize_statically(
        prepared,
        RowReader(columns),
        tmp_path,
        method="minmax",
        percentile=99.9,
        per_channel=True,
        reduce_range=sums_saturate(cpu_class()),
        activations="uint8",
    )
    before = prepared.SerializeToString()
    dynamic = quantize_dynamically(prepared, per_channel=True, reduce_range=sums_saturate(cpu_class()))
    assert prepared.SerializeToString() == before
    for quantized in (static, dynamic):
        data = strip(quantized, merge_equal=True)
        found = agree(wanted, top_answers(data, columns))
        assert found.error < 0.02 and found.agreement is not None and found.agreement > 0.9
    assert int8_share(prepared, static, shapes).quantized == layers
    kinds = [node.op_type for node in onnx.load_from_string(strip(dynamic, merge_equal=True)).graph.node]
    assert kinds.count("MatMulInteger") == (1 if "image" in inputs else layers)  # convolutions stay
    assert np.isfinite(wanted).all()
