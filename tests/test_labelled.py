"""Labels and probabilities at the endpoint: of classes, of one logit with two names, of several labels at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_models import save

from model_registry.answer_labels import SEVERAL_AT_ONCE
from model_registry.manifest import describe_folder
from model_registry.variant import TensorSpec, Variant
from serving.engine import Engine
from serving.exceptions import EngineLoadError
from tasks.workloads.sample_scores import top_classes

LOGITS = np.array([[2.0], [-1.0], [np.nan], [0.0]], np.float32)


def passing(folder: Path, shape: tuple[int, ...], labels: list[str] | None = None) -> Variant:
    """A model that answers what it is given."""
    x, y = (TensorSpec(name=name, datatype="FP32", shape=shape) for name in ("x", "y"))
    return save(folder, [helper.make_node("Identity", ["x"], ["y"])], [x], [y], labels=labels)


def with_several(folder: Path, shape: tuple[int, ...], labels: list[str]) -> Variant:
    plain = passing(folder, shape)
    (folder / SEVERAL_AT_ONCE).parent.mkdir()
    (folder / SEVERAL_AT_ONCE).write_text(json.dumps(labels))
    return Variant.model_validate({**plain.model_dump(), "digest": "", "files": describe_folder(folder)})


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_logit_with_two_names_serves_both_probabilities(shape: tuple[int, ...], tmp_path: Path) -> None:
    engine = Engine(tmp_path, passing(tmp_path, shape, ["outside", "inside"]))
    assert [spec.name for spec in engine.outputs] == ["y", "label", "probability", "probabilities"]
    found = engine.run({"x": LOGITS.reshape(-1, *shape[1:])})
    assert found["label"].tolist() == [b"inside", b"outside", b"", b"outside"]
    second = 1 / (1 + np.exp(-LOGITS[:, 0]))
    np.testing.assert_allclose(found["probabilities"], np.stack([1 - second, second], axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["probability"], np.maximum(second, 1 - second), rtol=1e-6)
    top = top_classes(LOGITS).tolist()  # as training and the gates count
    assert found["label"].tolist() == [b"" if t < 0 else (b"outside", b"inside")[t] for t in top]


def test_several_labels_are_those_above_the_threshold_with_their_probabilities(tmp_path: Path) -> None:
    engine = Engine(tmp_path, with_several(tmp_path, (-1, 3), ["a", "b", "c"]))
    assert [(spec.name, spec.shape) for spec in engine.outputs[1:]] == [("label", (-1, 3)), ("probability", (-1, 3))]
    found = engine.run({"x": np.array([[1, -2, 0.5], [-1, -1, -1], [np.nan, 50, -200]], np.float32)})
    assert found["label"].tolist() == [[b"a", b"", b"c"], [b"", b"", b""], [b"", b"b", b""]]
    np.testing.assert_allclose(found["probability"][0], 1 / (1 + np.exp([-1, 2, -0.5])), rtol=1e-6)
    assert np.isnan(found["probability"][2, 0]) and found["probability"][2, 1:].tolist() == [1.0, 0.0]


def test_names_that_are_not_as_many_as_the_logits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EngineLoadError, match=r"3 labels, which need a first output FP32 \[-1, 3\]; it is FP32 \[-1, 1\]"
    ):
        Engine(tmp_path / "one", passing(tmp_path / "one", (-1, 1), ["a", "b", "c"]))
    with pytest.raises(EngineLoadError, match="2 labels"):
        Engine(tmp_path / "several", with_several(tmp_path / "several", (-1, 1), ["a", "b"]))
