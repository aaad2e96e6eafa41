"""Train the benchmark's teachers, once: ``python benchmarks/glyphs/teachers.py [vgg] [resnet20] [mobilenet]``.

Each becomes ``benchmarks/glyphs/teachers/<network>.safetensors``, which the specs beside this script bring along (and
which a run puts into its store). 10 to 20 minutes each on one core; one that is there already is left alone.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent.parent), str(HERE)]

import safetensors.torch  # noqa: E402
from glyph_workload import NETWORKS  # noqa: E402

from tasks.fit import fit  # noqa: E402
from tasks.fit_rows import evaluate  # noqa: E402
from tasks.stage import WorkloadRef  # noqa: E402
from tasks.torch_variant import build  # noqa: E402
from tasks.workload import load_workload  # noqa: E402

TEACHERS = HERE / "teachers"
EPOCHS = {"vgg": 5, "resnet20": 10, "mobilenet": 6}


def teach(network: str) -> None:
    """Train one teacher and write its weights, with a line of facts beside them."""
    ref = WorkloadRef(path="glyph_workload:Glyphs", arguments={"network": network}, folder=str(HERE))
    workload = load_workload(ref)
    splits = workload.splits()
    model = build(workload, "teacher", {}, seed=0)
    began = time.monotonic()
    fitted = fit(
        model,
        workload=workload,
        train=splits["train"],
        validation=splits["validation"],
        epochs=EPOCHS[network],
        batch_size=96,
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup=0.15,
        amp="bf16",
        seed=0,
        device="cpu",
    )
    facts = {
        "network": network,
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": EPOCHS[network],
        "seconds": round(time.monotonic() - began),
        "validation_error": 1 - fitted.val_metric,
        "train_error": 1 - evaluate(model, workload=workload, columns=splits["train"], device="cpu")[1],
    }
    TEACHERS.mkdir(exist_ok=True)
    partial = TEACHERS / f".{network}"
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    (TEACHERS / f"{network}.json").write_text(json.dumps(facts, indent=2) + "\n")
    partial.rename(TEACHERS / f"{network}.safetensors")
    print(json.dumps(facts))


if __name__ == "__main__":
    for name in sys.argv[1:] or list(NETWORKS):
        if name not in NETWORKS:
            sys.exit(f"there is no network {name!r}: choose from {', '.join(NETWORKS)}")
        if not (TEACHERS / f"{name}.safetensors").exists():
            teach(name)
