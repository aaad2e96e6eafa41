"""show: registered versions as rows of MLflow's registry. Nothing depends on them."""

from __future__ import annotations

from collections.abc import Mapping

from model_registry.champion_view import restore_lost
from model_registry.lease import lease
from model_registry.registry import CHALLENGER, CHAMPION, Registry
from model_registry.run_page import Tracked, VariantRun, variant_note
from model_registry.store import Store
from tasks.release.register import REGISTERING_SECONDS
from tasks.running.policy import step
from tasks.running.stage import Job


@step("show")
def show_versions(
    job: Job, *, versions: Mapping[str, int], chosen: str, rows: tuple[VariantRun, ...], tracked: Tracked
) -> None:
    """Show the versions that a run registered. Where there are several, the tag ``winnow.front`` of each names all.

    Args:
        versions: numbers by digest.
        chosen: digest of the one that becomes the challenger.
        rows: the run's variants, these among them.
        tracked: the run in MLflow whose child runs logged the models.

    Raises:
        RegistryError: MLflow does not answer (RegistryUnavailable: it may pass), or refuses.
        StoreUnavailable, LeaseBusy: may pass.
    """
    store, registry = Store(job.store), Registry.from_environment()
    front = {"winnow.front": ", ".join(map(str, sorted(versions.values())))} if len(versions) > 1 else {}
    with lease(store, f"register-{job.model}", wait_seconds=REGISTERING_SECONDS):
        restore_lost(registry, store, job.model, before=min(versions.values()))
        for row in sorted(
            (row for row in rows if row.variant.digest in versions), key=lambda r: versions[r.variant.digest]
        ):
            digest = row.variant.digest
            shown = registry.find_version(job.model, digest)
            if shown is None:
                about = {"winnow.stage": row.variant.stage, "winnow.variant": row.variant.name}
                child, note = tracked.children[digest], variant_note(row)
                shown = registry.create_version(
                    tracked.run, child, digest, versions[digest], description=note, tags=about
                )
            registry.tag_version(job.model, shown, front)
            if digest == chosen and registry.alias(job.model, CHAMPION) != shown:
                registry.set_alias(job.model, CHALLENGER, shown)
