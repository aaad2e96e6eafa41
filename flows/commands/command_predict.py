"""``winnow predict``: what a served model says of rows in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson

from flows.calls.inference_client import Client
from flows.commands.predict_input import (
    Samples,
    csv_samples,
    form_of,
    is_request,
    json_samples,
    numpy_samples,
    parsed_json,
)
from flows.reaching import reach_stack, reach_store
from model_registry.variant import TensorSpec
from serving.exceptions import InvalidRequest
from serving.tensors import Array
from tasks.evidence.number_text import seconds_text
from tasks.running.stage import Place

_PORTION_BYTES, _PORTION_ROWS = 4 << 20, 1024
"""Of one request, about: well within what an endpoint reads."""
_FIRST = ("label", "probability")


@click.command("predict")
@click.argument("model")
@click.option(
    "--input",
    "source",
    required=True,
    help="JSON (a row, a list of rows, or a request of the protocol), CSV with a header, .npy or .npz; - for stdin. Or "
    "a data set: Parquet files below s3://bucket/prefix, in a folder, or one of them.",
)
@click.option("--version", type=click.IntRange(min=1), help="A loaded version. [default: the one in service]")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    help="An output that is wanted; may be repeated. [default: all] Of a data set also where its answers go: "
    "s3://bucket/prefix, or a folder, written with a slash.",
)
@click.option("--keep", multiple=True, help="Of a data set: a column that the answers have too, such as an id.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Of a data set: rows at once."
)
@click.option("--workers", type=click.IntRange(min=1), help="Of a data set: processes. [default: one for each core]")
@click.option(
    "--place",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Of a data set: where its processes run; ray: on the nodes of the cluster of RAY_ADDRESS.",
)
@click.option("--variant", help="The variant that is to answer: its version, name or digest.")
@click.option("--min-accuracy", type=float, help="Least value of the metric; the fastest variant that has it answers.")
@click.option(
    "--max-latency-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="The most accurate variant that is expected to answer within this answers.",
)
@click.option("--url", help="Of the endpoint. [default: WINNOW_ENDPOINT, else that of the stack]")
@click.option("--key", help="Of the endpoint's client. [default: WINNOW_KEY]")
def predict_command(
    model: str,
    source: str,
    version: int | None,
    outputs: tuple[str, ...],
    url: str | None,
    key: str | None,
    keep: tuple[str, ...],
    batch: int,
    workers: int | None,
    place: Place,
    **wishes: Any,
) -> int:
    """Ask MODEL about the rows of a file; prints one JSON object per row.

    In CSV each column is an input, or all of them, in their order, are the one input of a table. A missing value is an
    empty field, or null in JSON. The values of an input of several dimensions may be given flat.

    A data set is answered here, without the endpoint, by a process for each core: each Parquet file becomes one, with
    its rows in their order. What was answered before is not computed again, so that a run that was stopped goes on.

    \b
    Example:
      winnow predict digits --input rows.npy
      echo '{"x": [1.5, 2]}' | winnow predict mine --input - --output label
      winnow predict digits --input s3://data/scans --output s3://data/answers --keep id --place ray
    """
    if _is_data_set(source):
        how = {"keep": keep, "batch": batch, "workers": workers, "place": place}
        return _answer_data_set(model, source, version, outputs, how)
    wants: Any = {name: value for name, value in wishes.items() if value is not None}
    name, content = ("standard input", sys.stdin.buffer.read()) if source == "-" else (source, _read(Path(source)))
    if not url and not os.environ.get("WINNOW_ENDPOINT"):
        reach_stack(("WINNOW_ENDPOINT",), components=("endpoint",), remedy="--url with the address of an endpoint")
    try:
        kind = form_of(content, Path(source).suffix)
        value = parsed_json(content) if kind == "json" else None
        with Client(url, key) as client:
            if is_request(value):
                if outputs or wants:
                    raise click.UsageError(
                        "--output, --variant, --min-accuracy and --max-latency-ms do not go with a request of the "
                        "protocol, which says its own"
                    )
                _print(client.infer(model, value, version))
                return 0
            inputs = client.metadata(model, version).inputs
            if kind == "json":
                samples = json_samples(value, inputs)
            else:
                samples = (csv_samples if kind == "csv" else numpy_samples)(content, inputs)
            for portion in _portions(samples, inputs):
                _print(client.predict_batch(model, portion, version, outputs or None, **wants))
    except InvalidRequest as error:
        raise click.ClickException(f"{name}: {error}") from error
    return 0


def _is_data_set(source: str) -> bool:
    return source.startswith("s3://") or source.endswith(".parquet") or Path(source).is_dir()


def _answer_data_set(
    model: str,
    source: str,
    version: int | None,
    outputs: tuple[str, ...],
    how: Mapping[str, Any],
) -> int:
    places = [output for output in outputs if "/" in output]
    if len(places) != 1:
        raise click.UsageError(
            "a data set needs one --output that says where its answers go: s3://bucket/prefix or a folder, with a slash"
        )
    store = reach_store()
    from flows.batch.batch_answers import answer_all
    from flows.exporting.exported_version import ExportedVersion

    exported = ExportedVersion.find(store, model, version)
    done = answer_all(
        store,
        exported.variant,
        source,
        places[0],
        outputs=[output for output in outputs if output not in places],
        **how,
        on_progress=lambda done, whole: click.echo(f"{done} of {whole} files", err=True),
    )
    there = f", {done.shards - done.computed} were there" if done.computed < done.shards else ""
    click.echo(
        f"{model} version {exported.version}: {done.rows} rows of {done.computed} files in {seconds_text(done.seconds)}"
        f"{there}; {places[0].rstrip('/')}/manifest.json, root {done.root[:16]}"
    )
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise click.UsageError(f"--input {path} cannot be read: {error.strerror}") from error


def _portions(samples: Samples, inputs: Sequence[TensorSpec]) -> Iterator[Samples]:
    """The rows in requests of a size that every endpoint takes; what is no list of rows goes whole, to be refused."""
    lengths = {len(values) if isinstance(values, list | np.ndarray) else 0 for values in samples.values()}
    rows = lengths.pop() if len(lengths) == 1 else 0
    if not rows:
        yield samples
        return
    size = 8 * sum(_count(values[0]) for values in samples.values())
    most = max(1, min(_PORTION_ROWS, _PORTION_BYTES // max(1, size)))
    fixed = [spec.shape[0] for spec in inputs if spec.shape and spec.shape[0] > 0]
    step = min(fixed, default=most)
    for start in range(0, rows, step):
        yield {name: values[start : start + step] for name, values in samples.items()}


def _count(row: Any) -> int:
    """Elements of a row, about."""
    if isinstance(row, np.ndarray):
        return row.size
    return len(row) * _count(row[0]) if isinstance(row, list) and row else 1


def _print(outputs: Mapping[str, Array]) -> None:
    """A line per row; one in all where the outputs are not rows of one batch."""
    names = [n for n in _FIRST if n in outputs] + [n for n in outputs if n not in _FIRST]
    lengths = {values.shape[:1] for values in outputs.values()}
    count = lengths.pop()[0] if len(lengths) == 1 and () not in lengths else None
    lines: list[dict[str, Any]]
    lines = (
        [{n: outputs[n] for n in names}] if count is None else [{n: outputs[n][i] for n in names} for i in range(count)]
    )
    for line in lines:
        click.echo(orjson.dumps(line, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY).decode())


def _plain(values: Any) -> Any:
    """Arrays that orjson does not write by itself: of text, and parts of others."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    raise TypeError(f"{type(values).__name__} is no output")
