"""A registered version in the form of another machine: its files, the proof, and a script that asks it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flows.exporting.exported_version import ExportedVersion, NotExportable
from model_registry.datatypes import NUMPY_NAMES, Datatype
from model_registry.provider_options import provider_options
from model_registry.store import Store
from model_registry.target_form import Target, TargetForm, load_target
from model_registry.variant import Variant

PROOF = "proof.json"


def write_target(exported: ExportedVersion, store: Store, folder: Path, target: Target) -> TargetForm:
    """Write the files of the version's form for the target, ``proof.json``, and ``ask.py`` where a script can ask.

    Raises:
        NotExportable: no run has made that form, or it is not proven.
        StoreError: a file of it is not in the store, or is damaged there.
    """
    form = load_target(store, exported.variant.digest, target)
    name = f"version {exported.version} of {exported.model!r}"
    if form is None:
        raise NotExportable(
            f"{name} was never compiled for {target}; add targets: [{target}] to its spec and run it again: all else "
            "is reused"
        )
    if form.state != "proven":
        raise NotExportable(f"{name} has no proven form for {target}: {form.reason}")
    folder.mkdir(parents=True, exist_ok=True)
    store.materialise(form.files, folder)
    told = {"model": exported.model, "version": exported.version, **form.model_dump(mode="json", by_alias=True)}
    (folder / PROOF).write_text(json.dumps(told, indent=2) + "\n")
    if target in _ASK:
        provider = _provider(store, form)
        (folder / "ask.py").write_text(_ASK[target].format(**_words(exported, form, provider)))
    return form


def _provider(store: Store, form: TargetForm) -> str:
    """The provider of ONNX Runtime that the form runs on, as its sessions are told; '' where it runs on none."""
    if form.variant is None:
        return ""
    runtime = store.load_variant(form.variant).runtime.model_copy(update={"cuda_graph": False})  # that takes more code
    return repr((runtime.provider, provider_options(runtime)))


def _words(exported: ExportedVersion, form: TargetForm, provider: str) -> dict[str, str]:
    return {
        "name": f"Version {exported.version} of {exported.model}",
        "reason": form.reason,
        "inputs": _tensors(exported.variant, _XLA_NAMES if form.target == "xla" else NUMPY_NAMES),
        "names": repr([spec.name for spec in exported.variant.inputs]),
        "outputs": str(len(exported.variant.outputs)),
        "device": form.device,
        "pin": f"{exported.model}/{exported.version}@{form.variant}",
        "provider": provider,
    }


def _tensors(variant: Variant, names: Mapping[Datatype, str]) -> str:
    """An example of each input, a row of zeros."""
    rows = [(spec.datatype, [1, *(1 if n == -1 else n for n in spec.shape[1:])]) for spec in variant.inputs]
    return ", ".join(f'np.zeros({shape}, "{names[datatype]}")' for datatype, shape in rows)


_XLA_NAMES: dict[Datatype, str] = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float32",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint32",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int32",
}
"""As XLA has them: 32 bits at most."""

_XLA = '''"""{name} as StableHLO: {reason}.

Runs on a TPU (pip install "jax[tpu]"), a GPU (pip install "jax[cuda13]") or a CPU (pip install jax).
"""

from pathlib import Path

import jax
import numpy as np

model = jax.export.deserialize(bytearray(Path(__file__).with_name("model.stablehlo").read_bytes()))
inputs = [{inputs}]  # raw rows, as the endpoint takes them
print(jax.devices()[0], [np.asarray(output) for output in jax.jit(model.call)(*inputs)])
'''

_HALVES = '''"""{name} in two halves: {reason}.

    python second.py second.onnx 7000          # on one machine; a host beside the port lets others reach it
    python ask.py 127.0.0.1 7000               # on the other
"""

import socket
import sys

import numpy as np
from second import receive_array, send_array, session

names, inputs = {names}, [{inputs}]  # raw rows, as the endpoint takes them
(between,) = session("first.onnx").run(None, dict(zip(names, inputs)))
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as line:
    send_array(line, between)
    print([receive_array(line) for _ in range({outputs})])
'''
_GPU = '''"""{name} on the GPU {device}: {reason}.

pip install onnxruntime-gpu after all else. The endpoint serves it there, and on no other kind of GPU:
winnow serve --pin {pin}
"""

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession("model.onnx", options, providers=[{provider}], enable_fallback=0)
names, inputs = {names}, [{inputs}]  # raw rows, as the endpoint takes them
print(session.run(None, dict(zip(names, inputs))))
'''
_ASK: dict[str, str] = {"xla": _XLA, "halves": _HALVES, "cuda": _GPU, "tensorrt": _GPU}
