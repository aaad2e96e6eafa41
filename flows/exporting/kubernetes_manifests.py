"""A registered version as objects of Kubernetes."""

from __future__ import annotations

from typing import Any

from flows.exporting.exported_version import ExportedVersion, Needs
from flows.exporting.serving_container import ADMIN_PORT, PORT, USER, serving_container, serving_volumes

_LEAST, _MOST = 2, 10
_DRAIN_SECONDS = 20
"""serving/limits.py: drain_seconds."""
_UNLINK_SECONDS = 5
"""In which a service forgets a pod that ends."""
_ARCHITECTURES = {"x86-64": "amd64", "aarch64": "arm64"}
_FEATURES = {
    "avx512-vnni": "AVX512VNNI",
    "avx-vnni": "AVXVNNI",
    "avx512": "AVX512BW",
    "avx2": "AVX2",
}
"""CPU classes, the newest first (model_registry/cpu_class.py), as Node Feature Discovery calls what tells them."""


def kubernetes_manifests(
    exported: ExportedVersion, image: str, needs: Needs, *, tls: bool = True
) -> dict[str, dict[str, Any]]:
    """Objects by the names of their files.

    Args:
        tls: whether the pods have a certificate; else something in front of them has.
    """
    name = exported.label
    chosen = {"app.kubernetes.io/name": "winnow", "app.kubernetes.io/instance": name}
    head = {
        "name": name,
        "labels": {**chosen, "app.kubernetes.io/version": str(exported.version)},
        "annotations": {"winnow/model": exported.model, "winnow/digest": exported.variant.digest},
    }
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "deployment": ("apps/v1", "Deployment", _deployment(exported, image, needs, tls=tls, head=head)),
        "service": ("v1", "Service", {"selector": chosen, "ports": [_service_port(tls)]}),
        "disruption-budget": (
            "policy/v1",
            "PodDisruptionBudget",
            {"maxUnavailable": 1, "selector": {"matchLabels": chosen}},
        ),
        "autoscaler": ("autoscaling/v2", "HorizontalPodAutoscaler", _autoscaler(name)),
        "network-policy": ("networking.k8s.io/v1", "NetworkPolicy", _policy(chosen)),
    }
    return {
        f"{file}.yaml": {"apiVersion": version, "kind": kind, "metadata": head, "spec": spec}
        for file, (version, kind, spec) in kinds.items()
    }


def _deployment(
    exported: ExportedVersion, image: str, needs: Needs, *, tls: bool, head: dict[str, Any]
) -> dict[str, Any]:
    chosen = {key: value for key, value in head["labels"].items() if not key.endswith("/version")}
    container = serving_container(exported, image, needs, tls=tls)
    token = {"secretKeyRef": {"name": f"{exported.label}-access", "key": "admin-token"}}
    container["env"] += [
        {"name": "WINNOW_ADMIN_HOST", "value": "0.0.0.0"},  # for its metrics; the network policy says who may ask
        {"name": "WINNOW_ADMIN_PORT", "value": str(ADMIN_PORT)},
        {"name": "WINNOW_ADMIN_TOKEN", "valueFrom": token},
    ]
    ports = [{"name": _scheme(tls), "containerPort": PORT}, {"name": "admin", "containerPort": ADMIN_PORT}]
    pod = {
        "containers": [
            {
                "name": "endpoint",
                **container,
                "ports": ports,
                # Still answering while services forget it; then the endpoint drains by itself.
                "lifecycle": {"preStop": {"sleep": {"seconds": _UNLINK_SECONDS}}},
            }
        ],
        "volumes": serving_volumes(exported, mode=0o440, tls=tls),
        "securityContext": {"fsGroup": USER},  # so that it can read its secrets
        "terminationGracePeriodSeconds": _UNLINK_SECONDS + 2 * _DRAIN_SECONDS,
        "automountServiceAccountToken": False,
        # A service called winnow-endpoint would become the variable WINNOW_ENDPOINT_PORT, and the like.
        "enableServiceLinks": False,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": chosen},
            }
        ],
        **_nodes(exported.variant.runtime.cpu_class),
    }
    return {
        "selector": {"matchLabels": chosen},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": head["labels"], "annotations": head["annotations"]}, "spec": pod},
    }


def _nodes(cpu_class: str | None) -> dict[str, Any]:
    """Where int8 answers are those that were validated. On another class of CPU the endpoint refuses the version.

    That the architecture fits can be asked of every cluster; the class only where Node Feature Discovery runs, so it is
    a wish.
    """
    if cpu_class is None:
        return {}
    architecture, _, kind = cpu_class.partition("/")
    nodes: dict[str, Any] = {}
    if architecture in _ARCHITECTURES:
        nodes["nodeSelector"] = {"kubernetes.io/arch": _ARCHITECTURES[architecture]}
    if kind in _FEATURES:
        newer = list(_FEATURES)[: list(_FEATURES).index(kind)]
        wish = [{"key": _node_label(kind), "operator": "Exists"}]
        wish += [{"key": _node_label(other), "operator": "DoesNotExist"} for other in newer]
        preferred = [{"weight": 100, "preference": {"matchExpressions": wish}}]
        nodes["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return nodes


def _node_label(kind: str) -> str:
    return f"feature.node.kubernetes.io/cpu-cpuid.{_FEATURES[kind]}"


def _service_port(tls: bool) -> dict[str, Any]:
    name = _scheme(tls)
    return {"name": name, "port": 443 if tls else 80, "targetPort": name, "appProtocol": name}


def _autoscaler(name: str) -> dict[str, Any]:
    return {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": _LEAST,
        "maxReplicas": _MOST,
        "metrics": [
            {
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}},
            }
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
    }


def _policy(chosen: dict[str, str]) -> dict[str, Any]:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    return {
        "podSelector": {"matchLabels": chosen},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"protocol": "TCP", "port": PORT}]},
            {"from": [monitoring], "ports": [{"protocol": "TCP", "port": ADMIN_PORT}]},
        ],
    }


def _scheme(tls: bool) -> str:
    return "https" if tls else "http"
