"""A stage that several processes train together: started, watched, and started again.

Each is a child like any other, with its limits, its lifeline and its log. When one dies all end, and all start again
from the last checkpoint: what was computed since is computed again, to the same bits.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from tasks.running.errors import ChildFailed, RankLost
from tasks.running.launch import Party, Progress, run_child
from tasks.running.stage import Limits

_log = logging.getLogger("winnow.ranks")
PATIENCE = 600.0
"""Seconds that one rank waits for another: for its shards, or until the first has saved a checkpoint."""
_TRIES = {"find each other": 5, "train": 3}
"""Times, one after the other, that they may fail at it without the training having come any further."""
_SAY_WHY = 5.0
"""Seconds for the others to say what ended them, when one has failed: the first to be heard of is rarely the cause."""


class RankGroup(Protocol):
    """Where the processes of one attempt run, and how many they are."""

    count: int

    def run(self, number: int, request: dict[str, Any], log_path: Path, on_progress: Progress | None) -> dict[str, Any]:
        """Run the stage as this rank; its answer, or what it raised."""

    def leave(self) -> None:
        """All have answered."""

    def end(self) -> None:
        """End all of them, and whoever begins later."""


def run_ranks(
    request: dict[str, Any],
    *,
    ranks: int,
    name: str,
    limits: Limits,
    log_path: Path,
    patience: float = PATIENCE,
    on_progress: Progress | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Run the stage in this number of processes of this machine that train together; the first one's answer.

    Args:
        request, name, limits, log_path: as for :func:`tasks.running.launch.run_child`; the others' logs lie beside it.
        patience: seconds after which a rank that does not answer is taken for lost.
        how: what else :func:`tasks.running.launch.run_child` takes.

    Raises:
        ChildFailed: one of them died again and again.
        Exception: what any of them raised.
    """
    began = time.monotonic()

    def gather(attempt: int) -> RankGroup:
        meeting = (Path(request["workdir"]) / f"meeting-{attempt}").as_uri()
        return _Here(ranks, Party(began), meeting, patience, {"name": name, "limits": limits, **how})

    return train_together(request, gather=gather, name=name, log_path=log_path, on_progress=on_progress)


def train_together(
    request: dict[str, Any],
    *,
    gather: Callable[[int], RankGroup],
    name: str,
    log_path: Path,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the stage in processes that train together, and again from the last checkpoint where one is lost.

    Args:
        request, name, log_path, on_progress: as for :func:`run_ranks`.
        gather: makes the processes' places, for the attempt of this number from 1 on; may raise RankLost.

    Raises:
        ChildFailed: they failed again and again without having come any further.
        Exception: what any of them raised.
    """
    furthest = _Furthest(on_progress)
    fruitless = {"find each other": 0, "train": 0}
    for attempt in itertools.count(1):
        before, furthest.joined = furthest.fraction, False
        reason: ChildFailed | RankLost | None
        try:
            group = gather(attempt)
        except RankLost as error:
            count, reason = 0, error
        else:
            answer, reason = _together(group, request, log_path, furthest)
            if reason is None:
                return answer
            count = group.count
        doing = "train" if furthest.joined else "find each other"
        fruitless[doing] = 1 if furthest.fraction > before else fruitless[doing] + 1
        if fruitless[doing] > _TRIES[doing]:
            if isinstance(reason, RankLost):  # none of them died of itself: they lost each other
                raise ChildFailed(f"stage {name} failed {fruitless[doing]} times: {reason}") from reason
            raise reason
        text = "%s: %s; the %s processes start again, from the last checkpoint"
        _log.warning(text, name, str(reason).splitlines()[0], count or "other")
    raise AssertionError("unreachable")


class _Here:
    """Ranks on this machine."""

    def __init__(self, count: int, party: Party, meeting: str, patience: float, how: dict[str, Any]) -> None:
        self.count, self._party, self._how = count, party, how
        self._common = {"count": count, "here": count, "meeting": meeting, "patience": patience}

    def run(self, number: int, request: dict[str, Any], log_path: Path, on_progress: Progress | None) -> dict[str, Any]:
        place = {"number": number, "local": number, **self._common}
        return run_child(
            {**request, "ranks": place}, log_path=log_path, party=self._party, on_progress=on_progress, **self._how
        )

    def leave(self) -> None:
        """Nothing: a process that has answered well may serve another stage."""

    def end(self) -> None:
        self._party.end()


class _Furthest:
    """How far the training has come; passes it on while it goes forward."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress, self.fraction, self.joined = on_progress, 0.0, False

    def __call__(self, fraction: float, text: str) -> None:
        self.joined = True
        if fraction >= self.fraction:
            self.fraction = fraction
            if self._on_progress is not None:
                self._on_progress(fraction, text)


def _together(
    group: RankGroup, request: dict[str, Any], log_path: Path, on_progress: Progress
) -> tuple[dict[str, Any], ChildFailed | RankLost | None]:
    """The first rank's answer once all have one; or why none has, if starting again may help. Raises what cannot."""

    def rank(number: int) -> dict[str, Any]:
        log = log_path if number == 0 else log_path.with_stem(f"{log_path.stem}-rank{number + 1}")
        return group.run(number, request, log, None if number else on_progress)

    with ThreadPoolExecutor(max_workers=group.count) as pool, contextlib.ExitStack() as ending:
        ending.callback(group.end)
        # The context is that of the run: who is told of its progress.
        running = [pool.submit(contextvars.copy_context().run, rank, number) for number in range(group.count)]
        _, waiting = wait(running, return_when="FIRST_EXCEPTION")
        _, waiting = wait(waiting, timeout=_SAY_WHY)
        failed = [error for future in running if future not in waiting if (error := future.exception()) is not None]
        if not failed:
            ending.pop_all()
            group.leave()
            return running[0].result(), None
    reason = next((error for error in failed if not isinstance(error, RankLost)), failed[0])
    if isinstance(reason, RankLost) or (isinstance(reason, ChildFailed) and reason.details.get("died")):
        return {}, reason
    raise reason
