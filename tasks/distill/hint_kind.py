"""What of a teacher's insides a student can follow."""

from __future__ import annotations

from typing import Literal

HintKind = Literal["features", "attention"]
