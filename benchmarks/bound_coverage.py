"""How often the 95 % bound of a mean loss holds, in simulation: ``python benchmarks/bound_coverage.py --repeats 2000``.

For metrics that are not just right or wrong (`tasks/evidence/mean_bound.py`). Losses are skewed, heavy-tailed or rare
and large; each row is a distribution whose mean is known and a number of samples. Beside the share of bounds that hold
stands how far they lie above the true mean, in standard errors (1.64 is what a normal one costs), and the same for the
bootstrap (BCa) and for the end of Student's interval.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parent.parent))

from tasks.evidence.bootstrap import bootstrap_mean
from tasks.evidence.mean_bound import mean_bound

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
METHODS: dict[str, Callable[[Floats], float]] = {
    "ours": lambda x: mean_bound(x, unseen=float(np.abs(x).max()) or 1.0),
    "BCa": lambda x: bootstrap_mean(x, resamples=1000).quantile(0.95),
    "Student": lambda x: float(x.mean() + 1.645 * x.std(ddof=1) / len(x) ** 0.5),
}


def squared_errors(rng: np.random.Generator, n: int) -> Floats:
    """What a student whose answers are off by a fifth of the noise loses in squared error."""
    noise, off = rng.normal(0, 1, n), rng.normal(0, 0.2, n)
    found: Floats = (noise + off) ** 2 - noise**2
    return found


CASES: dict[str, tuple[Draw, float, float]] = {
    "normal": (lambda rng, n: rng.normal(0, 1, n), 0.0, 1.0),
    "squared errors": (squared_errors, 0.04, 0.4041),
    "Student's t, 3 degrees": (lambda rng, n: rng.standard_t(3, n), 0.0, 3**0.5),
    "lognormal, sigma 1": (lambda rng, n: rng.lognormal(0, 1, n), np.exp(0.5), 2.1612),
    "lognormal, sigma 1.5": (lambda rng, n: rng.lognormal(0, 1.5, n), np.exp(1.125), 8.9738),
    "1 % lose 1, the others 0": (lambda rng, n: rng.binomial(1, 0.01, n).astype(np.float64), 0.01, 0.0995),
    "3 % lose 1, the others 0": (lambda rng, n: rng.binomial(1, 0.03, n).astype(np.float64), 0.03, 0.1706),
}
"""How losses are drawn, their mean and their standard deviation."""
SAMPLES = (50, 100, 300, 1000, 5000)


def coverage(name: str, samples: int, repeats: int, method: str, seed: int = 0) -> tuple[float, float]:
    """Share of bounds that hold, and how far they lie above the mean on average, in standard errors."""
    draw, mean, deviation = CASES[name]
    rng = np.random.default_rng(seed)
    bounds = np.array([METHODS[method](draw(rng, samples)) for _ in range(repeats)])
    return float((bounds >= mean).mean()), float((bounds - mean).mean() / (deviation / samples**0.5))


def main() -> None:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="samples drawn for each row")
    repeats = parser.parse_args().repeats
    if repeats < 100:
        parser.error("at least 100 repeats are needed: with fewer a share of 95 % says little")
    print(f"| losses | samples | {' | '.join(METHODS)} |\n|---|---:|{'---:|' * len(METHODS)}")
    for name in CASES:
        for samples in SAMPLES:
            found = [coverage(name, samples, repeats, method) for method in METHODS]
            cells = " | ".join(f"{100 * share:.1f} % ({above:.2f})" for share, above in found)
            print(f"| {name} | {samples} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
