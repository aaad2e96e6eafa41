"""What ONNX Runtime's providers for GPUs are told, by what a variant says of itself.

Names and meanings: onnxruntime.ai/docs/execution-providers, CUDA and TensorRT. Here, since the endpoint that serves a
variant and the stage that proves it must say the same.
"""

from __future__ import annotations

from pathlib import Path

from model_registry.variant import RuntimeSpec

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


def runs_on_gpu(runtime: RuntimeSpec) -> bool:
    """Whether the variant's provider is one for GPUs."""
    return runtime.provider in (CUDA, TENSORRT)


def provider_options(runtime: RuntimeSpec, kept: Path | None = None) -> dict[str, str]:
    """Options of the variant's provider; none for the CPU's.

    CUDA computes in the types of the file; only TF32 in place of fp32 has a switch, off unless ``precision`` says
    tf32. Its convolutions are chosen by rule: a search by time may choose others in the next process, whose sums differ
    in the last bits. TensorRT computes fp32 in TF32 and may use what ``precision`` names besides.

    Args:
        kept: folder for TensorRT's compiled engines, which take minutes to build; None: none are kept.
    """
    if runtime.provider == CUDA:
        return {
            "use_tf32": _switch(runtime.precision == "tf32"),
            "cudnn_conv_algo_search": "HEURISTIC",
            "enable_cuda_graph": _switch(runtime.cuda_graph),
        }
    if runtime.provider != TENSORRT:
        return {}
    options = {f"trt_{name}_enable": _switch(runtime.precision == name) for name in ("fp16", "bf16", "int8")}
    options["trt_cuda_graph_enable"] = _switch(runtime.cuda_graph)
    if kept is not None:
        folder = str(kept)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    return options


def engine_folder(files: Path, gpu_class: str) -> Path | None:
    """Where engines compiled for this class of GPU are kept: beside the files of a variant in the variant cache.

    Args:
        files: folder of the variant's files.

    Returns:
        None where the files lie elsewhere, so that nothing is left there.
    """
    cached = (files.parent / "variant.json").is_file()
    return files.parent / "engines" / gpu_class.replace("/", "_") if cached else None


def _switch(on: bool) -> str:
    return "1" if on else "0"
