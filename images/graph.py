"""Walk a compiled pipeline as Kubeflow's driver does: resolve each task's inputs, in order.

Only what the project's pipelines use is known; anything else is an error, never skipped.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Specification = Mapping[str, Any]
"""A part of a compiled pipeline."""

RUN_ID = "00000000-0000-0000-0000-000000000001"
"""What the placeholder of the run's id stands for."""

_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")

_CONDITION = re.compile(r"inputs\.parameter_values\['([^']+)'\] (==|!=) '([^']*)'")


class GraphError(Exception):
    """The compiled pipeline holds something that this walk does not know."""


@dataclass
class Values:
    """What goes into a task or comes out of it."""

    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Runtime artifacts as Kubeflow writes them: name, type, uri, metadata."""


Launch = Callable[[str, str, Values], Values]
"""Runs one executor: given the task's path, the component's name and its inputs."""


def walk(pipeline: Specification, arguments: Mapping[str, Any], launch: Launch) -> Values:
    """Run all tasks of a compiled pipeline, one after another, and return its outputs.

    Raises:
        GraphError: the pipeline has a construct that is not known here.
    """
    return _component(pipeline, "", "", Values(dict(arguments)), launch)


def with_defaults(component: Specification, given: Values) -> Values:
    """Return the inputs of a component, with the defaults of parameters that are not given."""
    defined = component.get("inputDefinitions", {}).get("parameters", {})
    defaults = {
        name: definition["defaultValue"]
        for name, definition in defined.items()
        if "defaultValue" in definition
    }
    return Values(defaults | given.parameters, given.artifacts)


def _component(
    pipeline: Specification, name: str, path: str, given: Values, launch: Launch
) -> Values:
    component = pipeline["components"][name] if name else pipeline["root"]
    given = with_defaults(component, given)
    if "dag" not in component:
        return launch(path, name, given)
    tasks = component["dag"]["tasks"]
    done: dict[str, Values] = {}
    for task_name in _in_order(tasks):
        task = tasks[task_name]
        inputs = _inputs(task.get("inputs", {}), given, done)
        if not _is_wanted(task, task_name, inputs):
            continue
        place = f"{path}{'.' if path else ''}{task_name}"
        reference = task["componentRef"]["name"]
        if "parameterIterator" in task:
            done[task_name] = _loop(pipeline, task, place, inputs, launch)
        else:
            done[task_name] = _component(pipeline, reference, place, inputs, launch)
    return _outputs(component["dag"].get("outputs", {}), done)


def _loop(
    pipeline: Specification, task: Specification, place: str, inputs: Values, launch: Launch
) -> Values:
    """Run a loop's body for each item; each of its outputs is the list of theirs."""
    iterator = task["parameterIterator"]
    source = iterator["items"]
    items = (
        json.loads(source["raw"])
        if "raw" in source
        else inputs.parameters[source["inputParameter"]]
    )
    collected = Values()
    for index, item in enumerate(items):
        one = Values({**inputs.parameters, iterator["itemInput"]: item}, inputs.artifacts)
        result = _component(pipeline, task["componentRef"]["name"], f"{place}.{index}", one, launch)
        for name, value in result.parameters.items():
            collected.parameters.setdefault(name, []).append(value)
        for name, artifacts in result.artifacts.items():
            collected.artifacts.setdefault(name, []).extend(artifacts)
    return collected


def _in_order(tasks: Specification) -> list[str]:
    order: list[str] = []
    while len(order) < len(tasks):
        ready = [
            name
            for name, task in tasks.items()
            if name not in order and set(task.get("dependentTasks", ())) <= set(order)
        ]
        if not ready:
            raise GraphError(f"these tasks wait for each other: {sorted(set(tasks) - set(order))}")
        order += ready
    return order


def _inputs(wanted: Specification, given: Values, done: Mapping[str, Values]) -> Values:
    found = Values()
    for name, source in wanted.get("parameters", {}).items():
        found.parameters[name] = _parameter(name, source, given, done)
    for name, source in wanted.get("artifacts", {}).items():
        if "componentInputArtifact" in source:
            artifacts = given.artifacts.get(source["componentInputArtifact"])
        elif "taskOutputArtifact" in source:
            output = source["taskOutputArtifact"]
            artifacts = done[output["producerTask"]].artifacts[output["outputArtifactKey"]]
        else:
            raise GraphError(f"input artifact {name} comes from {sorted(source)}")
        if artifacts is not None:
            found.artifacts[name] = artifacts
    for name, value in found.parameters.items():
        if isinstance(value, str):
            found.parameters[name] = _filled(value, found.parameters)
    return found


def _parameter(name: str, source: Specification, given: Values, done: Mapping[str, Values]) -> Any:  # noqa: ANN401 - a parameter is any JSON value
    if "componentInputParameter" in source:
        return given.parameters[source["componentInputParameter"]]
    if "taskOutputParameter" in source:
        output = source["taskOutputParameter"]
        return done[output["producerTask"]].parameters[output["outputParameterKey"]]
    if "runtimeValue" in source:
        return source["runtimeValue"]["constant"]
    if "taskFinalStatus" in source:
        return {"state": "SUCCEEDED", "pipelineTaskName": source["taskFinalStatus"]["producerTask"]}
    raise GraphError(f"input parameter {name} comes from {sorted(source)}")


def _filled(text: str, parameters: Mapping[str, Any]) -> str:
    """Replace placeholders of parameters by their values, as the driver does in constants."""

    def value(match: re.Match[str]) -> str:
        found = parameters[match[1]]
        return found if isinstance(found, str) else json.dumps(found)

    return _PLACEHOLDER.sub(value, text).replace("{{$.pipeline_job_uuid}}", RUN_ID)


def _outputs(wanted: Specification, done: Mapping[str, Values]) -> Values:
    found = Values()
    for name, source in wanted.get("parameters", {}).items():
        if "valueFromParameter" not in source:
            raise GraphError(f"output parameter {name} comes from {sorted(source)}")
        chosen = source["valueFromParameter"]
        found.parameters[name] = done[chosen["producerSubtask"]].parameters[
            chosen["outputParameterKey"]
        ]
    for name, source in wanted.get("artifacts", {}).items():
        (chosen,) = source["artifactSelectors"]
        found.artifacts[name] = done[chosen["producerSubtask"]].artifacts[
            chosen["outputArtifactKey"]
        ]
    return found


def _is_wanted(task: Specification, name: str, inputs: Values) -> bool:
    """Return whether a task runs; its condition may compare one parameter with a text."""
    if "artifactIterator" in task:
        raise GraphError(f"task {name} loops over artifacts")
    condition = task.get("triggerPolicy", {}).get("condition")
    if condition is None:
        return True
    compared = _CONDITION.fullmatch(condition)
    if compared is None:
        raise GraphError(f"task {name} has the condition {condition}")
    parameter, operator, text = compared.groups()
    return bool((inputs.parameters[parameter] == text) == (operator == "=="))
