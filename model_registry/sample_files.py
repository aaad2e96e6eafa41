"""Where sampled requests lie in the plain bucket, and for how long: each file's name says both.

``samples/MODEL/2026-11-28/231354-v3-30d-1f2e3d4c.parquet``: the first sample's time (UTC), the version, the days for
which it may be kept. So whoever cleans up need not know how the endpoint is set up.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

SAMPLES = "samples/"
_KEY = re.compile(SAMPLES + r"[^/]+/(\d{4}-\d\d-\d\d)/(\d{6})-v\d+-(\d{1,5})d-[0-9a-f]{8}\.parquet")


def sample_key(model: str, version: str, *, first: float, days: int, token: str) -> str:
    """The key of a file of samples.

    Args:
        first: time of its oldest sample, seconds since 1970.
        days: for which it may be kept.
        token: eight hexadecimal digits that make the name the only one.
    """
    at = datetime.fromtimestamp(first, UTC)
    return f"{SAMPLES}{model}/{at:%Y-%m-%d}/{at:%H%M%S}-v{version}-{days}d-{token}.parquet"


def sample_expired(key: str, now: float, *, days: int | None = None) -> bool:
    """Whether it is a file of samples that must go.

    Args:
        now: seconds since 1970.
        days: for which any may be kept, where that is less than the file's name says.
    """
    found = _KEY.fullmatch(key)
    if found is None:
        return False
    first = datetime.strptime(found[1] + found[2], "%Y-%m-%d%H%M%S").replace(tzinfo=UTC)
    kept = int(found[3]) if days is None else min(days, int(found[3]))
    return datetime.fromtimestamp(now, UTC) - first >= timedelta(days=kept)
