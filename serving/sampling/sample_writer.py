"""The process that writes samples to S3: ``python -m serving.sampling.sample_writer DESCRIPTOR DAYS``.

Samples come over the socket with this descriptor (:mod:`serving.sampling.sample_frames`); back go lines of JSON that
say how many were written and lost so far. It ends when the front closes the socket, after a last attempt to write.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from model_registry.sample_files import SAMPLES, sample_expired, sample_key
from model_registry.store import Store, StoreError
from serving.exceptions import ServingError
from serving.sampling.sample_frames import Sample, SampleCutter
from serving.sampling.sample_table import SampleRow, read_sample, write_samples

_FILE_SECONDS = 300.0
"""Of samples in a file."""
_AGAIN_SECONDS = 30.0
"""Until what S3 did not take is tried again."""
_SWEEP_SECONDS = 3600.0
_MOST_BYTES = 32 << 20
"""Of samples that are not in a file yet; then they are put into one before its time."""
_MOST_WAITING = 64 << 20
"""Of files that S3 has not taken; then the oldest are lost."""
_PIECE = 1 << 18
_NICE = 10
log = logging.getLogger("winnow.serving")


class _File(NamedTuple):
    key: str
    data: bytes
    samples: int


class SampleWriter:
    """Collects samples by version, makes files of them, and keeps those until S3 has taken them.

    Args:
        connect: gives the store.
        days: for which samples are kept.

    Attributes:
        written, lost: samples.
        fault: why S3 does not take them; empty when it does.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        days: int,
        *,
        most_waiting: int = _MOST_WAITING,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connect, self._days, self._most_waiting, self._clock = connect, days, most_waiting, clock
        self.written = self.lost = 0
        self.fault = ""
        self._samples: dict[str, list[Sample]] = {}
        self._bytes = 0
        self._files = deque[_File]()

    @property
    def full(self) -> bool:
        """Whether what it has must be put into files now."""
        return self._bytes >= _MOST_BYTES

    def add(self, sample: Sample) -> None:
        """Keep it for the next file."""
        kind = json.dumps([sample.model, sample.version, sample.inputs, sample.outputs])
        self._samples.setdefault(kind, []).append(sample)
        self._bytes += sample.bytes

    def make_files(self) -> None:
        """Put what was collected into a file for each version."""
        collected, self._samples, self._bytes = self._samples, {}, 0
        for samples in collected.values():
            if rows := self._read(samples):
                like, first = samples[0], min(row.time for row in rows)
                key = sample_key(like.model, like.version, first=first, days=self._days, token=secrets.token_hex(4))
                self._files.append(_File(key, write_samples(like, rows), len(rows)))
        while sum(len(file.data) for file in self._files) > self._most_waiting:
            self.lost += self._files.popleft().samples

    def _read(self, samples: list[Sample]) -> list[SampleRow]:
        rows = list[SampleRow]()
        for sample in samples:
            try:
                rows.append(read_sample(sample))
            except (ServingError, ValueError) as error:
                self.lost += 1
                log.error("a sample of model %s version %s cannot be read: %s", sample.model, sample.version, error)
        return rows

    def upload(self) -> None:
        """Hand the files to S3, the oldest first; the rest stays when it does not take one."""
        try:
            store = self._connect()
            while self._files:
                store.put(self._files[0].key, self._files[0].data, content_type="application/vnd.apache.parquet")
                self.written += self._files.popleft().samples
        except StoreError as error:
            self._failed("samples wait for S3", error)
        else:
            self.fault = ""

    def sweep(self) -> None:
        """Remove files that have been kept for their time."""
        try:
            store, now = self._connect(), self._clock()
            for key in store.list_objects(SAMPLES):
                if sample_expired(key, now, days=self._days):
                    store.delete(key)
        except StoreError as error:
            self._failed("old samples are not removed", error)

    def _failed(self, what: str, error: StoreError) -> None:
        if str(error) != self.fault:  # said once
            log.error("%s: %s", what, error)
        self.fault = str(error)


def take_samples(control: socket.socket, writer: SampleWriter) -> None:
    """Take samples until the front closes the socket, and write them every few minutes, after all that others do."""
    os.nice(_NICE)  # of this thread alone
    cutter, began = SampleCutter(), time.monotonic()
    file_at, upload_at, sweep_at = began + _FILE_SECONDS, began + _AGAIN_SECONDS, began
    while True:
        pause = max(0.0, min(file_at, upload_at, sweep_at) - time.monotonic())
        readable, _, _ = select.select([control], [], [], pause)
        if readable:
            data = control.recv(_PIECE)
            if not data:
                break
            for sample in cutter.feed(data):
                writer.add(sample)
        now = time.monotonic()
        if now >= file_at or writer.full:
            writer.make_files()
            file_at, upload_at = now + _FILE_SECONDS, now
        if now >= upload_at:
            writer.upload()
            upload_at = time.monotonic() + _AGAIN_SECONDS
            _report(control, writer)
        if now >= sweep_at:
            writer.sweep()
            sweep_at = time.monotonic() + _SWEEP_SECONDS


def _report(control: socket.socket, writer: SampleWriter) -> None:
    said = {"written": writer.written, "lost": writer.lost, "fault": writer.fault}
    with contextlib.suppress(OSError):  # the front is gone: the next read says so
        control.sendall(json.dumps(said).encode() + b"\n")


def main() -> None:
    """Write samples until the front is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for a whole group: the front says when it is time
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for quiet in ("botocore", "boto3", "s3transfer", "urllib3"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    writer = SampleWriter(Store.from_environment, int(sys.argv[2]))
    with socket.socket(fileno=int(sys.argv[1])) as control:
        taking = threading.Thread(target=take_samples, args=(control, writer))
        taking.start()
        taking.join()
        writer.make_files()  # nobody is served any more, and the front waits
        writer.upload()
        _report(control, writer)


if __name__ == "__main__":
    main()
