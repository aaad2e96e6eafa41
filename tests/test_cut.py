"""Cutting: which layer sees coarser, which blocks go, what is refused; whatever stays keeps its weights."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_networks import CLASSES, SHAPE, Flattening, PixelNet, Reshaping, TinyNext, TinyTcn, TinyViT, network
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from tasks.cut import CutSpec
from tasks.cut.model_cutter import cut_model
from tasks.cut.residual_blocks import left_out, removable_blocks
from tasks.export.onnx_export import export_onnx
from tasks.export.parity import check_parity
from tasks.export.raw_inputs import RawInputs
from tasks.running.errors import CutRefused
from tasks.torch_models.channel_pruner import ChannelPruner
from tasks.torch_models.model_structure import CountedPlaces, ModelCuts, ModelStructure, PlaceTable, apply_cuts
from tasks.torch_models.torch_cost import torch_cost
from tasks.workloads.vgg import VggClassifier


def images(*shape: int) -> dict[str, Tensor]:
    return {"image": torch.rand(2, *(shape or SHAPE), generator=torch.Generator().manual_seed(0))}


def test_a_residual_network_sees_half_of_the_pixels_with_all_of_its_weights() -> None:
    model = network("ResNet20").eval()
    before, weights = torch_cost(model, images()), copy.deepcopy(model.state_dict())
    assert cut_model(model, images(), stride=2, depth=1.0) == ModelCuts(strides={"stem": (2, 2)})
    after = torch_cost(model, images())
    assert after.parameters == before.parameters
    assert after.macs == pytest.approx(before.macs / 4, rel=0.01)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_where_the_kernel_would_skip_pixels_their_mean_is_seen() -> None:
    model, whole = (TinyNext().eval() for _ in range(2))
    whole.load_state_dict(model.state_dict())
    assert cut_model(model, images(), stride=2, depth=1.0).averaged == (("stem", (2, 2)),)
    half = nn.functional.avg_pool2d(images()["image"], 2)
    assert torch.equal(model(**images()), whole(image=half))
    far = network("ResNet20").eval()
    assert cut_model(far, images(), stride=4, depth=1.0) == ModelCuts(averaged=(("stem", (4, 4)),))


def test_learned_places_of_patches_are_interpolated() -> None:
    model = TinyViT().eval()
    with torch.no_grad():  # rises by 1 from column to column
        model.places.copy_(torch.arange(4.0).repeat(4)[None, :, None].expand(1, 16, 16))
    cuts = cut_model(model, images(), stride=2, depth=1.0)
    table = PlaceTable(name="places", axis=1, prefix=0, spread=False, before=(4, 4), after=(2, 2))
    assert cuts.places == (table,) and not cuts.padded
    torch.testing.assert_close(model.places[0, :, 0], torch.tensor([0.5, 2.5, 0.5, 2.5]), atol=0.2, rtol=0)
    again = TinyViT().eval()
    apply_cuts(again, ModelCuts.model_validate_json(cuts.model_dump_json()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(**images()), model(**images()))


class Placed(nn.Module):
    """Patches of 4x4 with a token for the class, or a table of places as a picture."""

    def __init__(self, *, spread: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.spread = spread
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 8, 5, 5) if spread else torch.randn(1, 26, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image)
        if self.spread:
            tokens = (tokens + self.places).flatten(2).transpose(1, 2)
        else:
            tokens = torch.cat([self.token.expand(len(image), -1, -1), tokens.flatten(2).transpose(1, 2)], dim=1)
            tokens = tokens + self.places
        logits: Tensor = self.head(tokens[:, 0])
        return logits


@pytest.mark.parametrize(("spread", "shape"), [(True, (1, 8, 3, 3)), (False, (1, 10, 8))])
def test_coarse_patches_cover_the_whole_image_and_tokens_of_no_place_stay(spread: bool, shape: tuple[int, ...]) -> None:
    model = Placed(spread=spread).eval()
    first = model.places[:, 0].clone()
    cuts = cut_model(model, images(3, 20, 20), stride=2, depth=1.0)  # 20 pixels are 2.5 patches of 8
    assert cuts.padded == {"patches": (4, 4)} and tuple(model.places.shape) == shape
    assert spread or torch.equal(model.places[:, 0], first)


def test_beside_a_shortcut_the_input_itself_is_averaged() -> None:
    model, whole = (TinyTcn().eval() for _ in range(2))
    whole.load_state_dict(model.state_dict())
    sound = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(0))
    cuts = cut_model(model, {"sound": sound}, stride=2, depth=1.0)
    assert cuts == ModelCuts(averaged=(("", (2,)),)) and cuts.layers == ("input",)
    with torch.no_grad():
        assert torch.equal(model(sound=sound), whole(sound=nn.functional.avg_pool1d(sound, 2)))
    apply_cuts(whole, ModelCuts.model_validate_json(cuts.model_dump_json()))
    with torch.no_grad():
        assert torch.equal(model(sound=sound), whole(sound=sound))


class Sounds(nn.Module):
    """A 1x1 convolution first, then one of a sequence that pads by itself."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 4, 1)
        self.filter = nn.Conv1d(4, 4, kernel, padding="same")
        self.head = nn.Linear(4, 2)

    def forward(self, sound: Tensor) -> Tensor:
        logits: Tensor = self.head(self.filter(self.mix(sound)).mean(2))
        return logits


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_convolutions_of_one_pixel_are_passed_over_and_padding_stays() -> None:
    model = Sounds(5).eval()
    sound = torch.rand(2, 3, 20)
    whole = model.filter(model.mix(sound))
    assert cut_model(model, {"sound": sound}, stride=2, depth=1.0) == ModelCuts(strides={"filter": (2,)})
    torch.testing.assert_close(model.filter(model.mix(sound)), whole[:, :, ::2])
    uneven = cut_model(Sounds(4).eval(), {"sound": sound}, stride=2, depth=1.0)
    assert uneven == ModelCuts(averaged=(("filter", (2,)),))


def test_a_dense_layer_that_counts_places_has_the_sums_of_its_weights() -> None:
    model, whole = Flattening().eval(), Flattening().eval()
    whole.load_state_dict(model.state_dict())
    cuts = cut_model(model, images(), stride=2, depth=1.0)
    assert cuts.counted == (CountedPlaces(name="head", before=(4, 4, 4), after=(4, 2, 2)),)
    sums = whole.head.weight.reshape(CLASSES, 4, 2, 2, 2, 2).sum((3, 5)).flatten(1)
    torch.testing.assert_close(model.head.weight, sums)
    # Features that are the same all over a window are worth what they were.
    coarse = torch.rand(3, 4, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(model.head(coarse.flatten(1)), whole.head(fine.flatten(1)))

    again = Flattening().eval()
    apply_cuts(again, ModelCuts.model_validate_json(cuts.model_dump_json()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(**images()), model(**images()))
    ChannelPruner(again, images(), ratio=0.5).step()
    assert again.head.in_features == 2 * 2 * 2


def test_a_grid_that_is_no_multiple_of_the_smaller_one_is_shared_out() -> None:
    dense = nn.Linear(4 * 5 * 5, 3)
    model = nn.Sequential(nn.Flatten(), dense)
    whole = dense.weight.detach().reshape(3, 4, 5, 5)
    smaller = ModelCuts(counted=(CountedPlaces(name="1", before=(4, 5, 5), after=(4, 2, 2)),))
    apply_cuts(model, smaller)
    parts = dense.weight.detach().reshape(3, 4, 2, 2)
    torch.testing.assert_close(parts.sum((2, 3)), whole.sum((2, 3)))
    torch.testing.assert_close(parts[:, :, 0, 1], whole[:, :, :3, 3:].sum((2, 3)))
    with pytest.raises(CutRefused, match="dense layer '1' is to take 100 inputs and does not"):
        apply_cuts(model, smaller)


def test_a_vgg_is_cut_to_half_its_resolution() -> None:
    vgg = VggClassifier((3, 32, 32), 4).eval()
    cuts = cut_model(vgg, images(3, 32, 32), stride=2, depth=1.0)
    assert [counted.name for counted in cuts.counted] == ["dense"] and vgg(**images(3, 32, 32)).shape == (2, 4)


def test_who_counts_pixels_or_answers_each_keeps_its_stride() -> None:
    with pytest.raises(CutRefused, match=r"stride 2 in layer 'body.0': Reshaping does not run any more: .*average"):
        cut_model(Reshaping().eval(), images(), stride=2, depth=1.0)
    says = r"stride 4 in layer 'stem': PixelNet would answer shape \[2, 4, 4, 4\] instead of \[2, 4, 18, 18\].*at 1"
    with pytest.raises(CutRefused, match=says):
        cut_model(PixelNet().eval(), images(3, 18, 18), stride=4, depth=1.0)
    with pytest.raises(CutRefused, match=r"'patches': TinyViT does not run any more: "):
        cut_model(TinyViT(mask=True).eval(), images(), stride=2, depth=1.0)  # the mask counts patches
    with pytest.raises(CutRefused, match="runs no convolution with a kernel above 1"):
        cut_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), {"input": torch.rand(2, 4)}, stride=2, depth=1.0)


def test_an_answer_for_each_pixel_comes_back_to_the_size_of_the_picture() -> None:
    model, whole = PixelNet().eval(), PixelNet().eval()
    whole.load_state_dict(model.state_dict())
    cuts = cut_model(model, images(), stride=2, depth=1.0)
    assert cuts == ModelCuts(strides={"stem": (2, 2)}, enlarged=(2, 2))
    whole.stem.stride = (2, 2)
    wanted = nn.functional.interpolate(whole(**images()), scale_factor=2.0, mode="bilinear")
    assert torch.equal(model(**images()), wanted) and wanted.shape == (2, CLASSES, 16, 16)
    again = PixelNet().eval()
    again.load_state_dict(model.state_dict())
    apply_cuts(again, ModelCuts.model_validate_json(cuts.model_dump_json()))
    ChannelPruner(again, images(), ratio=0.5).step()
    module = RawInputs(again, lambda inputs: inputs, ("image",))
    file = export_onnx(module, images(), output="classes", dynamic={})
    assert all(p.difference <= p.allowed for p in check_parity(module, file, images(), tolerance=1e-4))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("ResNet20", [f"stages.{s}.{b}" for s in range(3) for b in (1, 2)]),
        ("MobileNetClassifier", ["stages.1.1", *(f"stages.{s}.{b}" for s in (2, 3, 4) for b in (1, 2))]),
        ("TinyViT", [f"encoder.layers.{b}" for b in (1, 2, 3)]),
        ("TinyNext", [*(f"stages.0.blocks.{b}" for b in (1, 2)), *(f"stages.1.blocks.{b}" for b in (1, 2, 3, 4))]),
        ("VggClassifier", []),  # its convolutions keep shapes, and add to nothing
        ("Flattening", []),
        ("PixelNet", []),
    ],
)
def test_blocks_that_add_to_their_input_can_be_left_out(name: str, blocks: list[str]) -> None:
    model = network(name).eval()
    training = [m.training for m in model.modules()]
    assert list(removable_blocks(model, images())) == blocks
    assert [m.training for m in model.modules()] == training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_blocks_that_normalise_what_they_added_and_take_masks_can_be_left_out() -> None:
    model = TinyViT(6, mask=True).eval()
    cuts = cut_model(model, images(), stride=1, depth=0.5)
    assert cuts.removed == ("encoder.layers.1", "encoder.layers.3", "encoder.layers.5")
    assert model(**images()).shape == (2, CLASSES)


class Twice(nn.Module):
    """Runs its second block twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        for block in [*self.blocks, self.blocks[1]]:
            tokens = block(tokens)
        return tokens


def test_a_block_that_runs_twice_stays() -> None:
    assert removable_blocks(Twice().eval(), {"tokens": torch.rand(2, 3, 8)}) == ()


def test_what_is_left_of_a_cut_network_is_as_it_was() -> None:
    model = network("MobileNetClassifier").eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch_cost(model, images())
    cuts = cut_model(model, images(), stride=2, depth=0.5)
    assert cuts == ModelCuts(
        strides={"stem.conv": (2, 2)}, removed=("stages.1.1", "stages.2.2", "stages.3.2", "stages.4.2")
    )
    after = torch_cost(model, images())
    assert after.parameters < before.parameters and after.macs < before.macs / 4
    left = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in left.items())
    assert {name for name in weights if name not in left} == {n for n in weights if n.startswith(cuts.removed)}


def test_encoder_layers_that_torch_fuses_are_counted() -> None:
    patches, projections, attention, dense, head = (
        16 * 48 * 16,
        4 * 16 * 16 * 16,
        2 * 16 * 16 * 16,
        2 * 16 * 16 * 32,
        64,
    )
    cost = torch_cost(TinyViT(3).eval(), images())
    assert cost.macs == patches + 3 * (projections + attention + dense) + head


@given(count=st.integers(1, 60), depth=st.floats(0.01, 1.0))
def test_blocks_go_evenly(count: int, depth: float) -> None:
    blocks = [str(number) for number in range(count)]
    gone = math.floor((1 - depth) * count + 0.5)
    if gone == 0:
        with pytest.raises(CutRefused, match=f"leaves out none of the {count} removable blocks of the model; set it"):
            left_out(blocks, depth)
        return
    places = [int(block) for block in left_out(blocks, depth)]
    assert len(places) == gone and places == sorted(set(places))
    assert all(math.floor(count / gone) <= b - a <= math.ceil(count / gone) for a, b in pairwise(places))


def test_nothing_to_leave_out_is_told() -> None:
    with pytest.raises(CutRefused, match=r"^VggClassifier has no block that can be left out; leave the depth at 1"):
        cut_model(network("VggClassifier").eval(), images(), stride=1, depth=0.5)


def test_a_model_that_was_pruned_is_not_cut() -> None:
    structure = ModelStructure(role="teacher").narrowed([("stem", True, [0])])
    with pytest.raises(CutRefused, match="cut the model that it was pruned from"):
        structure.cut_further(ModelCuts(removed=("block",)))


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        ({"strides": {"stem": (2,)}}, r"layer 'stem' is to step by \(2,\) and is a Conv2d"),
        ({"strides": {"root": (2, 2)}}, r"layer 'root' is to step by \(2, 2\) and is not there"),
        ({"averaged": (("head", (2, 2)),)}, "layer 'head' .* is a Linear"),
        ({"removed": ("stages.0.7",)}, "block 'stages.0.7' is to pass its input on and is not there"),
    ],
)
def test_cuts_of_other_code_are_refused(cuts: dict[str, Any], says: str) -> None:
    with pytest.raises(CutRefused, match=f"the cuts do not fit model ResNet20: {says}; .*cut again"):
        apply_cuts(network("ResNet20"), ModelCuts(**cuts))


def test_a_spec_cuts_something() -> None:
    with pytest.raises(ValidationError, match="stride 1 with depth 1 cuts nothing"):
        CutSpec()
    for wrong in ({"stride": 3}, {"depth": 0.0}, {"depth": 1.5}):
        with pytest.raises(ValidationError):
            CutSpec.model_validate(wrong)


@pytest.mark.slow  # exports real networks
@pytest.mark.parametrize(
    ("name", "stride", "depth"),
    [("ResNet20", 2, 0.5), ("MobileNetClassifier", 4, 1.0), ("TinyNext", 2, 0.5), ("TinyViT", 2, 0.5)],
)
def test_a_cut_network_is_pruned_and_exported(name: str, stride: int, depth: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = network(name).eval()
    rows = torch.rand(16, *SHAPE)
    cut_model(model, {"image": rows[:2]}, stride=stride, depth=depth)
    before = torch_cost(model, {"image": rows})
    if name != "TinyViT":  # pruning does not follow torch's attention
        pruner = ChannelPruner(model, {"image": rows[:2]}, ratio=0.25)
        pruner.step()
        assert not pruner.untraced and torch_cost(model, {"image": rows}).macs < before.macs
    module = RawInputs(model, lambda inputs: inputs, ("image",))
    file = export_onnx(module, {"image": rows}, output="logits")
    assert [p.batch for p in check_parity(module, file, {"image": rows}, tolerance=1e-4)] == [1, 2, 7]
