"""Sizes of files and memory as people read them: decimal, as most tools show them. 1 kB is 1000 bytes.

Where a limit is compared with what exceeds it, both are given in bytes.
"""

from __future__ import annotations

KB, MB, GB = 10**3, 10**6, 10**9


def size_text(size: float) -> str:
    """``512 B``, ``38.2 kB``, ``4.31 MB``."""
    for unit, scale in (("GB", GB), ("MB", MB), ("kB", KB)):
        if size >= 0.9995 * scale:  # 999 600 bytes are 1.00 MB, not 1000 kB
            return f"{three_digits(size / scale)} {unit}"
    return f"{size:.0f} B"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    if abs(value) >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.2g}"
