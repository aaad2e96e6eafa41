"""The options that are tried, as changes to a variant's RuntimeSpec.

Left out, as measured with ONNX Runtime 1.31 to gain nothing or to be no option at all: memory patterns and prepacking
(never faster), ``session.x64quantprecision`` (an int8 CNN four times slower), GELU by approximation (other answers),
denormals as zero (applied to the calling thread by a process's first session only: it cannot be measured in turns).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from model_registry.variant import RuntimeSpec

_FUSIONS = {
    "fused activations": (
        "ConvActivationFusion",
        "ConvAddActivationFusion",
        "GemmActivationFusion",
        "MatMulActivationFusion",
    ),
    "fused GELU": ("BiasGeluFusion", "FastGeluFusion", "GeluFusionL1", "GeluFusionL2"),
    "fused layer norm": ("LayerNormFusionL1", "LayerNormFusionL2", "SkipLayerNormFusion"),
    "fused transposes and scales": ("MatmulTransposeFusion", "GemmTransposeFusion", "MatMulScaleFusion"),
    "fused dynamic int8": ("DynamicQuantizeMatMulFusion", "MatMulIntegerToFloatFusion"),
    "fused int8": ("QDQSelectorActionTransformer",),
}
_LAYOUTS = {"NCHWc layout": ("NchwcTransformer",), "NHWC layout": ("NhwcTransformer",)}


def session_options(runtime: RuntimeSpec, wanted: Collection[str], *, threads: int) -> dict[str, dict[str, Any]]:
    """Changes to the runtime by name, those of the kinds wanted that are not as the runtime has it already.

    Args:
        wanted: kinds of options, as :class:`tasks.tune.TuneSpec` names them.
        threads: most intra-op threads.
    """
    found: dict[str, dict[str, Any]] = {}
    counts = range(1, threads + 1) if "threads" in wanted else [runtime.intra_op_threads]
    for count in counts:
        change = {"intra_op_threads": count}
        found[_threads(count)] = change
        if "spinning" in wanted and count > 1:
            found[f"{_threads(count)} that spin"] = change | {"spinning": True}
    if "arena" in wanted:
        found["no arena"] = {"arena": False}
    if "levels" in wanted:
        found |= {f"level {level}": {"graph_optimization": level} for level in ("extended", "basic")}
    groups = (_LAYOUTS if "layouts" in wanted else {}) | (_FUSIONS if "fusions" in wanted else {})
    found |= {f"no {name}": {"disabled_optimizers": names} for name, names in groups.items()}
    return {name: change for name, change in found.items() if not _has(runtime, change)}


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _has(runtime: RuntimeSpec, change: dict[str, Any]) -> bool:
    if "disabled_optimizers" in change:
        return set(change["disabled_optimizers"]) <= set(runtime.disabled_optimizers)
    return all(getattr(runtime, name) == value for name, value in change.items())
