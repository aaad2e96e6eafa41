"""A table with gaps, from the file to the endpoint: what training accepts as missing, a request can say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import RunningStack
from forked_runs import Forks
from winnow_command import Winnow

SPEC = """
schema: 1
model: gaps
workload:
  path: winnow:Tabular
  arguments: {source: gaps.csv, target: state, drop: [id]}
data: {missing: warn}
train: {epochs: 3, batch_size: 32, scale: {width: 0.25}}
quantize: {methods: [static], calibration_samples: 32}
measure: {rounds: 5, seconds: 0.1}
budget: {max_accuracy_drop: 0.9}
gates: {per_class_margin: null, floor: null}
"""


def test_a_table_with_gaps_is_served_with_null(stack: RunningStack, forks: Forks, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"id": np.arange(500), "size": random.normal(0, 1, 500), "town": random.choice(["Ulm", "Kiel"], 500)}
    )
    table["state"] = np.where(table["size"] > 0, "sick", "well")
    for column in ("size", "town"):
        table.loc[random.random(500) < 0.3, column] = None
    table.to_csv(tmp_path / "gaps.csv", index=False, sep=";")
    (tmp_path / "gaps.yaml").write_text(SPEC)

    command = Winnow(tmp_path, stack.home, forks)
    planned = command("run", "gaps.yaml", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "gaps.csv: left out as asked: 'id'." in planned.stdout and "fields separated by ';'" in planned.stdout

    report = command.report("gaps.yaml")
    assert report["status"] == "released", report["error"]  # answered recorded rows with gaps, over HTTP
    assert any("fields separated by ';'" in note for note in report["notes"])
    asked = re.sub(r'"data":\[[^]]*\]', '"data":[null,null]', report["curl"])
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    answers = {output["name"]: output["data"] for output in json.loads(done.stdout)["outputs"]}
    assert answers["label"][0] in {"sick", "well"} and 0.5 <= answers["probability"][0] <= 1
