"""Run as ``python -m infra.store_probe prepare``: the store's buckets are made in a process of its own.

So ``winnow up`` neither imports boto3 nor puts keys into its own environment.
"""

from __future__ import annotations

import sys

from model_registry.store import Store, StoreError


def main(arguments: list[str]) -> int:
    """Exit status 0 when done; 1 with the reason on standard error."""
    if arguments != ["prepare"]:
        sys.stderr.write("usage: python -m infra.store_probe prepare\n")
        return 2
    try:
        Store.from_environment().prepare()
    except (StoreError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
