"""The container that serves one pinned version: what Kubernetes and KServe have in common."""

from __future__ import annotations

from typing import Any

from flows.exporting.exported_version import ExportedVersion, Needs

PORT, ADMIN_PORT = 8080, 8081
USER = 65532
"""A number that no distribution gives to anybody."""
HOME = "/var/lib/winnow"
_MIB = 1 << 20


def serving_container(exported: ExportedVersion, image: str, needs: Needs, *, tls: bool) -> dict[str, Any]:
    """Image, command, settings, probes, resources and rights; a platform adds its ports, and what it can.

    Args:
        tls: whether the container has a certificate; else something in front of it has.
    """
    name = exported.label
    settings = {
        "WINNOW_SERVE": exported.pin,
        "WINNOW_STORE": exported.store_uri,
        "WINNOW_HOME": HOME,
        "WINNOW_ENDPOINT_HOST": "0.0.0.0",
        "WINNOW_ENDPOINT_PORT": str(PORT),
        "WINNOW_KEYS": "/etc/winnow/access/keys.json",
    }
    mounts = [
        {"name": "home", "mountPath": HOME},
        {"name": "access", "mountPath": "/etc/winnow/access", "readOnly": True},
    ]
    if tls:
        settings |= {
            "WINNOW_TLS_CERTIFICATE": "/etc/winnow/tls/tls.crt",
            "WINNOW_TLS_KEY": "/etc/winnow/tls/tls.key",
        }
        mounts.append({"name": "tls", "mountPath": "/etc/winnow/tls", "readOnly": True})
    else:
        settings["WINNOW_ENDPOINT_UNPROTECTED"] = "1"
    taken = {"cpu": str(needs.cores), "memory": f"{needs.mebibytes}Mi"}
    return {
        "image": image,
        "command": ["winnow", "serve"],
        "env": [{"name": key, "value": value} for key, value in settings.items()],
        "envFrom": [{"secretRef": {"name": f"{name}-s3"}}],
        "startupProbe": _probe("live", tls, periodSeconds=1, timeoutSeconds=2, failureThreshold=60),
        "livenessProbe": _probe("live", tls, periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "readinessProbe": _probe("ready", tls, periodSeconds=5, timeoutSeconds=5, failureThreshold=2),
        # The same: whole cores of its own where the node's CPU manager gives them, and the last to be evicted.
        "resources": {"requests": dict(taken), "limits": dict(taken)},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": mounts,
    }


def serving_volumes(exported: ExportedVersion, *, mode: int, tls: bool) -> list[dict[str, Any]]:
    """The volumes that the container mounts.

    Args:
        mode: rights of the secrets' files.
    """
    room = 2 * -(-exported.variant.size // _MIB) + 64  # the files, twice while they are replaced; the audit log
    name = exported.label
    keys = [{"key": "keys.json", "path": "keys.json"}]
    volumes: list[dict[str, Any]] = [
        {"name": "home", "emptyDir": {"sizeLimit": f"{room}Mi"}},
        {"name": "access", "secret": {"secretName": f"{name}-access", "defaultMode": mode, "items": keys}},
    ]
    if tls:
        volumes.append({"name": "tls", "secret": {"secretName": f"{name}-tls", "defaultMode": mode}})
    return volumes


def _probe(what: str, tls: bool, **times: int) -> dict[str, Any]:
    get = {"path": f"/v2/health/{what}", "port": PORT, **({"scheme": "HTTPS"} if tls else {})}
    return {"httpGet": get, **times}
