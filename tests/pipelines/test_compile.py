"""What the compiled pipelines are, task by task, and what compiling them needs."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.compile import compile_training
from pipelines.documents import dags
from pipelines.local_runner import without_retries
from pipelines.parameters import definitions, load_documents

ROOT = Path(__file__).resolve().parents[2]
Documents = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(params=["training", "nightly", "study"])
def both(request: pytest.FixtureRequest) -> Documents:
    """Return specification and platform document of each pipeline in turn."""
    return load_documents(request.getfixturevalue(f"compiled_{request.param}"))


def _tasks(document: dict[str, Any]) -> dict[str, set[str]]:
    return {name: set(dag["dag"]["tasks"]) for name, dag in dags(document)}


def test_the_training_pipeline_has_exactly_these_tasks(document: dict[str, Any]) -> None:
    a_round = {"for-loop-1", "retrain", "retrain-2", "retrain-3"}
    assert _tasks(document) == {
        "root": {
            "configure",
            "ingest",
            "train",
            "guided-round",
            "guided-round-2",
            "evaluate",
            "publish",
        },
        "comp-guided-round": a_round,
        "comp-guided-round-2": a_round,
        "comp-for-loop-1": {"heatmap", "radiomics"},
        "comp-for-loop-1-2": {"heatmap", "radiomics"},
    }


def test_the_nightly_pipeline_has_exactly_these_tasks(compiled_nightly: Path) -> None:
    document, _ = load_documents(compiled_nightly)
    found = _tasks(document)
    assert {frozenset(names) for names in found.values()} == {
        frozenset({"exit-handler-1", "report-outcome"}),
        frozenset({"plan", "score-shards", "collect", "condition-2"}),
        frozenset({"upload"}),
        frozenset({"for-loop-1"}),
        frozenset({"score"}),
    }
    assert found["root"] == {"exit-handler-1", "report-outcome"}


def test_the_study_pipeline_has_exactly_these_tasks(compiled_study: Path) -> None:
    document, _ = load_documents(compiled_study)
    assert _tasks(document) == {
        "root": {"study-plan", "ingest", "study-parts"},
        "comp-study-parts": {"for-loop-1", "study-report"},
        "comp-for-loop-1": {"study-run"},
    }


def test_every_further_round_is_one_more_task_of_the_root(tmp_path: Path) -> None:
    for rounds in (0, 1, 3):
        document, _ = load_documents(compile_training(tmp_path, rounds))
        names = {name for name in document["root"]["dag"]["tasks"] if "round" in name}
        assert len(names) == rounds


def test_without_arms_there_is_no_task_for_them(tmp_path: Path) -> None:
    document, _ = load_documents(compile_training(tmp_path, max_rounds=1, has_arms=False))
    assert _tasks(document)["comp-guided-round"] == {"for-loop-1", "retrain"}
    assert set(document["root"]["dag"]["tasks"]["evaluate"]["inputs"]["artifacts"]) == {
        "dataset",
        "round_0",
        "round_1",
    }
    assert definitions(document)["compare_arms"]["defaultValue"] is False


def test_the_documents_are_messages_of_their_protobufs(both: Documents) -> None:
    document, platform = both
    spec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    assert spec.schema_version == "2.1.0"
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", spec.pipeline_info.name)
    parsed = json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    assert list(parsed.platforms) == ["kubernetes"]
    for executor in _settings(platform).values():
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(executor, config)
        assert config.active_deadline_seconds > 0


def test_a_key_that_no_protobuf_has_does_not_parse(document: dict[str, Any]) -> None:
    document["rooot"] = document.pop("root")
    with pytest.raises(json_format.ParseError, match="rooot"):
        json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())


def _settings(platform: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return found


def test_compiling_twice_gives_the_same_file(compiled_training: Path, tmp_path: Path) -> None:
    again = compile_training(tmp_path, max_rounds=2)
    assert again.read_bytes() == compiled_training.read_bytes()


def test_eight_rounds_stay_below_a_megabyte(tmp_path: Path) -> None:
    assert compile_training(tmp_path, max_rounds=8).stat().st_size < 1_000_000


def test_compiling_loads_none_of_what_the_stages_compute_with(tmp_path: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; "
        "from pipelines.compile import compile_nightly, compile_study, compile_training; "
        "compile_training(Path(sys.argv[1])); compile_nightly(Path(sys.argv[1])); "
        "compile_study(Path(sys.argv[1])); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    heavy = {"torch", "radiomics", "SimpleITK", "minio", "pydicom", "pandas", "sklearn"}
    assert "kfp" in loaded
    assert not loaded & heavy


def test_compiling_takes_seconds_of_one_processor(tmp_path: Path) -> None:
    started = time.process_time()
    compile_training(tmp_path)
    assert time.process_time() - started < 20


def test_the_config_map_of_the_schedule_names_parameters_of_the_nightly_pipeline(
    compiled_nightly: Path,
) -> None:
    known = definitions(load_documents(compiled_nightly)[0])
    kinds = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "LIST": list, "STRUCT": dict}
    given: dict[str, str] = {}
    for path in (
        "base/nightly-parameters-configmap.yaml",
        "options/gpu/nightly-parameters-configmap.yaml",
    ):
        text = (ROOT / "manifests" / path).read_text(encoding="utf-8")
        given |= yaml.safe_load(text)["data"]
    required = {name for name, one in known.items() if "defaultValue" not in one}
    assert required <= set(given) <= set(known)
    for name, text in given.items():
        kind = kinds.get(known[name]["parameterType"])
        assert kind is None or isinstance(json.loads(text), kind)


def test_a_local_run_tries_each_stage_once(compiled_training: Path) -> None:
    assert "retryPolicy" in compiled_training.read_text()
    text = without_retries(compiled_training)
    assert "retryPolicy" not in text
    assert len(list(yaml.safe_load_all(text))) == 2
