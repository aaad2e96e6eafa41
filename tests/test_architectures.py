"""The built-in networks: sized by the data, exportable with a free batch, prunable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.torch_models.pruning_plan import dependency_graph
from tasks.torch_models.torch_variant import parameter_count
from tasks.workloads.architectures import ImageClassifier, ShallowClassifier, SimpleNet, StridedClassifier

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 96, 64), (1, 1, 1), (2, 3, 9), (1, 1, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("network", [ImageClassifier, StridedClassifier, ShallowClassifier])
def test_images_of_any_size_are_classified(
    shape: tuple[int, int, int], network: type[ImageClassifier | StridedClassifier | ShallowClassifier]
) -> None:
    model = network(shape, classes=5).eval()
    logits = model(image=torch.rand(3, *shape))
    assert logits.shape == (3, 5)
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    assert linear.in_features <= 64 * 8 * 8  # large images do not make a huge dense layer


def test_the_image_classifier_is_as_documented() -> None:
    model = ImageClassifier((1, 8, 8), classes=10)
    assert (model.conv1.out_channels, model.conv2.out_channels) == (32, 64)
    assert (model.dense.in_features, model.dense.out_features, model.head.out_features) == (256, 128, 10)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_the_strided_classifier_is_as_documented() -> None:
    model = StridedClassifier((1, 8, 8), classes=10)
    assert (model.conv1.out_channels, model.conv2.out_channels) == (16, 16)
    assert (model.head.in_features, model.head.out_features) == (64, 10)
    assert parameter_count(StridedClassifier((1, 8, 8), classes=10, width=0.5)) < 0.4 * parameter_count(model)


def test_the_shallow_classifier_is_as_documented() -> None:
    model = ShallowClassifier((1, 8, 8), classes=10)
    assert (model.conv.out_channels, model.dense.in_features, model.dense.out_features) == (16, 16 * 3 * 3, 32)
    assert parameter_count(model) == 5258
    assert parameter_count(ShallowClassifier((1, 8, 8), classes=10, width=0.5)) < 0.4 * parameter_count(model)


def test_the_simple_net_is_as_documented() -> None:
    model = SimpleNet((13,), outputs=3)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [64, 32, 3]


def test_several_inputs_are_joined_by_name() -> None:
    model = SimpleNet((4,), outputs=1).eval()
    factor, vector = torch.rand(5), torch.rand(5, 3)
    joined = torch.cat([factor[:, None], vector], dim=1)
    assert torch.equal(model(vector=vector, factor=factor), model(anything=joined))
    assert model(image=torch.rand(5, 1, 2, 2)).shape == (5, 1)


def test_width_scales_every_layer() -> None:
    half = ImageClassifier((1, 8, 8), classes=10, width=0.5)
    assert (half.conv1.out_channels, half.conv2.out_channels, half.dense.out_features) == (16, 32, 64)
    assert parameter_count(half) < 0.3 * parameter_count(ImageClassifier((1, 8, 8), classes=10))
    assert SimpleNet((4,), outputs=2, width=0.001).dense1.out_features == 2
    for width in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be greater than 0"):
            SimpleNet((4,), outputs=2, width=width)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 96, 64)])
def test_the_batch_stays_free_in_export(shape: tuple[int, int, int]) -> None:
    model = ImageClassifier(shape, classes=5).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (), {"image": torch.rand(2, *shape)}, dynamic_shapes={"image": {0: batch}})
    images = torch.rand(7, *shape)
    torch.testing.assert_close(program.module()(image=images), model(image=images))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (ImageClassifier((1, 8, 8), classes=5), {"image": torch.rand(2, 1, 8, 8)}),
        (ImageClassifier((3, 96, 64), classes=5), {"image": torch.rand(2, 3, 96, 64)}),
        (StridedClassifier((1, 8, 8), classes=5), {"image": torch.rand(2, 1, 8, 8)}),
        (ShallowClassifier((1, 8, 8), classes=5), {"image": torch.rand(2, 1, 8, 8)}),
        (SimpleNet((4,), outputs=3), {"vector": torch.rand(2, 3), "factor": torch.rand(2)}),
    ],
)
def test_every_hidden_layer_can_be_pruned(model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    import torch_pruning

    graph = dependency_graph(model, inputs)
    hidden = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    before = parameter_count(model)
    for layer in hidden:
        function = torch_pruning.prune_conv_out_channels
        if isinstance(layer, nn.Linear):
            function = torch_pruning.prune_linear_out_channels
        graph.get_pruning_group(layer, function, idxs=[0, 3]).prune()
    assert parameter_count(model) < before
    assert model.eval()(**inputs).shape[0] == 2
