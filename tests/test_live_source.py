"""Classes and functions that a user holds are written down so that another process can import them, or refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAD = """
import math
from pathlib import Path

from tasks.running.errors import WorkloadError
from tasks.workloads.live_source import LiveSource
"""


def session(tmp_path: Path, body: str, use: str) -> subprocess.CompletedProcess[str]:
    """A script that defines things and writes them down; then another process that imports them and prints ``use``."""
    out = tmp_path / "out"
    out.mkdir()
    script = tmp_path / "session.py"
    script.write_text(HEAD + textwrap.dedent(body) + f"\nsource.write(Path({str(out)!r}))\n")
    theirs = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, str(script)], env=theirs, capture_output=True, text=True, check=False)
    if done.returncode:
        return done
    code = f"import sys; sys.path.append({str(out)!r})\n" + textwrap.dedent(use)
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)


def test_a_class_of_a_script_goes_along_with_all_it_uses(tmp_path: Path) -> None:
    body = """
    import torch
    from torch import nn
    from torch.nn import functional as F
    WIDTHS = (4, 8)
    def block(i, o):
        return nn.Sequential(nn.Linear(i, o), nn.ReLU())
    class Base(nn.Module):
        def describe(self):
            return f"{math.pi:.2f}"
    class Net(Base):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.body = nn.Sequential(block(size, WIDTHS[0]), block(*WIDTHS))
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.body(x))
    source = LiveSource()
    print(source.add(Net, "the model's class"))
    """
    use = "import cells, torch; n = cells.Net(3); print(n(torch.ones(2, 3)).shape, n.describe())"
    done = session(tmp_path, body, use)
    assert done.stdout.strip() == "torch.Size([2, 8]) 3.14", done.stderr


def test_the_latest_definition_counts(tmp_path: Path) -> None:
    body = """
    def scale(x):
        return x / 1
    def scale(x):
        return x / 16
    source = LiveSource()
    source.add(scale, "preprocess")
    """
    assert session(tmp_path, body, "import cells; print(cells.scale(32))").stdout.strip() == "2.0"


def test_the_user_s_own_modules_are_copied_and_installed_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "nets.py").write_text("from mine.parts import twice\n\nclass Net:\n    value = twice(21)\n")
    (tmp_path / "mine" / "parts.py").write_text("def twice(x):\n    return 2 * x\n")
    body = """
    import numpy as np
    from mine.nets import Net
    source = LiveSource()
    assert source.add(Net, "the model's class") == "mine.nets.Net"
    assert source.add(np.linalg.norm, "loss") == "numpy.linalg.norm"
    assert sorted(source.files) == ["mine", "mine.nets", "mine.parts"], source.files
    """
    done = session(tmp_path, body, "import mine.nets; print(mine.nets.Net.value, mine.nets.__file__)")
    assert done.stdout.startswith("42 ") and str(tmp_path / "out") in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("loss = lambda a, b: a - b\nsource.add(loss, 'loss')", "loss is a lambda"),
        ("def make():\n    def inner(x): return x\n    return inner\nsource.add(make(), 'loss')", "inside a function"),
        ("table = Path()\ndef f(x): return x + table\nsource.add(f, 'loss')", "uses 'table', a PosixPath"),
        ("def f(x): return x + missing\nsource.add(f, 'loss')", "'missing', which is not defined"),
        ("source.add(Path(), 'loss')", "loss is a PosixPath; give a class or a function"),
        ("exec('def f(x): return x')\nsource.add(f, 'loss')", "its source cannot be found"),
        ("g = lambda x: x\ndef f(x): return g(x)\nsource.add(f, 'loss')", "its source cannot be found"),
    ],
)
def test_what_cannot_be_written_down_is_refused_by_name(tmp_path: Path, body: str, text: str) -> None:
    done = session(tmp_path, "source = LiveSource()\n" + body, "")
    assert done.returncode == 1 and "WorkloadError" in done.stderr and text in done.stderr, done.stderr
