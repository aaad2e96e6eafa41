"""An ONNX file as MLflow keeps models: what ``mlflow.onnx.save_model`` writes around it, without importing MLflow."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import yaml

from model_registry.datatypes import NUMPY_NAMES
from model_registry.variant import TensorSpec, Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

ONNX_FILE = "model.onnx"
_NUMPY = {**NUMPY_NAMES, "BYTES": "str"}


def files_around(
    variant: Variant, *, model_id: str, run_id: str, size: int, example: Mapping[str, NDArray[Any]] | None
) -> dict[str, bytes]:
    """Contents by name of everything that lies beside ``model.onnx``, so that ``mlflow.pyfunc`` loads it.

    Args:
        size: bytes of the ONNX file.
        example: a few rows by input name, as a caller of the model would send them; None for no example.
    """
    arrays = {name: values.tolist() for name, values in (example or {}).items()}
    examples = {
        "input_example.json": json.dumps(arrays).encode(),
        "serving_input_example.json": json.dumps({"inputs": arrays}, indent=2).encode(),
    }
    requirements = [f"mlflow=={version('mlflow')}", "onnxruntime", "numpy"]
    python = platform.python_version()
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    about = {
        "flavors": {
            "onnx": {
                "onnx_version": version("onnx"),
                "data": ONNX_FILE,
                "providers": [variant.runtime.provider],
                "onnx_session_options": {"intra_op_num_threads": variant.runtime.intra_op_threads},
                "code": None,
            },
            "python_function": {
                "loader_module": "mlflow.onnx",
                "python_version": python,
                "data": ONNX_FILE,
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
            },
        },
        "metadata": {"winnow.digest": variant.digest},
        "mlflow_version": version("mlflow"),
        "model_id": model_id,
        "model_size_bytes": size + sum(map(len, examples.values() if example else ())),
        "model_uuid": uuid.uuid4().hex,
        "run_id": run_id,
        "signature": {"inputs": _schema(variant.inputs), "outputs": _schema(variant.outputs), "params": None},
        "utc_time_created": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}",
    }
    if example:
        about["saved_input_example_info"] = {
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
        }
    return {
        **(examples if example else {}),
        "requirements.txt": "\n".join(requirements).encode(),
        "conda.yaml": _yaml(conda),
        "python_env.yaml": _yaml(environment),
        "MLmodel": _yaml(about),
    }


def _schema(specs: Sequence[TensorSpec]) -> str:
    return json.dumps(
        [
            {
                "name": spec.name,
                "type": "tensor",
                "tensor-spec": {
                    "dtype": _NUMPY[spec.datatype],
                    "shape": list(spec.shape),
                },
            }
            for spec in specs
        ]
    )


def _yaml(value: dict[str, Any]) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()
