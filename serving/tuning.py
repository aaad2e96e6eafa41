"""Which session options make a variant faster here: each is timed in turns with the variant as it is.

``python -m serving.tuning`` answers one request: a TuningRequest in JSON on stdin; on stdout lines of
``{"progress": [share, text]}`` and at last ``{"result": TuningResult}`` or ``{"error": text}``.

The best of many options measured once looks better than it is, and a busy machine makes anything look faster. So two
equal engines are compared first, an option must beat what those differ by, and what is kept is compared once more.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.engine import Engine
from serving.probe_latency import NOISE, pinned
from serving.tuning_bench import Bench, dropped, timed
from serving.tuning_request import Trial, TuningRequest, TuningResult, tuned_runtime

Progress = Callable[[float, str], None]


def tune(request: TuningRequest, progress: Progress = lambda share, text: None) -> TuningResult:
    """Try each option alone, add the faster ones up, and confirm the sum.

    Raises:
        ProbeError: the split lacks an input.
        NotEnoughCpus: fewer CPUs than threads.
        EngineLoadError, CpuClassMismatch, ManifestMismatch: of the variant as it is; see :class:`Engine`.
    """
    with pinned(request.threads) as cpus, tempfile.TemporaryDirectory() as scratch:
        bench = Bench(request, Path(scratch), cpus)
        progress(0.0, "two equal engines")
        control = bench.compare(Engine(request.folder, request.variant), bench.plain)
        assert control.speedup is not None
        noise = max(1 + NOISE, *control.speedup.interval, *(1 / end for end in control.speedup.interval))
        trials: dict[str, Trial] = {}
        for number, option in enumerate(request.options):
            progress((number + 1) / (len(request.options) + 3), option.name)
            trials[option.name] = bench.trial(option, noise)
        kept = bench.add_up([o for o in request.options if trials[o.name].verdict == "kept"], trials, noise)
        confirmed = tuned = None
        if kept:
            progress(0.95, f"once more: {', '.join(o.name for o in kept)}")
            engine = bench.engine(kept)
            final = bench.compare(engine, bench.plain)
            confirmed = timed(" + ".join(o.name for o in kept), final, noise, bench.difference(engine))
            if confirmed.verdict == "dropped":
                again = f"not faster when measured once more ({confirmed.reason})"
                trials |= {o.name: dropped(trials[o.name], again) for o in kept}
                kept = []
            else:
                tuned = final.variant.p50_ms
                control = final
        return TuningResult(
            kept=tuple(o.name for o in kept),
            runtime=tuned_runtime(request.variant.runtime, [o.runtime for o in kept]),
            trials=tuple(trials.values()),
            control=(1 / noise, noise),
            confirmed=confirmed,
            p50_ms=control.baseline.p50_ms,
            tuned_p50_ms=tuned,
            cpus=cpus,
        )


def main() -> None:
    """Answer the request on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message, allow_nan=False), file=answers, flush=True)

    try:
        request = TuningRequest.model_validate_json(sys.stdin.readline())
        result = tune(request, lambda share, text: say({"progress": [share, text]}))
    except Exception as error:  # noqa: BLE001 - told to the asker, who raises it
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    say({"result": result.model_dump(mode="json")})


if __name__ == "__main__":
    main()
    os._exit(0)  # at once: nothing is left to do, and somebody waits
