"""The flow's deployments on the embedded stack: made by ``winnow up`` from prefect.yaml, in the background.

Prefect's own command takes some seconds, because it imports the flow to learn its parameters; nobody waits for it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.component import Component, fetch_when_free
from infra.daemon import Daemon
from infra.stack import Stack
from model_registry.authorization import prefect_authorization
from model_registry.quiet import QUIET

#: In a checkout; an installed wheel has none, and its users write their own.
PREFECT_FILE = Path(__file__).parents[2] / "prefect.yaml"
NAMES = ("compress", "nightly")


def missing(environment: Mapping[str, str]) -> list[str]:
    """Deployments that the Prefect server of the environment does not know."""
    known, headers = f"{environment['PREFECT_API_URL']}/deployments/name/compress", prefect_authorization(environment)
    return [name for name in NAMES if fetch_when_free(f"{known}/{name}", timeout=2, headers=headers)[0] != 200]


def deploy_in_background(stack: Stack) -> bool:
    """Start Prefect's deploy command unless all is deployed as the file says; returns whether it was started."""
    environment = stack.environment()
    noted = stack.home.path / "run" / "deployed.sha256"
    daemon = Daemon("deploy", stack.home.path)
    if not PREFECT_FILE.exists() or daemon.running():
        return False
    content = hashlib.sha256(PREFECT_FILE.read_bytes()).hexdigest()
    if noted.exists() and noted.read_text() == content and not missing(environment):
        return False
    daemon.start(
        Component(
            name="deploy",
            title="deployments",
            argv=(
                *(sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"),
                *("--prefect-file", str(PREFECT_FILE)),
            ),
            folder=stack.home.path.parent,  # where its runs start, so that relative paths of specs lead somewhere
            environment={**environment, **QUIET},
        )
    )
    noted.write_text(content)
    return True
