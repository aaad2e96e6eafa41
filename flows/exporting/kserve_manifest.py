"""A registered version as an InferenceService of KServe, with Winnow's endpoint as its predictor."""

from __future__ import annotations

from typing import Any

from flows.exporting.exported_version import ExportedVersion, Needs
from flows.exporting.serving_container import PORT, serving_container, serving_volumes


def kserve_manifest(exported: ExportedVersion, image: str, needs: Needs) -> dict[str, dict[str, Any]]:
    """The object by the name of its file. TLS ends in KServe's gateway.

    Only what both of KServe's modes take: of a pod, Knative allows no fsGroup, no lifecycle and no place on nodes
    unless its administrator says so. Without an fsGroup a secret is readable where everybody may read it; nobody else
    is in the container.
    """
    container = serving_container(exported, image, needs, tls=False)
    predictor = {
        "minReplicas": 1,
        "maxReplicas": 10,
        "timeout": 60,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [
            {
                "name": "kserve-container",
                **container,
                "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
            }
        ],
        "volumes": serving_volumes(exported, mode=0o444, tls=False),
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": exported.label,
            "labels": {"app.kubernetes.io/name": "winnow", "app.kubernetes.io/version": str(exported.version)},
            "annotations": {"winnow/model": exported.model, "winnow/digest": exported.variant.digest},
        },
        "spec": {"predictor": predictor},
    }
    return {"inference-service.yaml": service}
