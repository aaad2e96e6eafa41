"""Files of trained weights that users bring: safetensors, a state_dict saved by torch, or ONNX; no code is run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tasks.running.errors import WeightsMismatch

Kind = Literal["safetensors", "torch", "onnx"]
_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes that DataParallel, torch.compile and Lightning put before every name."""


def kind_of(path: Path) -> Kind | None:
    """What the file is by its first bytes; None for none of ours. Its name says nothing."""
    with path.open("rb") as stream:
        head = stream.read(16)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":  # torch.save, today's zip and the pickle of old
        return "torch"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    if head[:1] == b"\x08" and 0 < head[1] < 0x80:  # ModelProto starts with ir_version, a small number
        return "onnx"
    return None


def read_weights(path: Path, said: str) -> dict[str, Tensor]:
    """The tensors by name, on the CPU; names without the wrappers' prefixes.

    Args:
        said: the file as the user named it, for messages.

    Raises:
        WeightsMismatch: it is no such file, is damaged, or holds anything but tensors.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        try:
            return _unwrap(safetensors.torch.load_file(path))
        except SafetensorError as error:
            raise WeightsMismatch(
                f"weights {said!r}: the safetensors file is damaged: {error}; save it again"
            ) from error
    if kind != "torch":
        raise WeightsMismatch(
            f"weights {said!r} is neither safetensors, nor a state_dict saved by torch, nor an ONNX file; save "
            "model.state_dict() with safetensors.torch.save_file or torch.save"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen classes here, the unpickler's among them
        if type(error).__name__ == "UnpicklingError":
            raise WeightsMismatch(
                f"weights {said!r} holds Python objects, which would run code when loaded; save model.state_dict() "
                f"instead of the model ({str(error).splitlines()[0][:200]})"
            ) from error
        raise WeightsMismatch(f"weights {said!r}: torch cannot read it: {error}; save it again") from error
    return _unwrap(_tensors(found, said))


def _tensors(found: object, said: str) -> dict[str, Tensor]:
    """The state_dict: the object itself, or what training scripts keep it under."""
    for nested in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(nested), dict):
            found = found[nested]
    if isinstance(found, dict):
        others = [
            f"{name!r} ({type(value).__name__})" for name, value in found.items() if not isinstance(value, Tensor)
        ]
        if found and not others:
            return {str(name): value for name, value in found.items()}
        what = f"a dict with {', '.join(others[:5])}" if others else "an empty dict"
    else:
        what = f"a {type(found).__name__}"
    raise WeightsMismatch(
        f"weights {said!r} holds {what}; it must hold a state_dict, tensors by name: save model.state_dict()"
    )


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
