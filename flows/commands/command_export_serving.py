"""``winnow export-serving``: a registered version for Kubernetes, KServe, Triton or another machine, as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from flows.reaching import reach_store
from model_registry.target_form import Target

if TYPE_CHECKING:
    from flows.exporting.exported_version import ExportedVersion, Needs


_IMAGES = ("kubernetes", "kserve")


@click.command("export-serving")
@click.argument("model")
@click.option("--version", type=click.IntRange(min=1), help="A registered version. [default: the champion]")
@click.option(
    "--to",
    "platform",
    type=click.Choice(["kubernetes", "kserve", "triton", *get_args(Target)]),
    required=True,
    help="What will serve it, or the target that its spec names.",
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
    """Write what another platform needs to serve a version of MODEL: manifests, a model repository, or the form of a
    target with its proof.

    A pod serves this one version, pinned by its digest, and asks neither the ledger nor MLflow. Nothing is applied or
    sent anywhere; docs/beyond.md says what has to be there before.

    \b
    Example:
      winnow export-serving digits --to kubernetes --image registry.example/winnow@sha256:... -o digits-k8s
      winnow export-serving digits --version 3 --to triton -o models
      winnow export-serving digits --to xla -o digits-tpu
    """
    if platform in _IMAGES and not image:
        raise click.UsageError(f"--to {platform} needs --image: a container image with winnow installed in it")
    if platform not in _IMAGES and (image or memory):
        raise click.UsageError(f"--to {platform} takes neither --image nor --memory: no container is described")
    if plain_http and platform != "kubernetes":
        raise click.UsageError("--plain-http is for --to kubernetes alone")
    if output.exists() and any(output.iterdir()):
        raise click.UsageError(f"{output} is not empty; name a new folder")
    store = reach_store()
    from flows.exporting.exported_version import ExportedVersion, Needs

    exported = ExportedVersion.find(store, model, version)
    if platform in get_args(Target):
        from flows.exporting.target_files import write_target

        form = write_target(exported, store, output, cast(Target, platform))
        click.echo(f"{form.reason} (asked on {form.device})")
    elif platform == "triton":
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
