"""A local Ray cluster with the endpoint on it, for test_ray_serve.py: ``ray_script.py PORT NAME=VALUE ...``.

Says ``ready`` when the application runs, and ends, with everything it started, when its input does.
"""

from __future__ import annotations

import sys

import ray
from ray import serve

import winnow


def main() -> None:
    """Run until the input ends."""
    port, *given = sys.argv[1:]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(winnow.ray_application(dict(entry.split("=", 1) for entry in given)))
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
