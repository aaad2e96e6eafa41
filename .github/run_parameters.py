"""Print the parameters of a flow run as JSON, from what people typed into the workflow (environment variables).

SPEC, OVERRIDES (separated by spaces) and DEPLOY are untrusted text: they become JSON strings and nothing else.
GITHUB_RUN_ID and GITHUB_RUN_ATTEMPT name the run, so that the workflow can ask for its report afterwards.
"""

from __future__ import annotations

import json
import os
import time


def parameters(environment: dict[str, str]) -> dict[str, object]:
    """What the flow ``compress`` takes."""
    overrides = environment.get("OVERRIDES", "").split()
    if environment.get("DEPLOY", "false") != "true":
        overrides.append("deploy=false")
    number, attempt = environment.get("GITHUB_RUN_ID", "0"), environment.get("GITHUB_RUN_ATTEMPT", "1")
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())  # run ids sort by time
    return {"spec": environment["SPEC"], "overrides": overrides, "run_id": f"{stamp}-github-{number}-{attempt}"}


if __name__ == "__main__":
    print(json.dumps(parameters(dict(os.environ))))
