"""The parts of a large data set, and what the answer to each is called."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model_registry.manifest import canonical_json, hash_file
from model_registry.store import BucketMissing, ObjectMissing, Store
from model_registry.variant import Frozen
from tasks.running.errors import DataReadError

SUFFIX = ".parquet"


class Shard(Frozen):
    """One file of rows."""

    uri: str
    """``s3://bucket/key`` or a path."""
    content: str
    """What changes when the file does: its etag, or its sha256 where it is local."""

    @property
    def stem(self) -> str:
        return self.uri.rpartition("/")[2].removesuffix(SUFFIX)


class ShardQuestion(Frozen):
    """What every shard is asked; with the shard's content all that determines its answer."""

    variant: str
    """Digest."""
    batch: int
    outputs: tuple[str, ...]
    keep: tuple[str, ...]
    """Columns that are copied into the answer."""
    code: str
    """Hash of the code that answers."""

    def name(self, shard: Shard) -> str:
        """File name of the shard's answer: equal names are equal answers, whoever computes them."""
        told = canonical_json({**self.model_dump(mode="json"), "content": shard.content})
        return f"{shard.stem}-{hashlib.sha256(told).hexdigest()[:16]}{SUFFIX}"


def shards_of(store: Store, source: str) -> list[Shard]:
    """The Parquet files at a source, sorted: ``s3://bucket/prefix``, with ``/*.parquet`` or not, a folder or a file.

    Raises:
        DataReadError: it names none.
    """
    place = source.removesuffix(f"*{SUFFIX}")
    if source.startswith("s3://"):
        try:
            found = [uri for uri in store.list_uri(place) if uri.endswith(SUFFIX)]
        except (BucketMissing, ObjectMissing) as error:
            raise DataReadError(f"{source}: there is no such bucket ({error}); check its name") from error
        with ThreadPoolExecutor(max_workers=16) as pool:
            shards = [Shard(uri=u, content=e) for u, e in zip(found, pool.map(store.etag_of, found), strict=True)]
    else:
        path = Path(place)
        files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
        shards = [Shard(uri=str(file), content=hash_file(file)) for file in files]
    if not shards:
        raise DataReadError(f"{source} names no Parquet file ({SUFFIX}); give a prefix in S3, a folder, or a file")
    refuse_twins(shards)
    return shards


def refuse_twins(shards: Sequence[Shard]) -> None:
    """Refuse two files with one name and one content, whose answers would be one file.

    Raises:
        DataReadError: names both.
    """
    seen: dict[tuple[str, str], str] = {}
    for shard in shards:
        twin = seen.setdefault((shard.stem, shard.content), shard.uri)
        if twin != shard.uri:
            raise DataReadError(f"{twin} and {shard.uri} have one name and the same content; leave one of them out")


def partial_file(target: str, name: str, pid: int | str) -> Path:
    """Where a process writes a file of a folder before it is whole."""
    return Path(target) / f".{name}.{pid}"
