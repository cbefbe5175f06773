"""Lint of what places a task (image, memory, accelerator, node) and is known only at run time.

The driver looks a setting up where it builds the pod, minutes into a run; what it does not find
there ends the run, and what it finds as a number it reads as an empty text.
"""

import re
from collections.abc import Iterator

from pipelines.documents import (
    Document,
    dags,
    executor_label,
    executors,
    platform_executors,
    tasks,
)

_PLACEHOLDER = re.compile(r"\$\.inputs\.parameters\['(.+?)'\]")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _texts(member)


def _type_of(document: Document, dag: Document, value: Document) -> str:
    """Return the type of a task's input, by what feeds it; empty if nothing of that name is."""
    if "componentInputParameter" in value:
        known = dag.get("inputDefinitions", {}).get("parameters", {})
        return str(known.get(value["componentInputParameter"], {}).get("parameterType", ""))
    if source := value.get("taskOutputParameter"):
        producer = dag["dag"]["tasks"].get(source["producerTask"])
        name = "" if producer is None else producer["componentRef"]["name"]
        outputs = document.get("components", {}).get(name, {}).get("outputDefinitions", {})
        found = outputs.get("parameters", {}).get(source["outputParameterKey"], {})
        return str(found.get("parameterType", ""))
    constant = value.get("runtimeValue", {}).get("constant")
    return "STRING" if isinstance(constant, str) else type(constant).__name__


def numbers_as_settings(document: Document) -> Iterator[str]:
    """The driver reads a number in a resource setting as nothing: no accelerator, no memory."""
    owners = dict(dags(document))
    for dag, name, task in tasks(document):
        container = executors(document).get(executor_label(document, task), {}).get("container", {})
        dynamic = [container.get("image", ""), *_texts(container.get("resources", {}))]
        inputs = task.get("inputs", {}).get("parameters", {})
        for wanted in sorted({found for text in dynamic for found in _PLACEHOLDER.findall(text)}):
            if wanted not in inputs:
                yield f"{dag}/{name}: a resource setting reads {wanted!r}, which it is not given"
            elif (kind := _type_of(document, owners[dag], inputs[wanted])) != "STRING":
                yield f"{dag}/{name}: the resource setting {wanted!r} is {kind}; it must be STRING"


def _references(value: object) -> Iterator[Document]:
    if isinstance(value, dict):
        if "componentInputParameter" in value or "taskOutputParameter" in value:
            yield value
        for member in value.values():
            yield from _references(member)
    elif isinstance(value, list):
        for member in value:
            yield from _references(member)


def settings_out_of_reach(document: Document, platform: Document) -> Iterator[str]:
    """A node selector or toleration names an input of the DAG that holds the task, by its name.

    The driver looks it up among the inputs of that DAG: a sub-pipeline or loop that was not handed
    the parameter ends the run with `parent DAG does not have input parameter`.
    """
    owners = dict(dags(document))
    settings = platform_executors(platform)
    for dag, name, task in tasks(document):
        for reference in _references(settings.get(executor_label(document, task), {})):
            if not _type_of(document, owners[dag], reference):
                yield f"{dag}/{name}: a setting of its pod reads {reference}, which {dag} has not"


def settings_of_nobody(document: Document, platform: Document) -> Iterator[str]:
    """Settings under a label that no container has are dropped without a word."""
    for label in platform_executors(platform):
        if label not in executors(document):
            yield f"{label}: has settings for its pod, but is not a container"


def _seconds(duration: object) -> float:
    return float(str(duration or "0s").removesuffix("s"))


def attempts_that_a_deadline_ends(document: Document, platform: Document) -> Iterator[str]:
    """`backoffMaxDuration` is a deadline of all attempts together: it must leave time for each."""
    settings = platform_executors(platform)
    for dag, name, task in tasks(document):
        policy = task.get("retryPolicy")
        if not policy:
            continue
        retries = int(policy.get("maxRetryCount", 0))
        timeout = settings.get(executor_label(document, task), {}).get("activeDeadlineSeconds", 0)
        first, factor = _seconds(policy.get("backoffDuration")), policy.get("backoffFactor", 1)
        waits = sum(first * factor**number for number in range(retries))
        needed = int(timeout) * (retries + 1) + waits
        if (given := _seconds(policy.get("backoffMaxDuration"))) < needed:
            yield (
                f"{dag}/{name}: all attempts share {given:.0f} s (backoffMaxDuration), but "
                f"{retries + 1} of {timeout} s and the waits between them need {needed:.0f} s"
            )
