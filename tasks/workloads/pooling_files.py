"""How a folder of sentence-transformers makes one vector of a text's: ``modules.json`` and what it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.running.errors import DataReadError
from tasks.workloads.text_encoder import Pooling

_MODES: dict[str, Pooling] = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}
_MODES |= {"max": "max", "max_tokens": "max"}
_PREFIX = "pooling_mode_"
_KNOWN = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path) -> Pooling:
    """``mean`` where the folder says nothing of it.

    Raises:
        DataReadError: it has parts that are not known here, or pools otherwise.
    """
    if not (folder / "modules.json").is_file():
        return "mean"
    places = dict[str, str]()
    for module in _json(folder / "modules.json", list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _KNOWN:
            raise DataReadError(
                f"{folder / 'modules.json'} has a part {kind!r}; sentence vectors are made of {', '.join(_KNOWN)} "
                "alone. For another network write a workload of your own"
            )
        places[kind] = str(module.get("path", ""))
    if places.get("Transformer"):
        raise DataReadError(
            f"{folder / 'modules.json'} has the encoder in {places['Transformer']!r}; save the model again with "
            "SentenceTransformer.save(), which puts it beside modules.json"
        )
    if "Pooling" not in places:
        return "mean"
    file = folder / places["Pooling"] / "config.json"
    config = _json(file, dict)
    modes = [name.removeprefix(_PREFIX) for name, on in config.items() if name.startswith(_PREFIX) and on is True]
    modes = modes or [str(config.get("pooling_mode", "mean"))]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise DataReadError(f"{file} pools by {', '.join(modes)}; what can be read is one of mean, cls and max")
    return _MODES[modes[0]]


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise DataReadError(f"{file} is missing, which modules.json names; copy the whole folder") from error
    except ValueError as error:
        raise DataReadError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, kind) or (isinstance(found, list) and not all(isinstance(part, dict) for part in found)):
        raise DataReadError(f"{file} is not what sentence-transformers writes; copy the folder again")
    return found
