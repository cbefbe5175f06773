"""The lint finds each planted fault, and none in what is shipped."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines import lint as rules
from pipelines.lint import RULES, lint

Document = dict[str, Any]


def test_the_shipped_pipeline_breaks_no_rule(document: Document) -> None:
    assert lint(document) == []


def _round(document: Document) -> Document:
    tasks: Document = document["components"]["comp-guided-round"]["dag"]["tasks"]
    return tasks


def _heatmaps(document: Document) -> Document:
    tasks: Document = document["components"]["comp-heatmaps"]["dag"]["tasks"]
    return tasks


def _condition_on_named_output(document: Document) -> None:
    _round(document)["retrain"]["triggerPolicy"] = {"condition": "inputs.active == true"}


def _loop_fed_by_a_task(document: Document) -> None:
    _heatmaps(document)["for-loop-1"]["inputs"]["parameters"]["extra"] = {
        "taskOutputParameter": {"producerTask": "gather", "outputParameterKey": "count"}
    }


def _second_loop_beside(document: Document) -> None:
    tasks = _heatmaps(document)
    tasks["for-loop-9"] = tasks["for-loop-1"]


def _loop_at_the_root(document: Document) -> None:
    document["root"]["dag"]["tasks"]["for-loop-9"] = _heatmaps(document)["for-loop-1"]


def _loop_over_artifacts(document: Document) -> None:
    _heatmaps(document)["for-loop-1"]["artifactIterator"] = {"itemInput": "model"}


def _loop_over_records(document: Document) -> None:
    _heatmaps(document)["for-loop-1"]["parameterIterator"]["items"] = {"raw": '[{"a": 1}]'}


def _loop_over_nothing(document: Document) -> None:
    _heatmaps(document)["for-loop-1"]["parameterIterator"]["items"] = {"raw": "[]"}


def _one_of_artifacts(document: Document) -> None:
    selector = {"producerSubtask": "retrain", "outputArtifactKey": "model"}
    outputs = document["components"]["comp-guided-round"]["dag"]["outputs"]["artifacts"]
    outputs["model"]["artifactSelectors"] = [selector, selector]


def _optional_without_default(document: Document) -> None:
    parameters = document["root"]["inputDefinitions"]["parameters"]
    parameters["seed"] = {"parameterType": "NUMBER_INTEGER", "isOptional": True}


def _sub_pipeline_without_an_artifact(document: Document) -> None:
    del document["root"]["dag"]["tasks"]["guided-round"]["inputs"]["artifacts"]["control"]


def _loop_in_an_exit_handler(document: Document) -> None:
    document["components"]["comp-exit-handler-1"] = document["components"]["comp-heatmaps"]


def _renamed_loop_source(document: Document) -> None:
    tasks = _round(document)
    tasks["gate"]["taskInfo"]["name"] = "Open the round"
    tasks["for-loop-9"] = {
        "componentRef": {"name": "comp-for-loop-1"},
        "inputs": {
            "parameters": {
                "items": {
                    "taskOutputParameter": {
                        "producerTask": "gate",
                        "outputParameterKey": "Output",
                    }
                }
            }
        },
        "parameterIterator": {"items": {"inputParameter": "items"}},
        "taskInfo": {"name": "for-loop-9"},
    }


def _install_at_start(document: Document) -> None:
    command = document["deploymentSpec"]["executors"]["exec-train"]["container"]["command"]
    command.append("python3 -m pip install something")


def _cached_ingest(document: Document) -> None:
    document["root"]["dag"]["tasks"]["ingest"]["cachingOptions"] = {"enableCache": True}


def _input_that_a_loop_does_not_hand_on(document: Document) -> None:
    del document["components"]["comp-for-loop-1"]["inputDefinitions"]["parameters"][
        "pipelinechannel--accelerators"
    ]


PLANTED: dict[Callable[..., Any], Callable[[Document], None]] = {
    rules.conditions_on_named_outputs: _condition_on_named_output,
    rules.loops_fed_by_tasks: _loop_fed_by_a_task,
    rules.loops_not_alone: _second_loop_beside,
    rules.loops_over_artifacts: _loop_over_artifacts,
    rules.loops_over_records: _loop_over_records,
    rules.empty_loops: _loop_over_nothing,
    rules.one_of_artifacts: _one_of_artifacts,
    rules.optional_parameters_without_default: _optional_without_default,
    rules.omitted_artifacts_of_sub_pipelines: _sub_pipeline_without_an_artifact,
    rules.loops_in_exit_handlers: _loop_in_an_exit_handler,
    rules.renamed_loop_sources: _renamed_loop_source,
    rules.packages_installed_at_start: _install_at_start,
    rules.cached_steps_that_must_run: _cached_ingest,
    rules.inputs_that_nobody_passes: _input_that_a_loop_does_not_hand_on,
}


def test_every_rule_has_a_planted_fault() -> None:
    assert set(PLANTED) == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_a_planted_fault_is_found_by_its_rule(
    rule: Callable[..., Any], document: Document
) -> None:
    assert not list(rule(document))
    PLANTED[rule](document)
    assert list(rule(document))


def test_a_loop_at_the_root_is_found(document: Document) -> None:
    _loop_at_the_root(document)
    assert list(rules.loops_not_alone(document))
