"""Train the benchmark's teachers, once: ``python benchmarks/glyphs/teachers.py [vgg] [resnet20] [mobilenet]``.

Each becomes ``benchmarks/glyphs/teachers/<network>.safetensors``, which the specs beside this script bring along (and
which a run puts into its store). One that is there already is left alone. Training takes 10 to 40 minutes each on two
cores, so their weights lie beside the script, rounded to fp16 (``packed/``), and are unpacked; ``--train`` trains again
and packs again, ``--pack`` alone packs what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent.parent), str(HERE)]

import safetensors.torch  # noqa: E402
from glyph_workload import NETWORKS  # noqa: E402

from tasks.running.stage import WorkloadRef  # noqa: E402
from tasks.torch_models.fit import fit  # noqa: E402
from tasks.torch_models.fit_rows import evaluate  # noqa: E402
from tasks.torch_models.torch_variant import build  # noqa: E402
from tasks.torch_models.training import Training  # noqa: E402
from tasks.torch_models.training_data import TrainingData  # noqa: E402
from tasks.workloads.workload import load_workload  # noqa: E402

TEACHERS, PACKED = HERE / "teachers", HERE / "packed"
EPOCHS = {"vgg": 5, "resnet20": 10, "mobilenet": 10}
MOVED = {"mobilenet"}
"""Trained on moved images: on 24 000 that stay as they are it learns them by heart and answers one in seven wrong."""


def teach(network: str) -> None:
    """Train one teacher and write its weights, with a line of facts beside them."""
    images = "MovedGlyphs" if network in MOVED else "Glyphs"
    ref = WorkloadRef(path=f"glyph_workload:{images}", arguments={"network": network}, folder=str(HERE))
    workload = load_workload(ref)
    splits = workload.splits()
    model = build(workload, "teacher", {}, seed=0)
    began = time.monotonic()
    fitted = fit(
        model,
        TrainingData(workload, splits["train"], splits["validation"]),
        Training(epochs=EPOCHS[network], batch_size=96, learning_rate=2e-3, weight_decay=0.05, warmup=0.15),
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


def pack(network: str) -> None:
    """Keep the teacher's weights in half the bytes."""
    PACKED.mkdir(exist_ok=True)
    tensors = safetensors.torch.load_file(TEACHERS / f"{network}.safetensors")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(half, PACKED / f"{network}.safetensors")
    (PACKED / f"{network}.json").write_text((TEACHERS / f"{network}.json").read_text())


def unpack(network: str) -> None:
    """Write the packed weights in the types that the network has."""
    TEACHERS.mkdir(exist_ok=True)
    tensors = safetensors.torch.load_file(PACKED / f"{network}.safetensors")
    whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    partial = TEACHERS / f".{network}"
    safetensors.torch.save_file(whole, partial)
    (TEACHERS / f"{network}.json").write_text((PACKED / f"{network}.json").read_text())
    partial.rename(TEACHERS / f"{network}.safetensors")


def main() -> None:
    """Make the teachers that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--train", action="store_true", help="train also what is there or packed, and pack it")
    parser.add_argument("--pack", action="store_true", help="pack the teachers that are there")
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"there is no network {', '.join(sorted(unknown))}: choose from {', '.join(NETWORKS)}")
    for name in arguments.networks or NETWORKS:
        if arguments.pack:
            pack(name)
        elif arguments.train:
            teach(name)
            pack(name)
        elif not (TEACHERS / f"{name}.safetensors").exists():
            if (PACKED / f"{name}.safetensors").exists():
                unpack(name)
            else:
                teach(name)


if __name__ == "__main__":
    main()
