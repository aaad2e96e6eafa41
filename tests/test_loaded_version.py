"""A loaded version is kept running: whatever a start fails with, it is tried again, and says why meanwhile."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any, ClassVar

import pytest

from serving.engines.engine_link import EngineLink
from serving.exceptions import EngineLoadError, LoadFailed, LoadRefused
from serving.limits import RequestLimits
from serving.loaded_version import LoadedVersion

DIGEST = "0" * 64


class OneCore:
    """A variant as large as the machine: one engine."""

    files = ()

    class runtime:
        intra_op_threads = 1 << 10


class Cache:
    """Holds every variant."""

    def fetch(self, digest: str) -> tuple[Path, Any]:
        return Path(), OneCore


class Engine:
    """A process that serves until it is killed."""

    inputs = outputs = ()
    generation = None
    pid, frames, heard, answered = 1, 0, 0.0, 0
    batching: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.flying: dict[int, Any] = {}
        self.gone, self.closed = (asyncio.get_running_loop().create_future() for _ in range(2))

    def die(self, how: str) -> None:
        self.gone.set_result(how)
        self.closed.set_result(None)

    async def stop(self) -> None:
        """There is no process."""


class Starts:
    """Stands for starting engine processes: each start ends as the list says, those after its end succeed."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends, self.engines, self.count = list(ends), list[Engine](), 0

    async def __call__(self, nursery: Any, folder: Path, variant: Any, heard: Any, **how: Any) -> Engine:
        self.count += 1
        if self.ends and (error := self.ends.pop(0)) is not None:
            raise error
        self.engines.append(Engine())
        return self.engines[-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted and not waited for."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return pauses


def made(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> LoadedVersion:
    monkeypatch.setattr(EngineLink, "start", starts)
    return LoadedVersion("m", "1", DIGEST, Cache(), RequestLimits(), object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), MemoryError(), RuntimeError("can't start new thread"), KeyError(1)],
)
def test_an_engine_that_cannot_be_started_for_a_while_comes_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    starts = Starts(None, *[error] * 9)

    async def scene() -> None:
        version = made(starts, monkeypatch)
        await version.load()
        seen = set[str]()
        starts.engines[0].die("killed by SIGKILL")
        async with asyncio.timeout(30):
            while not version.restarts:
                await asyncio.sleep(0)
                seen.add(version.reason)
        assert version.state == "ready" and version.restarts == 1 and version.reason == ""
        assert any(f"starting it again failed: {version._name()} could not be loaded: " in text for text in seen)
        await version.stop()

    asyncio.run(scene())
    waited = [pause for pause in quick if pause]
    assert starts.count == 11 and waited == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_first_load_fails_by_name_whatever_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads the champions tries again what may pass; an unknown error would end it for all models."""
    with pytest.raises(LoadFailed, match="Too many open files"):
        asyncio.run(made(Starts(OSError(errno.EMFILE, "Too many open files")), monkeypatch).load())
    with pytest.raises(LoadRefused):
        asyncio.run(made(Starts(EngineLoadError("no")), monkeypatch).load())
