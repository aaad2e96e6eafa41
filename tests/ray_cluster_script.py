"""A local Ray cluster of several nodes, for test_ray_place.py: ``ray_cluster_script.py NODES CORES``.

Says its address and the process ids of its nodes' raylets, and ends with everything it started when its input does.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

MEMORY = 80 << 20
"""Of each node's object store: stages pass nothing but JSON."""


def main() -> None:
    """Run until the input ends."""
    nodes, cores = int(sys.argv[1]), int(sys.argv[2])
    common = {"object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**common, "num_cpus": 0})
    made = [cluster.add_node(num_cpus=cores, object_store_memory=MEMORY) for _ in range(nodes)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in made]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
