"""Models that ask for more memory than a load may take: they are refused, and nobody else pays."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import numpy as np
import pytest
from onnx_models import digits, hungry

from serving.engines.engine_link import EngineLink
from serving.engines.load_memory import bounded_memory, loading_bytes
from serving.engines.nursery_link import Nursery
from serving.exceptions import EngineLoadError


def test_a_model_that_asks_for_too_much_is_refused_and_the_next_one_is_loaded(tmp_path: Path) -> None:
    greedy, modest = hungry(tmp_path / "hungry"), digits(tmp_path / "digits")

    async def scene() -> None:
        nursery = Nursery()
        try:
            with pytest.raises(EngineLoadError, match=r"'test' asks for more than the 2.00 GB that it may take while"):
                await EngineLink.start(nursery, tmp_path / "hungry", greedy, lambda *_: None)
            link = await EngineLink.start(nursery, tmp_path / "digits", modest, lambda *_: None)
            limits = Path(f"/proc/{link.pid}/limits").read_text().splitlines()
            (data,) = (line for line in limits if line.startswith("Max data size"))
            assert data.split()[3] == "unlimited"  # the bound ends with the load
            await link.stop()
        finally:
            await nursery.close()

    asyncio.run(scene())


def test_the_bound_is_of_what_is_taken_within(tmp_path: Path) -> None:
    variant = digits(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_memory(variant, 256 << 20):
        assert len(bytearray(64 << 20)) and np.ones(8 << 20, np.uint8).all()
    with pytest.raises(EngineLoadError, match=r"asks for more than the 268 MB"), bounded_memory(variant, 256 << 20):
        np.ones(1 << 30, np.uint8)
    with pytest.raises(ZeroDivisionError), bounded_memory(variant, 256 << 20):
        print(1 / 0)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert np.ones(1 << 30, np.uint8).any()
    size = sum(file.size for file in variant.files)
    assert loading_bytes(variant) == 2_000_000_000 + 10 * size
