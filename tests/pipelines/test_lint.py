"""The lint finds each planted fault, and none in what is shipped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import lint as rules
from pipelines import lint_settings, lint_size
from pipelines.compile import compile_training
from pipelines.documents import tasks
from pipelines.lint import PLATFORM_RULES, RULES, lint
from pipelines.lint_artifacts import artifacts_used_twice
from pipelines.parameters import load_documents

Document = dict[str, Any]


def test_the_shipped_pipeline_breaks_no_rule(document: Document, platform: Document) -> None:
    assert lint(document, platform) == []


def _round(document: Document) -> Document:
    tasks: Document = document["components"]["comp-guided-round"]["dag"]["tasks"]
    return tasks


def _condition_on_named_output(document: Document) -> None:
    later = document["root"]["dag"]["tasks"]["guided-round-2"]
    later["triggerPolicy"] = {"condition": "inputs.active == true"}


def _loop_fed_by_a_task(document: Document) -> None:
    _round(document)["for-loop-1"]["inputs"]["parameters"]["extra"] = {
        "taskOutputParameter": {"producerTask": "retrain", "outputParameterKey": "active"}
    }


def _second_loop_beside(document: Document) -> None:
    tasks = _round(document)
    tasks["for-loop-9"] = tasks["for-loop-1"]


def _loop_at_the_root(document: Document) -> None:
    document["root"]["dag"]["tasks"]["for-loop-9"] = _round(document)["for-loop-1"]


def _loop_over_artifacts(document: Document) -> None:
    _round(document)["for-loop-1"]["artifactIterator"] = {"itemInput": "model"}


def _loop_over_records(document: Document) -> None:
    _round(document)["for-loop-1"]["parameterIterator"]["items"] = {"raw": '[{"a": 1}]'}


def _loop_over_nothing(document: Document) -> None:
    _round(document)["for-loop-1"]["parameterIterator"]["items"] = {"raw": "[]"}


def _one_of_artifacts(document: Document) -> None:
    selector = {"producerSubtask": "retrain", "outputArtifactKey": "model"}
    outputs = document["components"]["comp-guided-round"]["dag"]["outputs"]["artifacts"]
    outputs["model"]["artifactSelectors"] = [selector, selector]


def _optional_without_default(document: Document) -> None:
    parameters = document["root"]["inputDefinitions"]["parameters"]
    parameters["seed"] = {"parameterType": "NUMBER_INTEGER", "isOptional": True}


def _sub_pipeline_without_an_artifact(document: Document) -> None:
    del document["root"]["dag"]["tasks"]["guided-round"]["inputs"]["artifacts"]["model"]


def _loop_in_an_exit_handler(document: Document) -> None:
    document["components"]["comp-exit-handler-1"] = document["components"]["comp-guided-round"]


def _renamed_loop_source(document: Document) -> None:
    tasks = _round(document)
    tasks["retrain"]["taskInfo"]["name"] = "Open the round"
    tasks["for-loop-9"] = {
        "componentRef": {"name": "comp-for-loop-1"},
        "inputs": {
            "parameters": {
                "items": {
                    "taskOutputParameter": {
                        "producerTask": "retrain",
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
        "pipelinechannel--single_accelerator"
    ]


def _number_as_accelerator_count(document: Document) -> None:
    _round(document)["retrain"]["inputs"]["parameters"]["pipelinechannel--accelerators"] = {
        "componentInputParameter": "num_shards"
    }


def _memory_that_a_loop_task_is_not_given(document: Document) -> None:
    inputs = document["components"]["comp-for-loop-1"]["dag"]["tasks"]["heatmap"]["inputs"]
    del inputs["parameters"]["pipelinechannel--heatmap_memory"]


def _one_model_for_all_arms(document: Document) -> None:
    first, second = (document["root"]["dag"]["tasks"][f"guided-round{n}"] for n in ("", "-2"))
    given = second["inputs"]["artifacts"]
    given["control"] = given["permuted"] = first["inputs"]["artifacts"]["model"]


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
    lint_settings.numbers_as_settings: _number_as_accelerator_count,
    artifacts_used_twice: _one_model_for_all_arms,
}


def test_every_rule_has_a_planted_fault() -> None:
    assert set(PLANTED) == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_a_planted_fault_is_found_by_its_rule(rule: Callable[..., Any], document: Document) -> None:
    assert not list(rule(document))
    PLANTED[rule](document)
    assert list(rule(document))


def test_the_same_output_under_two_names_is_found_within_sub_pipelines(document: Document) -> None:
    # The input of the sub-pipeline and the output that it passes on are both train's model.
    inputs = _round(document)["retrain"]["inputs"]["artifacts"]
    inputs["again"] = dict(inputs["previous"])
    (found,) = artifacts_used_twice(document)
    assert found == (
        "root/guided-round/retrain: the inputs 'previous' and 'again' are both root/train.model"
    )


def test_the_same_output_through_two_sub_pipelines_is_found(document: Document) -> None:
    outputs = document["components"]["comp-guided-round-2"]["dag"]["outputs"]["artifacts"]
    outputs["permuted"] = outputs["control"]
    (found,) = artifacts_used_twice(document)
    assert found == (
        "root/evaluate: the inputs 'control' and 'permuted' are both "
        "root/guided-round-2/retrain-2.model"
    )


def test_a_loop_at_the_root_is_found(document: Document) -> None:
    _loop_at_the_root(document)
    assert list(rules.loops_not_alone(document))


def test_a_memory_setting_that_its_task_is_not_given_is_found(document: Document) -> None:
    _memory_that_a_loop_task_is_not_given(document)
    (found,) = lint_settings.numbers_as_settings(document)
    assert "comp-for-loop-1/heatmap" in found
    assert "heatmap_memory" in found


def _node_selector_that_a_loop_is_not_handed(document: Document, platform: Document) -> None:
    del document["components"]["comp-for-loop-1"]["inputDefinitions"]["parameters"][
        "pipelinechannel--node_selector"
    ]


def _settings_under_a_wrong_label(document: Document, platform: Document) -> None:
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-trian"] = executors.pop("exec-train")


def _one_hour_for_all_attempts(document: Document, platform: Document) -> None:
    # What kfp writes unless it is told otherwise.
    _round(document)["retrain"]["retryPolicy"]["backoffMaxDuration"] = "3600s"


def _a_thousand_shards(document: Document, platform: Document) -> None:
    ingest = document["root"]["dag"]["tasks"]["ingest"]
    ingest["inputs"]["parameters"]["max_loop"]["runtimeValue"]["constant"] = 1000


PLANTED_IN_PLATFORM: dict[Callable[..., Any], Callable[[Document, Document], None]] = {
    lint_settings.settings_out_of_reach: _node_selector_that_a_loop_is_not_handed,
    lint_settings.settings_of_nobody: _settings_under_a_wrong_label,
    lint_settings.attempts_that_a_deadline_ends: _one_hour_for_all_attempts,
    lint_size.runs_too_large: _a_thousand_shards,
}


def test_every_platform_rule_has_a_planted_fault() -> None:
    assert set(PLANTED_IN_PLATFORM) == set(PLATFORM_RULES)


@pytest.mark.parametrize("rule", PLATFORM_RULES, ids=lambda rule: str(rule.__name__))
def test_a_fault_planted_in_the_platform_document_is_found_by_its_rule(
    rule: Callable[..., Any], document: Document, platform: Document
) -> None:
    assert not list(rule(document, platform))
    PLANTED_IN_PLATFORM[rule](document, platform)
    assert list(rule(document, platform))


def test_a_toleration_that_reads_a_task_of_another_dag_is_found(
    document: Document, platform: Document
) -> None:
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-heatmap"]["tolerations"] = [
        {
            "tolerationJson": {
                "taskOutputParameter": {"producerTask": "retrain", "outputParameterKey": "shards"}
            }
        }
    ]
    (found,) = lint_settings.settings_out_of_reach(document, platform)
    assert "comp-for-loop-1/heatmap" in found


def test_the_nodes_of_a_night_are_counted_as_a_real_backend_lists_them(
    compiled_nightly: Path, shared_data: Path
) -> None:
    # The recorded night had one shard and no upload; each node is one task of the API's list.
    document, _ = load_documents(compiled_nightly)
    del document["components"]["comp-exit-handler-1"]["dag"]["tasks"]["condition-2"]
    for _, _, task in tasks(document):
        if "max_loop" in task.get("inputs", {}).get("parameters", {}):
            task["inputs"]["parameters"]["max_loop"] = {"runtimeValue": {"constant": 1}}
    recorded = json.loads((shared_data / "kfp_api" / "nightly-succeeded.json").read_text())
    assert lint_size.num_nodes(document) == len(recorded["run_details"]["task_details"])


def test_eight_rounds_with_all_arms_and_a_large_night_fit(
    tmp_path: Path, compiled_nightly: Path
) -> None:
    for path in (compile_training(tmp_path, max_rounds=8), compiled_nightly):
        found = lint_size.workflow_bytes(*load_documents(path))
        assert 0.4 * lint_size.LIMIT_BYTES < found < 0.9 * lint_size.LIMIT_BYTES
