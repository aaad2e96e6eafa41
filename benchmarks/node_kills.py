"""A data set answered on a Ray cluster whose nodes are killed again and again: is an answer lost, or given twice?

    make with-ray DO='python benchmarks/node_kills.py --kills 20'

Starts a stack and a cluster of two nodes of one core on this machine, answers the files here and then there. When two
more files are answered and the node that was added last runs, another one is killed (its raylet; every other time with
all that it started, else its workers live on and may finish what they were asked) and one is added. Also says what a
file costs by itself on a node, and what two nodes gain, with nobody killed; on a machine of two cores the store and Ray
itself want a share of those.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.absolute()
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from nodes import kill_node, running_nodes  # noqa: E402

from benchmarks.batch_prediction import BATCH, CNN, SMALL, write_files  # noqa: E402
from benchmarks.machine_facts import circumstances  # noqa: E402
from benchmarks.own_stack import own_stack, unwind_on_signals  # noqa: E402
from flows.batch.batch_answers import BatchAnswers, answer_all  # noqa: E402
from flows.reaching import reach_store  # noqa: E402
from model_registry.store import Store  # noqa: E402
from tasks.running import ray_nodes  # noqa: E402
from tasks.running.ray_local_cluster import LocalCluster, local_cluster  # noqa: E402

_FILES, _ROWS = 44, 1_000
"""Answered again and again until as many nodes were killed as are to be."""
_BETWEEN = 2
"""Files that are answered between two kills."""


def main() -> int:
    """Measure, print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    unwind_on_signals()
    with tempfile.TemporaryDirectory(prefix="winnow-nodes-") as name, own_stack(Path(name) / "home") as stack:
        os.environ.update(stack.environment)
        store = reach_store()  # its variables are in our environment now, and so in that of the nodes
        with local_cluster(2, 1, dict(os.environ)) as cluster:
            os.environ["RAY_ADDRESS"] = cluster.address
            try:
                result = measure(store, Path(name), cluster, arguments.kills)
            finally:  # else Ray ends this process with the cluster, and nobody hears what went wrong
                import ray

                ray.shutdown()
    print(json.dumps(result, indent=1))
    if arguments.output:
        told = {**circumstances(("onnxruntime", "pyarrow", "numpy", "ray", "winnow-mlops")), **result}
        arguments.output.write_text(json.dumps(told, indent=1))
    return 0 if result["answers_that_differ"] == 0 else 1


def measure(store: Store, folder: Path, cluster: LocalCluster, kills: int) -> dict[str, Any]:
    variant = CNN.write(folder / "model")
    for entry in variant.files:
        store.publish_bytes((folder / "model" / entry.path).read_bytes(), entry.path)
    large = _uploaded(store, write_files(folder / "large", _FILES, _ROWS), "large")
    small = _uploaded(store, write_files(folder / "small", SMALL, 1), "small")
    few = _uploaded(store, write_files(folder / "few", 2, 1), "few")

    def answered(source: str, target: str, **how: Any) -> BatchAnswers:
        return answer_all(store, variant, source, f"s3://{store.bucket}/{target}", batch=BATCH, **how)

    here = answered(large, "here", workers=1)
    answered(few, "warm", workers=2, place="ray")
    start = answered(few, "few-there", workers=1, place="ray").seconds
    each = answered(small, "small-there", workers=1, place="ray").seconds
    one = answered(large, "one", workers=1, place="ray").seconds
    two = answered(large, "two", workers=2, place="ray").seconds
    struck, wanted, differ, seconds = _Killer(cluster, kills), _etags(store, "here"), 0, list[float]()
    while struck.done < kills:
        struck.again()
        there = answered(large, f"there-{len(seconds)}", workers=2, place="ray", on_progress=struck)
        found = _etags(store, f"there-{len(seconds)}")
        differ += sum(wanted.get(name) != found.get(name) for name in wanted.keys() | found.keys())
        assert there.computed == _FILES and (there.root == here.root or differ)
        seconds.append(there.seconds)
    return {
        "files": _FILES,
        "rows": _FILES * _ROWS,
        "killed_nodes": struck.done,
        "times_answered": len(seconds),
        "answers_that_differ": differ,
        "seconds_with_kills": [round(each, 1) for each in seconds],
        "seconds_here_one_process": round(here.seconds, 1),
        "seconds_to_start": round(start, 2),
        "seconds_per_file": round((each - start) / (SMALL - 2), 4),
        "seconds_one_node": round(one, 1),
        "seconds_two_nodes": round(two, 1),
    }


class _Killer:
    """Told how many files are answered."""

    def __init__(self, cluster: LocalCluster, kills: int) -> None:
        self._cluster, self._kills, self._dead, self._last = cluster, kills, list[str](), 0
        self._chance = random.Random(0)

    def again(self) -> None:
        """The files are answered once more from the first."""
        self._last = 0

    @property
    def done(self) -> int:
        """Nodes that were killed."""
        return len(self._dead)

    def __call__(self, answered: int, _: int) -> None:
        if self.done == self._kills or answered < self._last + _BETWEEN:
            return
        held = sorted(node for node in running_nodes() if ray_nodes.busy.get(node))
        if held:  # else those that are left have not begun yet
            self._dead.append(self._chance.choice(held))
            kill_node(self._dead[-1], workers=bool(self.done % 2))
            self._cluster.add_node()
            self._last = answered


def _uploaded(store: Store, folder: Path, prefix: str) -> str:
    target = f"s3://{store.bucket}/{prefix}"
    for file in folder.glob("*.parquet"):
        store.put_uri(f"{target}/{file.name}", file.read_bytes())
    return target


def _etags(store: Store, target: str) -> dict[str, str]:
    uris = [uri for uri in store.list_uri(f"s3://{store.bucket}/{target}/") if uri.endswith(".parquet")]
    return {uri.rpartition("/")[2]: store.etag_of(uri) for uri in uris}


if __name__ == "__main__":
    sys.exit(main())
