"""A Ray cluster of several nodes on this machine: ``python -m tasks.running.ray_local_cluster NODES CORES``.

To try what a cluster does, and to test it. Says in a line of JSON where it is, adds a node for each line that it is
told, and ends with everything it started when its input does. The head offers no core: it would be the last to die.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

_MEMORY = 80 << 20
"""Of each node's object store, the least that Ray takes: stages pass nothing but JSON."""
_TRIES = 3
"""A raylet aborts where its dashboard agent is slow to answer, as on a busy machine."""


class LocalCluster:
    """A cluster that runs; ``address``: for RAY_ADDRESS."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process, self.address = process, address

    def add_node(self) -> None:
        """Another node, as the first ones."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the cluster ended while a node was added; see /tmp/ray/session_latest/logs")


@contextlib.contextmanager
def local_cluster(nodes: int, cores: int, environment: dict[str, str]) -> Iterator[LocalCluster]:
    """A cluster that is there for the body.

    Args:
        cores: that each node offers.
        environment: of all its processes; the store's variables must be in it.

    Raises:
        RuntimeError: Ray does not start.
    """
    command = [sys.executable, "-m", "tasks.running.ray_local_cluster", str(nodes), str(cores)]
    environment = {**environment, "RAY_USAGE_STATS_ENABLED": "0"}
    for _ in range(_TRIES):
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            line = process.stdout.readline()
            if not line:
                continue
            try:
                yield LocalCluster(process, json.loads(line)["address"])
            finally:
                process.stdin.close()
            return
    raise RuntimeError(
        f"Ray did not start in {_TRIES} tries; it says why in the files below /tmp/ray/session_latest/logs"
    )


def main() -> None:
    """Run until the input ends."""
    from ray.cluster_utils import Cluster

    nodes, cores = int(sys.argv[1]), int(sys.argv[2])
    common = {"object_store_memory": _MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 0})
    for _ in range(nodes):
        cluster.add_node(num_cpus=cores, object_store_memory=_MEMORY)
    print(json.dumps({"address": cluster.address, "process": os.getpid()}), flush=True)
    for _ in sys.stdin:
        cluster.add_node(num_cpus=cores, object_store_memory=_MEMORY)
        print(json.dumps({"nodes": len(cluster.list_all_nodes())}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
