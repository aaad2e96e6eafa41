"""Folders that ``save_pretrained`` of transformers writes: ``config.json`` and safetensors files.

Pickled weights and code that comes with a model are refused: both run whatever somebody wrote into them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tasks.running.errors import DataReadError

Found = TypeVar("Found")


def folder_config(folder: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """What ``config.json`` says of a model of one of these types.

    Raises:
        DataReadError: there is no such file, or a model of another type, or one that brings its own code.
    """
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise DataReadError(
            f"{folder} has no config.json: name the folder that save_pretrained() of transformers wrote"
        ) from error
    except ValueError as error:
        raise DataReadError(f"{file} is not JSON: {error}") from error
    if config.get("auto_map"):
        raise DataReadError(
            f"{file} refers to code of its own (auto_map), which is not run; save the model as one of "
            f"{', '.join(kinds)}"
        )
    kind = config.get("model_type")
    if kind not in kinds:
        raise DataReadError(
            f"{file} is of type {kind!r}; models of the types {', '.join(kinds)} can be read. For another network "
            "write a workload of your own: its model() may load what it likes"
        )
    return config


def folder_tensor_names(folder: Path) -> set[str]:
    """Names of all tensors of its safetensors files; errors as for :func:`folder_tensors`."""
    found = set[str]()
    for file in _files(folder):
        found.update(_opened(file, lambda archive: archive.keys()))
    return found


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of its safetensors files by name.

    Raises:
        DataReadError: there are none, or pickled ones only, or a file is damaged.
    """
    found = dict[str, Tensor]()
    for file in _files(folder):
        found.update(_opened(file, lambda archive: {name: archive.get_tensor(name) for name in archive.keys()}))  # noqa: SIM118 - no mapping
    return found


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin")) + sorted(file.name for file in folder.glob("*.pt"))
        what = f"only pickled weights ({pickled[0]}), which run code when they are read" if pickled else "no weights"
        raise DataReadError(
            f"{folder} has {what}; save it with transformers: model.save_pretrained(folder, safe_serialization=True)"
        )
    return files


def _opened(file: Path, read: Callable[[Any], Found]) -> Found:
    try:
        with safe_open(file, framework="pt") as archive:
            return read(archive)
    except SafetensorError as error:
        raise DataReadError(f"{file} is damaged: {error}") from error
