"""``winnow export-serving``: a registered version for Kubernetes, KServe or Triton, as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.reaching import reach_store

if TYPE_CHECKING:
    from flows.exporting.exported_version import ExportedVersion, Needs


@click.command("export-serving")
@click.argument("model")
@click.option("--version", type=click.IntRange(min=1), help="A registered version. [default: the champion]")
@click.option(
    "--to", "platform", type=click.Choice(["kubernetes", "kserve", "triton"]), required=True, help="What will serve it."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the files; a new or an empty one.",
)
@click.option("--image", help="Container image with winnow in it, best by digest. Needed for kubernetes and kserve.")
@click.option(
    "--plain-http", is_flag=True, help="For kubernetes: no certificate in the pods, since a mesh or a proxy has one."
)
@click.option(
    "--memory", type=click.IntRange(min=128), metavar="MIB", help="Memory of a pod. [default: from its measurements]"
)
def export_serving_command(
    model: str,
    version: int | None,
    platform: str,
    output: Path,
    image: str | None,
    plain_http: bool,
    memory: int | None,
) -> int:
    """Write what another platform needs to serve a version of MODEL: manifests, or a model repository.

    A pod serves this one version, pinned by its digest, and asks neither the ledger nor MLflow. Nothing is applied or
    sent anywhere; docs/beyond.md says what has to be there before.

    \b
    Example:
      winnow export-serving digits --to kubernetes --image registry.example/winnow@sha256:... -o digits-k8s
      winnow export-serving digits --version 3 --to triton -o models
    """
    if platform != "triton" and not image:
        raise click.UsageError(f"--to {platform} needs --image: a container image with winnow installed in it")
    if platform == "triton" and (image or memory):
        raise click.UsageError("--to triton takes neither --image nor --memory: they are Triton's own")
    if plain_http and platform != "kubernetes":
        raise click.UsageError("--plain-http is for --to kubernetes alone")
    if output.exists() and any(output.iterdir()):
        raise click.UsageError(f"{output} is not empty; name a new folder")
    store = reach_store()
    from flows.exporting.exported_version import ExportedVersion, Needs

    exported = ExportedVersion.find(store, model, version)
    if platform == "triton":
        from flows.exporting.triton_repository import write_triton_repository

        for difference in write_triton_repository(exported, store, output):
            click.secho("note: ", fg="yellow", err=True, nl=False)
            click.echo(difference, err=True)
    else:
        needs = Needs(exported.cores, memory) if memory else exported.needs(store)
        _write(output, exported, _objects(platform, exported, str(image), needs, tls=not plain_http))
    click.echo(f"{output}: {model} version {exported.version} for {platform}, {exported.variant.digest}")
    return 0


def _objects(
    platform: str, exported: ExportedVersion, image: str, needs: Needs, *, tls: bool
) -> dict[str, dict[str, Any]]:
    if platform == "kserve":
        from flows.exporting.kserve_manifest import kserve_manifest

        return kserve_manifest(exported, image, needs)
    from flows.exporting.kubernetes_manifests import kubernetes_manifests

    return kubernetes_manifests(exported, image, needs, tls=tls)


def _write(folder: Path, exported: ExportedVersion, objects: dict[str, dict[str, Any]]) -> None:
    import yaml

    class Plain(yaml.SafeDumper):
        """Says everything in full: an alias is valid YAML, and confuses who reads it."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    folder.mkdir(parents=True, exist_ok=True)
    line = f"# Version {exported.version} of {exported.model}, written by winnow export-serving.\n"
    for name, value in objects.items():
        text = yaml.dump(value, Dumper=Plain, sort_keys=False, width=120)
        (folder / name).write_text(line + text)
