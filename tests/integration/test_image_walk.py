"""The walk over compiled pipelines that `make test-image` makes, without containers."""

from pathlib import Path
from typing import Any

import pytest

from images.graph import GraphError, Values, walk, with_defaults
from images.launcher import Sandbox, as_sent, container_command, executor_input
from images.run_stages import NIGHTLY_SETTINGS, TRAINING_SETTINGS
from pipelines.compile import compile_nightly, compile_training
from pipelines.parameters import load_compiled, parse_settings

OPENED = {
    "active": True,
    "shards": [0.0, 1.0],
    "num_shards": 2,
    **{
        stage: {"of": stage}
        for stage in ("ingest", "train", "regions", "radiomics", "retrain", "evaluate", "publish")
    },
    "round_accelerators": "0",
    "single_accelerator": "0",
    "round_single_accelerator": "0",
    "accelerators": "0",
    "work": "/results/work",
    "status": "planned",
    "Output": True,
}


def _walked(compiled: Path, settings: tuple[str, ...]) -> dict[str, Values]:
    """Walk a compiled pipeline with stages that do nothing; return what each was given."""
    document = load_compiled(compiled)
    seen: dict[str, Values] = {}

    def launch(path: str, component: str, inputs: Values) -> Values:
        seen[path] = with_defaults(document["components"][component], inputs)
        outputs = document["components"][component].get("outputDefinitions", {})
        return Values(
            {name: OPENED[name] for name in outputs.get("parameters", {})},
            {name: [{"uri": f"{path}/{name}"}] for name in outputs.get("artifacts", {})},
        )

    walk(document, parse_settings(document, settings), launch)
    return seen


def test_training_runs_each_stage_in_order(tmp_path: Path) -> None:
    seen = _walked(compile_training(tmp_path, max_rounds=1), TRAINING_SETTINGS)
    stages = [path.removeprefix("guided-round.") for path in seen]
    assert stages == [
        "configure", "ingest", "train",
        "for-loop-1.0.heatmap", "for-loop-1.0.radiomics",
        "for-loop-1.1.heatmap", "for-loop-1.1.radiomics",
        "retrain", "retrain-2", "retrain-3", "evaluate", "publish",
    ]  # fmt: skip


def test_inputs_come_from_arguments_from_tasks_and_from_the_loop(tmp_path: Path) -> None:
    seen = _walked(compile_training(tmp_path, max_rounds=1), TRAINING_SETTINGS)
    second = seen["guided-round.for-loop-1.1.heatmap"]
    assert second.parameters["shard"] == 1
    assert second.parameters["active"] is True
    assert second.artifacts["model"] == [{"uri": "train/model"}]
    for task in ("retrain", "retrain-2", "retrain-3"):
        collected = seen[f"guided-round.{task}"].artifacts["features"]
        assert [artifact["uri"] for artifact in collected] == [
            f"guided-round.for-loop-1.{index}.radiomics/features" for index in (0, 1)
        ]
    judged = seen["evaluate"]
    assert judged.artifacts["round_1"] == [{"uri": "guided-round.retrain/model"}]
    assert judged.artifacts["permuted"] == [{"uri": "guided-round.retrain-3/model"}]
    assert judged.parameters["settings"] == {"of": "evaluate"}
    assert seen["configure"].parameters["bootstrap_samples"] == 100


def test_a_night_ends_with_its_last_word(tmp_path: Path) -> None:
    seen = _walked(compile_nightly(tmp_path), NIGHTLY_SETTINGS)
    names = [path.rpartition(".")[2] for path in seen]
    assert names == ["plan", "score", "score", "collect", "report-outcome"]
    assert not [
        value
        for values in seen.values()
        for value in values.parameters.values()
        if isinstance(value, str) and "{{$" in value
    ], "a placeholder was not filled"


def test_what_the_walk_does_not_know_is_an_error() -> None:
    pipeline: dict[str, Any] = {
        "root": {
            "dag": {
                "tasks": {
                    "maybe": {
                        "componentRef": {"name": "comp"},
                        "triggerPolicy": {"condition": "inputs.parameter_values['x'] == 1"},
                    }
                }
            }
        },
        "components": {"comp": {"executorLabel": "exec"}},
    }
    with pytest.raises(GraphError, match="maybe has the condition inputs"):
        walk(pipeline, {}, lambda path, name, inputs: Values())


def test_numbers_arrive_as_protobuf_writes_them() -> None:
    assert repr(as_sent({"a": 8.0, "b": [0.0, 0.5], "c": True})) == (
        "{'a': 8, 'b': [0, 0.5], 'c': True}"
    )


def test_a_container_has_no_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_ENGINE", "podman --runtime runc")
    monkeypatch.delenv("CONTAINER_RUN_OPTIONS", raising=False)
    component: dict[str, Any] = {"outputDefinitions": {"parameters": {"Output": {}}}}
    task = executor_input(component, "a.b", Values({"seed": 0.0}))
    command = container_command(
        {"command": ["sh"], "args": ["{{$}}"]},
        task,
        Sandbox(image="image:1", work=tmp_path, environment={"OMP_NUM_THREADS": "1"}),
        tmp_path / "tmp",
        "name",
    )
    text = " ".join(command)
    for option in (
        "podman --runtime runc run",
        "--user 65532:65532",
        "--read-only",
        "--network none",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        f"--volume {tmp_path}/artifacts:/minio/artifacts",
        "--env OMP_NUM_THREADS=1",
    ):
        assert option in text
    assert command[-3:-1] == ["image:1", "sh"]
    assert '"parameterValues": {"seed": 0}' in command[-1]
