"""Lint of where the artifact inputs of a task come from, followed through sub-pipelines and loops.

Kubeflow's metadata store keeps one event per task and artifact: a task, or the driver of a
sub-pipeline, that gets one artifact as two inputs ends with `UNIQUE constraint failed`.
"""

from collections.abc import Iterator, Mapping

from pipelines.documents import Document

Origins = Mapping[str, frozenset[str]]
"""Names of the outputs that an artifact input can be, by the input's name."""


def artifacts_used_twice(document: Document) -> Iterator[str]:
    """Two inputs of a task that are one artifact end the run."""
    yield from _within(document, "root", document["root"], {})


def _within(document: Document, path: str, dag: Document, given: Origins) -> Iterator[str]:
    for name, task in dag["dag"]["tasks"].items():
        origins = {
            key: _origins(document, path, dag, value, given)
            for key, value in task.get("inputs", {}).get("artifacts", {}).items()
        }
        first: dict[str, str] = {}
        for key, outputs in origins.items():
            for output in sorted(outputs):
                if (other := first.setdefault(output, key)) != key:
                    yield f"{path}/{name}: the inputs {other!r} and {key!r} are both {output}"
        called = _component(document, task)
        if "dag" in called:
            yield from _within(document, f"{path}/{name}", called, origins)


def _component(document: Document, task: Document) -> Document:
    found: Document = document.get("components", {}).get(task["componentRef"]["name"], {})
    return found


def _origins(
    document: Document, path: str, dag: Document, value: Document, given: Origins
) -> frozenset[str]:
    """Return the container outputs that one artifact input of a task in `dag` can be."""
    if "componentInputArtifact" in value:
        return given.get(value["componentInputArtifact"], frozenset())
    source = value.get("taskOutputArtifact", {})
    return _outputs(document, path, dag, source.get("producerTask"), source["outputArtifactKey"])


def _outputs(
    document: Document, path: str, dag: Document, task_name: str, key: str
) -> frozenset[str]:
    """Return the container outputs that an output of a task is; a sub-pipeline has several."""
    task = dag["dag"]["tasks"].get(task_name)
    called = {} if task is None else _component(document, task)
    if "dag" not in called:
        return frozenset({f"{path}/{task_name}.{key}"})
    chosen = called["dag"].get("outputs", {}).get("artifacts", {}).get(key, {})
    return frozenset().union(
        *(
            _outputs(
                document,
                f"{path}/{task_name}",
                called,
                selector["producerSubtask"],
                selector["outputArtifactKey"],
            )
            for selector in chosen.get("artifactSelectors", [])
        )
    )
