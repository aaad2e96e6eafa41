"""What ``winnow init`` writes: texts with the model's name filled in, and a little generated data."""

from __future__ import annotations

import keyword
import math
import random
import re
from pathlib import Path

_TABULAR = '''"""{name}: will a machine fail soon? Rows of a CSV file, one column to predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from winnow import read_table, split_columns

COLUMNS = ["temperature", "vibration", "hours", "load"]


class {title}:
    """The arguments come from the spec; paths are relative to it, or s3://bucket/key."""

    def __init__(self, table: str = "machines.csv") -> None:
        self.table = table

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        """train, calibration, validation, test: columns of equal length; `target` is what to predict."""
        table = read_table(self.table)  # CSV, Parquet, JSON lines or npz
        readings = np.stack([table[name] for name in COLUMNS], axis=1).astype(np.float32)
        target = (table["failed"] == "yes").astype(np.int64)
        return split_columns({{"readings": readings, "target": target}})

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """A fresh network; `role` is "teacher" or "student", `width` comes from the spec."""
        return Net(hidden=max(4, round(64 * width)))

    # -- all below is optional -----------------------------------------------------------------------------------
    def preprocess(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw values to what the model takes. It becomes part of the exported model: clients send raw values."""
        middle = torch.tensor([60.0, 2.0, 5000.0, 0.5])
        spread = torch.tensor([15.0, 1.0, 3000.0, 0.3])
        readings = inputs["readings"]
        return {{"readings": (readings - middle.to(readings.device)) / spread.to(readings.device)}}

    def labels(self) -> list[str]:
        """Names of the classes, in the order of the model's outputs."""
        return ["runs", "fails"]


class Net(nn.Module):
    """Called with the inputs by name; answers one row of logits per row."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(len(COLUMNS), hidden)
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, 2)

    def forward(self, readings: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(readings)))))
'''

_IMAGES = '''"""{name}: which shape is in the picture? A folder of pictures per class."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from winnow import local, read_image_folder, split_columns


class {title}:
    """The arguments come from the spec; paths are relative to it, or s3://bucket/prefix."""

    def __init__(self, pictures: str = "pictures", side: int = 16) -> None:
        self.pictures = pictures
        self.side = side

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        """train, calibration, validation, test: columns of equal length; `target` is what to predict."""
        with local(self.pictures) as folder:
            columns, _ = read_image_folder(folder, size=(self.side, self.side), channels=1)
        return split_columns(columns)  # `image` uint8 [rows, 1, side, side] and `target`

    def model(self, role: str, width: float = 1.0) -> nn.Module:
        """A fresh network; `role` is "teacher" or "student", `width` comes from the spec."""
        return Net(channels=max(4, round(16 * width)), side=self.side)

    # -- all below is optional -----------------------------------------------------------------------------------
    def preprocess(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Raw pixels to what the model takes. It becomes part of the exported model: clients send raw pixels."""
        return {{"image": inputs["image"].float() / 255}}

    def labels(self) -> list[str]:
        """Names of the classes, in the order of the model's outputs: that of the folders' names."""
        return ["circle", "cross", "square"]


class Net(nn.Module):
    """Called with the inputs by name; answers one row of logits per row."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(2 * channels * (side // 4) ** 2, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.pool(torch.relu(self.first(image)))
        hidden = self.pool(torch.relu(self.second(hidden)))
        return self.head(hidden.flatten(1))
'''

_SPEC = """# winnow run {folder}/spec.yaml
#
# All keys: winnow schema. Try one value: winnow run {folder}/spec.yaml --set prune.ratio=0.3
schema: 1
model: "{name}"
workload:
  path: workload:{title} # workload.py, beside this file
  arguments: {{{argument}}}

data: {{}} # what the data must satisfy before anything is trained
train: {{epochs: 30}}
distill: {{scale: {{width: 0.5}}}} # the student: arguments of model(); without this key no student is made
prune: {{ratio: 0.3}} # likewise
quantize: {{}} # likewise; {{}} takes the defaults
budget:
  max_accuracy_drop: 0.05 # at most 5 points below the teacher, with 95 % confidence
"""

_README = """# {name}

```sh
winnow run {folder}/spec.yaml          # add --plan to see what it would do
winnow compare {name}
```

| file | what it is |
|---|---|
| `workload.py` | the data, the model, and what goes with them: replace them one by one |
| `spec.yaml` | what to do with it, and how good the result must be |
| `{data}` | {what}; generated, put yours in its place |
"""


def scaffold(folder: Path, name: str, kind: str) -> list[Path]:
    """Write workload.py, spec.yaml, README.md and sample data for ``tabular`` or ``images``; what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    tabular = kind == "tabular"
    words = {
        "name": name,
        "folder": folder.as_posix(),
        "title": _class_name(name),
        "argument": "table: machines.csv" if tabular else "pictures: pictures",
        "data": "machines.csv" if tabular else "pictures/",
        "what": "readings of 800 machines" if tabular else "450 pictures of three shapes",
    }
    texts = {
        "workload.py": _TABULAR if tabular else _IMAGES,
        "spec.yaml": _SPEC,
        "README.md": _README,
    }
    for file, text in texts.items():
        (folder / file).write_text(text.format(**words), encoding="utf-8")
    data = _machines(folder / "machines.csv") if tabular else _shapes(folder / "pictures")
    return [*(folder / file for file in texts), data]


def _class_name(name: str) -> str:
    """``my-model.v2`` as ``MyModelV2``, never a word that the file needs for something else."""
    title = "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_.]+", name))
    return (
        f"{title}Model" if keyword.iskeyword(title) or title == "Net" else title if title[0].isalpha() else f"M{title}"
    )


def _machines(path: Path) -> Path:
    """Eight hundred machines; hot, shaking, old ones fail."""
    chance = random.Random(0)
    lines = ["machine,temperature,vibration,hours,load,failed"]
    for number in range(800):
        temperature, vibration = chance.gauss(60, 15), abs(chance.gauss(2, 1))
        hours, load = chance.uniform(0, 10_000), chance.uniform(0, 1)
        strain = (temperature - 60) / 15 + (vibration - 2) + (hours - 5000) / 3000 * load
        failed = "yes" if strain > 0 else "no"
        lines.append(f"m{number:03},{temperature:.1f},{vibration:.2f},{hours:.0f},{load:.2f},{failed}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _shapes(folder: Path) -> Path:
    """150 grey pictures of 16 x 16 pixels for each of three shapes."""
    from PIL import Image, ImageDraw

    chance = random.Random(0)
    for shape in ("circle", "cross", "square"):
        (folder / shape).mkdir(parents=True)
        for number in range(150):
            picture = Image.new("L", (16, 16))
            picture.putdata([chance.randrange(0, 80) for _ in range(16 * 16)])
            draw, ink = ImageDraw.Draw(picture), chance.randrange(170, 256)
            radius = chance.uniform(3.5, 6)
            x, y = chance.uniform(7, 9), chance.uniform(7, 9)
            box = (x - radius, y - radius, x + radius, y + radius)
            if shape == "circle":
                draw.ellipse(box, outline=ink)
            elif shape == "square":
                draw.rectangle(box, outline=ink)
            else:
                arm = radius / math.sqrt(2)
                draw.line((x - arm, y - arm, x + arm, y + arm), fill=ink)
                draw.line((x - arm, y + arm, x + arm, y - arm), fill=ink)
            picture.save(folder / shape / f"{number:03}.png")
    return folder
