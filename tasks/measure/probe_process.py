"""The probe's process: started once, asked for one variant after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_registry.answering import AnsweringFailed, AskedProcess
from model_registry.measurement import Clocked
from model_registry.store import Store
from model_registry.variant import Variant
from tasks.running.errors import ChildFailed

_kept: ProbeProcess | None = None


@contextmanager
def probe_process() -> Iterator[ProbeProcess]:
    """The process of this stage child; it stays for the next stage, unless something fails.

    It is in our process group and reads its requests from us, so that it ends with us, however we end.
    """
    global _kept  # belongs to the process, as the process belongs to the pool
    if _kept is None:
        _kept = ProbeProcess()
    try:
        yield _kept
    except BaseException:
        _kept.close()
        _kept = None
        raise


class ProbeProcess:
    """``python -m serving.probe``, which no task imports."""

    def __init__(self) -> None:
        self._process = AskedProcess("serving.probe")
        self._loaded = ("", 0)
        """Digest and threads of the baseline that it holds."""

    def measure(
        self, store: Store, workdir: Path, *, variant: Variant, baseline: Variant, threads: int, **request: Any
    ) -> dict[str, Any]:
        """Numbers of the variant; the first output of every sample is then in ``workdir / "outputs.npy"``.

        Args:
            workdir: an empty folder of our own; gets the files of the variant, in ``variant``.
            threads: intra-op threads.
            request: further fields of :class:`serving.probe.ProbeRequest`.

        Raises:
            ChildFailed: the probe refuses the request or died; says what it said.
        """
        request |= {
            "variant": variant.model_dump(mode="json", by_alias=True),
            "folder": str(store.materialise(variant.files, workdir / "variant")),
            "outputs": str(workdir / "outputs.npy"),
        }
        needed = variant.digest != baseline.digest
        return self._ask(store, workdir, variant.name, baseline if needed else None, baseline, threads, request)

    def clock(
        self,
        store: Store,
        workdir: Path,
        *,
        variants: Sequence[Variant],
        baseline: Variant,
        threads: int,
        **request: Any,
    ) -> list[Clocked]:
        """Size and speed of the variants, timed in turns with the baseline; arguments as :meth:`measure`.

        Args:
            request: further fields of :class:`serving.probe.ClockRequest`.
        """
        request["clocked"] = [
            (v.model_dump(mode="json", by_alias=True), str(store.materialise(v.files, workdir / v.digest)))
            for v in variants
        ]
        names = ", ".join(v.name for v in variants)
        found = self._ask(store, workdir, names, baseline, baseline, threads, request)
        return [Clocked.model_validate(each) for each in found["clocked"]]

    def continue_texts(
        self, store: Store, workdir: Path, *, variant: Variant, baseline: Variant, threads: int, **request: Any
    ) -> dict[str, list[list[list[int]]]]:
        """What ``variant`` and ``baseline`` say, the bytes of each token after each prompt; see :meth:`measure`.

        Args:
            request: further fields of :class:`serving.probe.GreedyRequest`.
        """
        request |= {
            "variant": variant.model_dump(mode="json", by_alias=True),
            "folder": str(store.materialise(variant.files, workdir / "variant")),
        }
        return self._ask(store, workdir, variant.name, baseline, baseline, threads, request)

    def _ask(
        self,
        store: Store,
        workdir: Path,
        what: str,
        needed: Variant | None,
        baseline: Variant,
        threads: int,
        request: dict[str, Any],
    ) -> dict[str, Any]:
        """Ask the process, with the files of the baseline that is needed unless it holds them already."""
        other = None
        if needed is not None and self._loaded != (needed.digest, threads):
            other = store.materialise(needed.files, workdir / "baseline")
        document = baseline.model_dump(mode="json", by_alias=True)
        request |= {"baseline": document, "baseline_folder": str(other) if other else None, "threads": threads}
        try:
            found: dict[str, Any] = self._process.ask(request)
        except AnsweringFailed as error:
            raise ChildFailed(f"measuring {what} failed: {error}") from error
        if needed is not None and other:
            self._loaded = (needed.digest, threads)
        return found

    def settle(self) -> None:
        """Return when the probe has come to rest after a measurement: what others measure is not disturbed."""
        try:
            self._process.wait_ready()
        except AnsweringFailed as error:
            raise ChildFailed(f"the measuring process failed after a measurement: {error}") from error

    def close(self) -> None:
        """End it."""
        self._process.close()
