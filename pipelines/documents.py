"""Walking the documents of a compiled pipeline.

The first YAML document is the `PipelineSpec`, the second the `PlatformSpec` with what only
Kubernetes knows.
"""

from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]
Task = tuple[str, str, Document]
"""Name of the component that holds the task, name of the task, and the task."""


def dags(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield the name and the component of every DAG: the root, sub-pipelines, loops, conditions."""
    yield "root", document["root"]
    for name, component in document.get("components", {}).items():
        if "dag" in component:
            yield name, component


def tasks(document: Document) -> Iterator[Task]:
    """Yield every task of every DAG."""
    for dag_name, dag in dags(document):
        for task_name, task in dag["dag"]["tasks"].items():
            yield dag_name, task_name, task


def executors(document: Document) -> Document:
    """Return the containers' definitions by executor label."""
    found: Document = document.get("deploymentSpec", {}).get("executors", {})
    return found


def executor_label(document: Document, task: Document) -> str:
    """Return the label of the container that a task runs; empty for a sub-pipeline."""
    component = document.get("components", {}).get(task["componentRef"]["name"], {})
    return str(component.get("executorLabel", ""))


def platform_executors(platform: Document) -> Document:
    """Return the Kubernetes settings by executor label."""
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    return executors(kubernetes)
