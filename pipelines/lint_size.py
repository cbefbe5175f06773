"""Lint of how large a run becomes: Argo keeps all of it in one object of at most 1 MiB.

The object holds the specification and, compressed, the state of every node. Nodes as Argo 4.0.5 and
Kubeflow 2.17 make them; sizes as measured there (ADR 0013).
"""

import json
from collections.abc import Iterator

from pipelines.documents import Document, tasks

LIMIT_BYTES = 1 << 20
NODE_BYTES = 1100
"""State of one node, compressed; a tenth more than was measured."""

_SPECIFICATION_BYTES, _SPECIFICATION_FACTOR = 17_000, 1.5
"""What Argo's specification takes beyond, and for each byte of, the compiled documents."""

_STEP_NODES = 6
"""Nodes per container: driver, executor and the step around the latter, each with its attempt."""
_DAG_NODES = 4
"""Nodes per sub-pipeline: its driver and itself, each with its attempt."""
_LOOP_NODES = 5
"""Nodes per loop: itself and its items' driver, each with its attempt, and the list of items."""
_ITEM_NODES = 6
"""Nodes per item: its driver, itself and its place in the list, each with its attempt."""
_EXIT_NODES = 2
"""Nodes per exit handler: the hook that starts its last step, with its attempt."""
_ROOT_NODES = 6
"""Nodes per run: the driver of its root, the root and the run itself, each with its attempt."""


def num_nodes(document: Document) -> int:
    """Return how many nodes Argo lists if every round is active and every loop is full."""
    return _ROOT_NODES + _nodes_of(document, document["root"])


def num_pods(document: Document) -> int:
    """Return how many pods a run starts if every round is active and every loop is full."""
    return 1 + _pods_of(document, document["root"])


def workflow_bytes(document: Document, platform: Document) -> int:
    """Return the estimated size of a run's object, every round active and every loop full."""
    return specification_bytes(document, platform) + NODE_BYTES * num_nodes(document)


def specification_bytes(document: Document, platform: Document) -> int:
    """Return the estimated size of what Argo is given."""
    compiled = len(json.dumps([document, platform], separators=(",", ":")))
    return _SPECIFICATION_BYTES + int(_SPECIFICATION_FACTOR * compiled)


def runs_too_large(document: Document, platform: Document) -> Iterator[str]:
    """A run whose object outgrows 1 MiB stops when Argo can no longer write it down."""
    found = workflow_bytes(document, platform)
    if found > LIMIT_BYTES:
        yield (
            f"root: a run with {num_nodes(document)} nodes would take about {found >> 10} KiB of "
            f"Argo's {LIMIT_BYTES >> 10}; compile it for fewer rounds, shards or arms"
        )


def _nodes_of(document: Document, dag: Document) -> int:
    total = 0
    for name, task in dag["dag"]["tasks"].items():
        called = _called(document, task)
        total += _EXIT_NODES if name.startswith("exit-handler") else 0
        if "dag" not in called:
            total += _STEP_NODES
        elif "parameterIterator" in task:
            items = max_loop(document) * (_ITEM_NODES + _nodes_of(document, called))
            total += _LOOP_NODES + items
        else:
            total += _DAG_NODES + _nodes_of(document, called)
    return total


def _pods_of(document: Document, dag: Document) -> int:
    total = 0
    for task in dag["dag"]["tasks"].values():
        called = _called(document, task)
        if "dag" not in called:
            total += 2
        elif "parameterIterator" in task:
            total += 1 + max_loop(document) * (1 + _pods_of(document, called))
        else:
            total += 1 + _pods_of(document, called)
    return total


def _called(document: Document, task: Document) -> Document:
    found: Document = document.get("components", {}).get(task["componentRef"]["name"], {})
    return found


def max_loop(document: Document) -> int:
    """Return the most items of a loop: the constant `max_loop` of the step that makes its list."""
    found = [
        int(task["inputs"]["parameters"]["max_loop"]["runtimeValue"]["constant"])
        for _, _, task in tasks(document)
        if "runtimeValue" in task.get("inputs", {}).get("parameters", {}).get("max_loop", {})
    ]
    return max(found, default=1)
