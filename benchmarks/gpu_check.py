"""What a GPU gives, measured and proven in under eight minutes: ``python benchmarks/gpu_check.py > gpu.json``.

Training steps, equal bits, answers of every form on every provider, the XLA artifact, several GPUs. Without a GPU it
measures the CPU's rows and says what was left out; ``--quick`` does so with tiny sizes. A part that fails is a row that
says so. Where time runs out, what is left is named. Nothing is written but the JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.machine_facts import circumstances
from model_registry.gpu_class import NoGpu, gpu_class
from model_registry.manifest import describe_folder
from model_registry.provider_options import CUDA, TENSORRT
from model_registry.variant import RuntimeSpec, TensorSpec, Variant
from serving.engine import Engine
from serving.exceptions import EngineLoadError
from serving.quiet_runtime import onnxruntime
from tasks.quantize.agreement import top_answers
from tasks.quantize.quantized_forms import FormBuilder, Quantizing
from tasks.running.stage import WorkloadRef
from tasks.torch_models.fit import fit
from tasks.torch_models.torch_variant import build
from tasks.torch_models.training import Training
from tasks.torch_models.training_data import TrainingData
from tasks.workloads.vgg import VggClassifier
from tasks.workloads.workload import Workload, load_workload

CPU = "CPUExecutionProvider"
SIDE, SMALL, CLASSES = 32, 16, 10
"""Of images that are trained on, and of those that files are asked about: no mean stands between int8 layers there."""


@dataclass
class Check:
    """What is measured where, and what came of it."""

    quick: bool
    seconds: float
    began: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    forms: dict[str, bytes] = field(default_factory=dict)
    """The VGG as ONNX files by form, once they were made."""

    @property
    def device(self) -> torch.device:
        """The accelerator that torch has, else the CPU."""
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

    @property
    def left(self) -> float:
        """Seconds in which something may still begin."""
        return self.seconds - (time.monotonic() - self.began)

    def skip(self, part: str, why: str) -> None:
        """Say what was not measured."""
        self.skipped.append({"part": part, "why": why})

    def run(self, part: str, work: Callable[[Check], None]) -> None:
        """A part, if there is time for it; an error in it is told and does not end the others."""
        if self.left <= 0:
            return self.skip(part, f"{self.seconds:g} seconds were over")
        try:
            work(self)
        except Exception as error:  # noqa: BLE001 - on a machine that nobody has seen, the other parts are worth having
            self.rows.append({"part": part, "error": f"{type(error).__name__}: {str(error).strip()[:400]}"})
        return None

    def times(self, kinds: Mapping[str, Callable[[], object]], *, steps: int, rounds: int) -> dict[str, list[float]]:
        """Seconds of a step of each kind, round by round, in turns; three steps go before."""
        for work in kinds.values():
            for _ in range(3):
                work()
        found: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(rounds):
            for name, work in kinds.items():
                self.wait()
                start = time.perf_counter()
                for _ in range(steps):
                    work()
                self.wait()
                found[name].append((time.perf_counter() - start) / steps)
        return found

    def wait(self) -> None:
        """Until the accelerator has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def main() -> None:
    """Measure what is there and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--seconds", type=float, default=420.0, help="no part begins after this")
    parser.add_argument("--ranked", choices=["ddp", "fsdp"], help="be one of several processes; used by itself")
    arguments = parser.parse_args()
    if arguments.ranked:
        return print(json.dumps(ranked(arguments.ranked, quick=arguments.quick)))
    check = Check(arguments.quick, arguments.seconds)
    with contextlib.redirect_stdout(sys.stderr):  # trainings tell of their epochs
        for part in (training, same_bits, xla, several, inference):
            check.run(part.__name__, part)
    device = check.device
    document = {
        **circumstances(["torch", "onnxruntime", "onnx", "numpy"]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else str(device),
        "gpu_class": gpu_or_none(),
        "cuda": torch.version.cuda,
        "providers": onnxruntime.get_available_providers(),
        "quick": check.quick,
        "seconds": round(time.monotonic() - check.began, 1),
        "rows": check.rows,
        "skipped": check.skipped,
    }
    return print(json.dumps(document, indent=1))


def gpu_or_none() -> str | None:
    """The class that variants would be proven for here."""
    try:
        return gpu_class()
    except NoGpu:
        return None


def training(check: Check) -> None:
    """Images a second of a VGG's training step, by precision, layout, CUDA graph and torch.compile, in turns."""
    kinds: dict[str, dict[str, Any]] = {"fp32": {}, "fp32 channels last": {"last": True}}
    if check.device.type == "cuda":
        bf16 = {"dtype": torch.bfloat16}
        kinds |= {"tf32": {"tf32": True}, "bf16": bf16, "bf16 channels last": {**bf16, "last": True}}
        kinds |= {"bf16 graph": {**bf16, "graph": True}, "bf16 compiled": {**bf16, "compiled": True}}
        kinds |= {"bf16 channels last graph": {**bf16, "last": True, "graph": True}}
    else:
        check.skip("training tf32, bf16, graph, compiled", "torch finds no CUDA")
    made = {}
    for name, options in kinds.items():
        try:
            step = step_of(check, **options)
            step()  # compiles
            made[name] = step
        except (RuntimeError, ImportError) as error:  # no compiler, an operation that cannot be captured
            check.rows.append({"part": "training", "kind": name, "error": str(error).strip()[:400]})
    rows = 8 if check.quick else 256
    for name, seconds in check.times(made, steps=1 if check.quick else 20, rounds=2 if check.quick else 7).items():
        rates = sorted(rows / each for each in seconds)
        spread = {"images_per_s": round(statistics.median(rates)), "low": round(rates[0]), "high": round(rates[-1])}
        check.rows.append({"part": "training", "kind": name, "batch": rows, **spread})


def step_of(
    check: Check,
    *,
    dtype: torch.dtype | None = None,
    tf32: bool = False,
    last: bool = False,
    graph: bool = False,
    compiled: bool = False,
) -> Callable[[], object]:
    """One training step on a batch that stays where it is."""
    device, rows = check.device, 8 if check.quick else 256
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    model = net(check, SIDE).to(device).to(memory_format=layout)  # type: ignore[call-overload]  # stubs know no layouts
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=graph)
    images = torch.rand(rows, 3, SIDE, SIDE).to(device).contiguous(memory_format=layout)
    targets = torch.randint(CLASSES, (rows,)).to(device)
    forward = torch.compile(model, mode="reduce-overhead") if compiled else model

    def step() -> None:
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = forward(images)
        loss = nn.functional.cross_entropy(outputs.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()

    if not graph:
        return step
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # torch's own recipe: what is made lazily is made before
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def net(check: Check, side: int) -> VggClassifier:
    """0.98 M parameters, or few."""
    return VggClassifier((3, side, side), CLASSES, width=0.125 if check.quick else 1.0)


def digits() -> tuple[Workload, TrainingData]:
    """The workload whose splits come with scikit-learn."""
    workload = load_workload(WorkloadRef(path="tasks.workloads.digits:Digits"))
    splits = workload.splits()
    return workload, TrainingData(workload, splits["train"], splits["validation"])


def same_bits(check: Check) -> None:
    """Whether ``fit()`` gives the same weights twice on this device."""
    workload, data = digits()
    ends = []
    for _ in range(2):
        model = build(workload, "teacher", {}, seed=0)
        training = Training(epochs=1 if check.quick else 5, batch_size=128, learning_rate=5e-3)
        fitted = fit(model, data, training, seed=0, device=str(check.device))
        ends.append({name: value.cpu() for name, value in model.state_dict().items()})
    same = all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    check.rows.append({"part": "same_bits", "same": same, "validation": fitted.val_metric, "device": str(check.device)})


def inference(check: Check) -> None:
    """Milliseconds by form, provider, batch and CUDA graph through the endpoint's engine, and how answers differ."""
    images = np.random.default_rng(0).random((256, 3, SMALL, SMALL)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        forms = files_of(check)
        for provider in (CPU, CUDA, TENSORRT):
            if provider not in onnxruntime.get_available_providers():
                check.skip(f"inference on {provider}", f"onnxruntime {onnxruntime.__version__} here does not have it")
                continue
            for batch in (1, 16) if check.quick else (1, 16, 256):
                if check.left <= 0:  # TensorRT compiles for minutes
                    check.skip(f"inference on {provider}, batch {batch}", f"{check.seconds:g} seconds were over")
                    continue
                engines = engines_of(check, forms, provider, batch, Path(folder))
                measure(check, engines, forms, images[:batch], provider)


def files_of(check: Check) -> dict[str, bytes]:
    """The VGG as ONNX files by form, made as the quantize stage makes them."""
    if check.forms:
        return check.forms
    torch.manual_seed(0)
    example = (torch.zeros(2, 3, SMALL, SMALL),)
    free = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        net(check, SMALL).eval(),
        example,
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=free,
        verbose=False,
    )
    assert program is not None
    fp32: bytes = program.model_proto.SerializeToString()
    feeds = {"image": np.random.default_rng(2).random((64, 3, SMALL, SMALL)).astype(np.float32)}
    quantizing = Quantizing(("fp16", "static", "symmetric"), "minmax", 99.99, True, "any", False, False, 8)
    with tempfile.TemporaryDirectory() as folder:
        builder = FormBuilder(fp32, feeds, top_answers(fp32, feeds), quantizing, folder=Path(folder))
        made = {form.method: form.data for form in builder.forms(lambda fraction, text: None)}
    check.forms = {"fp32": fp32, **made}
    return check.forms


def engines_of(check: Check, forms: Mapping[str, bytes], provider: str, batch: int, folder: Path) -> dict[str, Engine]:
    """An engine for each form, on a GPU each with a CUDA graph too; what a provider refuses is a row."""
    engines = {}
    for name, file in forms.items():
        for graph in (False, True) if provider != CPU else (False,):
            place = folder / f"{provider}-{name}-{batch}-{graph}"
            place.mkdir()
            model = onnx.load_from_string(file)
            for value in (*model.graph.input, *model.graph.output):
                if graph:  # it replays one shape
                    value.type.tensor_type.shape.dim[0].dim_value = batch
            (place / "model.onnx").write_bytes(model.SerializeToString())
            rows = batch if graph else -1
            precision = {"fp16": "fp16", "symmetric": "int8", "static": "int8"}.get(name, "tf32")
            runtime = RuntimeSpec.model_validate(
                {
                    "provider": provider,
                    "cuda_graph": graph,
                    "gpu_class": None if provider == CPU else gpu_class(),
                    "precision": precision if provider == TENSORRT else "fp32",
                }
            )
            variant = Variant(
                name=name,
                stage="export",
                format="onnx",
                files=describe_folder(place),
                inputs=(TensorSpec(name="image", datatype="FP32", shape=(rows, 3, SMALL, SMALL)),),
                outputs=(TensorSpec(name="logits", datatype="FP32", shape=(rows, CLASSES)),),
                runtime=runtime,
            )
            label = f"{name} graph" if graph else name
            try:
                engines[label] = Engine(place, variant)
            except EngineLoadError as error:
                check.rows.append({"part": "inference", "provider": provider, "kind": label, "error": str(error)[:400]})
    return engines


def measure(
    check: Check,
    engines: Mapping[str, Engine],
    forms: Mapping[str, bytes],
    images: NDArray[np.float32],
    provider: str,
) -> None:
    """A row for each engine: its latency, and the largest difference from the CPU's answers with the same file."""
    feed = {"image": images}
    kinds = {name: (lambda engine=engine: engine.run(feed)) for name, engine in engines.items()}
    for name, seconds in check.times(kinds, steps=2 if check.quick else 50, rounds=2 if check.quick else 7).items():
        wanted = top_answers(forms[name.partition(" ")[0]], feed)
        gap = np.abs(engines[name].run(feed)["logits"] - wanted).max() / np.abs(wanted).max()
        ms = [round(1e3 * each, 4) for each in sorted(seconds)]
        row = {"ms": statistics.median(ms), "low": ms[0], "high": ms[-1], "difference": float(gap)}
        check.rows.append({"part": "inference", "provider": provider, "kind": name, "batch": len(images), **row})


def xla(check: Check) -> None:
    """How many answers of the int8 StableHLO artifact differ from ONNX Runtime's, on the device that JAX finds."""
    if find_spec("jax") is None:
        return check.skip("xla", "jax is not installed")
    import jax

    from tasks.compile.answer_proof import different
    from tasks.compile.xla_program import call_program, xla_program
    from tasks.onnx_models.graph_as_run import as_run

    images = np.random.default_rng(1).random((16 if check.quick else 256, 3, SMALL, SMALL)).astype(np.float32)
    file = files_of(check)["static"]
    inputs = (TensorSpec(name="image", datatype="FP32", shape=(-1, 3, SMALL, SMALL)),)
    with tempfile.TemporaryDirectory() as folder:
        made = xla_program(as_run(file, Path(folder)), inputs)
    (found,), wanted = call_program(made.artifact)(images), top_answers(file, {"image": images})
    told = {"differing": int(different(found, wanted).sum()), "values": int(wanted.size)}
    check.rows.append({"part": "xla", "device": str(jax.devices()[0]), **told, "floats": list(made.float_operators)})
    return None


def several(check: Check) -> None:
    """Seconds of an epoch with DDP and FSDP2 on all GPUs."""
    count = torch.accelerator.device_count()
    if count < 2:
        return check.skip("several", f"{count} accelerators; DDP and FSDP2 are compared on two or more")
    for engine in ("ddp", "fsdp"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += [__file__, "--ranked", engine, *(["--quick"] if check.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=max(check.left, 60))
        last = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
        told = json.loads(last[0]) if last else {"error": done.stderr.strip()[-400:]}
        check.rows.append({"part": "several", "engine": engine, "devices": count, **told})
    return None


def ranked(engine: str, *, quick: bool) -> dict[str, Any]:
    """The training of one of several processes, which find each other by the environment."""
    workload, data = digits()
    model = build(workload, "teacher", {"width": 1.0 if quick else 8.0}, seed=0)
    training = Training(epochs=3, batch_size=256, learning_rate=5e-3, engine=engine)  # type: ignore[arg-type]
    fitted = fit(model, data, training, seed=0)
    return {"epoch_seconds": fitted.epoch_seconds, "validation": fitted.val_metric}


if __name__ == "__main__":
    main()
