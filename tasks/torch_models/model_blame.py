"""Where in the user's model an exception came from."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from types import FrameType

from torch import nn


def blame(error: BaseException, model: nn.Module) -> str:
    """The line of the user's model that the exception came through, with its module; '' if it did not pass there.

    Like ``in 'block.act' (Gate) at net.py:12 `if x.sum() > 0:`: ``. Of nested modules the innermost is named;
    torch's own layers are not the user's code.
    """
    names = {id(m): name or "the model itself" for name, m in model.named_modules()}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = _owner(frame)
        if owner is None or id(owner) not in names or type(owner).__module__.startswith("torch.nn."):
            continue
        path = frame.f_code.co_filename
        code = linecache.getline(path, line).strip()
        place = f"in {names[id(owner)]!r} ({type(owner).__name__}) at {Path(path).name}:{line} `{code}`: "
    return place


def _owner(frame: FrameType) -> nn.Module | None:
    """The module whose method the frame runs."""
    arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    first = frame.f_locals.get(arguments[0]) if arguments else None
    return first if isinstance(first, nn.Module) else None
