"""Where the user's data lies: a local path or s3://, found, fetched and fingerprinted."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_registry.manifest import canonical_json, describe_folder, hash_bytes, hash_file, stays_inside
from model_registry.store import BucketMissing, ObjectMissing, Store
from tasks.running.errors import DataReadError

_PACKAGE = "package:"


@contextmanager
def local(source: str) -> Iterator[Path]:
    """A local path with the content of the source, for as long as the context lasts.

    Args:
        source: a path, or ``s3://bucket/key`` of an object or a folder (fetched with the standard AWS variables), or
            ``package:NAME``, the folder of an installed package. Relative paths are looked for beside the spec, then in
            the current folder.

    Raises:
        DataReadError: there is nothing of that name, or an object's key is no path below the source.
        StoreUnavailable, StoreDenied: S3 does not answer or refuses the credentials.
    """
    if source.startswith(_PACKAGE):
        yield package_folder(source.removeprefix(_PACKAGE))
        return
    if not source.startswith("s3://"):
        yield _find(source)
        return
    store = Store.from_environment()
    places = _places(source, _objects(store, source))
    with tempfile.TemporaryDirectory(prefix="winnow-data-") as folder:
        targets = {uri: Path(folder) / place for uri, place in places.items()}
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(store.download, targets, targets.values()))
        try:
            yield Path(folder) / source.rstrip("/").removeprefix(_parent(source))
        except DataReadError as error:  # name the object, not its copy, which is gone in a moment
            raise DataReadError(error.message.replace(f"{folder}/", _parent(source)), **error.details) from error


def fingerprint(arguments: dict[str, Any], base: Path) -> dict[str, str]:
    """What the files named in a workload's arguments hold, by their path in the arguments.

    Every text that names a local file or folder (below ``base``, else below the current folder) or starts with
    ``s3://`` or ``package:`` counts, at any depth, and so does a pattern of files (``shards/*.parquet``): local content
    by sha256, S3 objects by their names and etags. It goes into the cache key of the data stage, so that changed data
    is noticed under an unchanged name.

    Raises:
        DataReadError: an s3:// source names nothing.
    """
    found: dict[str, str] = {}
    for where, value in _texts(arguments, ""):
        if value.startswith("s3://"):
            store = Store.from_environment()
            found[where] = hash_bytes(canonical_json(sorted(_etags(store, value).items())))
        elif is_pattern(value) and (files := matching(value, base)):
            hashes = [[Path(file).name, hash_file(Path(file))] for file in files]
            found[where] = hash_bytes(canonical_json(hashes))
        elif value.startswith(_PACKAGE):
            found[where] = _folder_hash(package_folder(value.removeprefix(_PACKAGE)))
        elif value and len(value) < 4096 and "\0" not in value:
            path = next((folder / value for folder in (base, Path.cwd()) if (folder / value).exists()), base / value)
            if path.is_file():
                found[where] = hash_file(path)
            elif path.is_dir():
                found[where] = _folder_hash(path)
    return found


def is_pattern(source: str) -> bool:
    """Whether the last part of a path or URI has a star, which stands for any part of a name."""
    return "*" in source.rpartition("/")[2] and "*" not in source.rpartition("/")[0] and len(source) < 4096


def matching(pattern: str, base: Path | None = None) -> list[str]:
    """The files whose names fit a pattern, sorted: s3:// URIs, or local paths; [] where none does.

    Args:
        base: the folder of relative paths; None: they are looked for as :func:`local` does.

    Raises:
        DataReadError: there is no such bucket. StoreUnavailable, StoreDenied: as :func:`local`.
    """
    if pattern.startswith("s3://"):
        return _matching_objects(Store.from_environment(), pattern)
    place = Path(pattern).expanduser()
    folders = [base, Path.cwd()] if base is not None else _search_folders()
    for folder in folders:
        beside = (folder / place.parent).iterdir() if (folder / place.parent).is_dir() else ()
        found = [path for path in beside if _fits(path.name, place.name) and path.is_file()]
        if found:
            return sorted(map(str, found))
    return []


def _matching_objects(store: Store, pattern: str) -> list[str]:
    beginning = pattern.partition("*")[0]
    try:
        listed = store.list_uri(beginning)
    except (BucketMissing, ObjectMissing) as error:
        raise DataReadError(f"{pattern}: there is no such bucket ({error}); check its name") from error
    folder, _, name = pattern.rpartition("/")
    return [uri for uri in listed if uri.rpartition("/")[0] == folder and _fits(uri.rpartition("/")[2], name)]


def _fits(name: str, pattern: str) -> bool:
    """Hidden files fit no pattern."""
    return not name.startswith(".") and re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None


def _folder_hash(folder: Path) -> str:
    return hash_bytes(canonical_json([[entry.path, entry.sha256] for entry in describe_folder(folder)]))


def package_folder(name: str) -> Path:
    """Where an installed package has its files; DataReadError where there is none."""
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DataReadError(f"no package {name!r} is installed here, or it has no folder; pip install it")
    return Path(next(iter(spec.submodule_search_locations)))


def _find(source: str) -> Path:
    path = Path(source).expanduser()
    for folder in _search_folders():
        if (folder / path).exists():  # an absolute path replaces the folder
            return folder / path
    raise DataReadError(
        f"there is no file or folder {source!r}; relative paths start at the folder of the spec, "
        "data in S3 is written s3://bucket/key"
    )


def _search_folders() -> list[Path]:
    # The spec's folder is the last of sys.path: what a workload reads is found like the workload itself.
    return [Path(folder) for folder in reversed(sys.path) if folder] + [Path.cwd()]


def _objects(store: Store, source: str) -> list[str]:
    """The objects of a source: the one of that name, those of a pattern, or else all below it as a folder."""
    below = source.rstrip("/") + "/"
    try:
        listed = store.list_uri(source.rstrip("/"))
    except (BucketMissing, ObjectMissing) as error:
        raise DataReadError(f"{source}: there is no such bucket ({error}); check its name") from error
    if source in listed:
        return [source]
    if is_pattern(source) and (found := _matching_objects(store, source)):
        return found
    objects = [uri for uri in listed if uri.startswith(below) and not uri.endswith("/")]
    if not objects:
        raise DataReadError(f"{source} names no object and no folder with objects; check bucket and key")
    return objects


def _places(source: str, objects: list[str]) -> dict[str, str]:
    """Where each object goes below the temporary folder. A key is any text: one like ``a/../../x`` would leave it."""
    places = {uri: uri.removeprefix(_parent(source)) for uri in objects}
    odd = [uri for uri, place in places.items() if not stays_inside(place)]
    if odd:
        raise DataReadError(
            f"{source}: {len(odd)} keys cannot be paths of files, {odd[0]!r} for one: a part is empty, '.' or '..', "
            "or holds a backslash; rename these objects"
        )
    return places


def _etags(store: Store, source: str) -> dict[str, str]:
    def etag(uri: str) -> str:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return store.client.head_object(Bucket=bucket, Key=key)["ETag"]

    objects = _objects(store, source)
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(objects, pool.map(etag, objects), strict=True))


def _parent(source: str) -> str:
    return source.rstrip("/").rpartition("/")[0] + "/"


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _texts(value[key], f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}[{index}]")
