"""``winnow init``: a workload and a spec that run as they are. ``winnow schema``: the JSON Schema of specs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["tabular", "images"]),
    default="tabular",
    show_default=True,
    help="What the example works on: rows of a CSV file, or pictures in a folder per class.",
)
def init_command(folder: Path, kind: str) -> None:
    """Scaffold a workload and a spec of your own in FOLDER, with a little data. Its last part names the model.

    Run it as it is, then put in your own data and model, step by step. Nothing is overwritten.

    \b
    Example:
      winnow init machines
      winnow run machines/spec.yaml
    """
    from flows.commands.scaffold import scaffold

    name = folder.absolute().name
    if not _NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r} cannot name a model: use letters, digits, '_', '.' and '-', at most 64, the first a letter or "
            "digit",
            param_hint="FOLDER",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.BadParameter(f"{folder} is there already; name a folder that is not", param_hint="FOLDER")
    files = scaffold(folder, name, kind)
    for path in files:
        click.echo(f"  {path}")
    click.echo(f"run it: winnow run {folder / 'spec.yaml'}")


@click.command("schema")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file.")
def schema_command(output: Path | None) -> None:
    """Print the JSON Schema of the spec: editors complete and check specs with it.

    \b
    Example:
      winnow schema -o winnow.schema.json
      # first line of a spec, for editors with the YAML language server:
      # yaml-language-server: $schema=winnow.schema.json
    """
    text = json.dumps(spec_schema(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def spec_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of what ``winnow run`` reads."""
    from flows.spec import PipelineSpec

    found = PipelineSpec.model_json_schema(by_alias=True)
    workload = found["properties"]["workload"]
    path = found["$defs"]["WorkloadRef"]["properties"]["path"]
    # `workload: module:Class` is short for {path: module:Class}.
    short = {"type": "string", "pattern": path["pattern"]}
    found["properties"]["workload"] = {
        "anyOf": [{"$ref": workload["$ref"]}, short],
        "description": workload["description"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | found
