"""Settings: each is checked at every door, and reaches its own stage and no other."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import dsl
from typer.testing import CliRunner

from chexradinet.config import DicomConfig, QualityConfig, Settings
from chexradinet.config.parameters import (
    WORKER_IMAGE,
    NightlySettings,
    Parameter,
    Shape,
    StudySettings,
    TrainingSettings,
)
from chexradinet.dataset import open_dataset
from chexradinet.errors import ChexRadiNetError, ConfigError
from chexradinet.steps.nightly import plan
from chexradinet.steps.study import study_plan
from chexradinet.steps.training import configure, ingest
from pipelines import __main__ as commands
from pipelines.describe import parameters_of
from pipelines.ending import ENDINGS
from pipelines.parameters import asked_shape, definitions, load_compiled, parse_settings
from tests.ingest_world import KEY_VARIABLE, SECRET, dicom

ROOT = Path(__file__).resolve().parents[2]
REQUIRED: dict[str, dict[str, Any]] = {
    "training": {"source": "s3://in", "models_uri": "s3://models"},
    "nightly": {"inbox_uri": "s3://in", "models_uri": "s3://models", "results_uri": "s3://out"},
    "study": {
        "source": "s3://in",
        "plan": {"arms": {"a": {}, "b": {"epochs": 2}}, "comparisons": [["a", "b"]]},
    },
}
MODELS: dict[str, type[Settings]] = {
    "training": TrainingSettings,
    "nightly": NightlySettings,
    "study": StudySettings,
}
FIRST_STEPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "training": (configure, {"max_rounds": 2, "has_arms": True}),
    "nightly": (plan, {"run_id": "1", "max_loop": 1}),
    "study": (study_plan, {"max_loop": 1, "preregistration": None}),
}
"""What checks all parameters on a cluster, and what it takes beside them."""
NOT_AS_NEEDED = {
    "findings": "Nodul",
    "uncertain_labels": "perhaps",
    "rescore_since": "yesterday",
    "map_stride": 7,
    "plan": {"arms": {"a": {}, "b": {}}, "comparisons": [["a", "c"]]},
    "node_selector": {"zone": 1},
    "urgency": {"Nonsense": "high"},
    "tolerations": ["all"],
}
"""Values that parse and are still no good, where bounds do not tell."""

UNBOUNDED = {"labels", "initial_weights", "accelerator_type"}
"""Texts that nothing but the run itself can check."""


def _bad(one: Parameter) -> Any:  # noqa: ANN401 - of the parameter's type
    if one.name in NOT_AS_NEEDED:
        return NOT_AS_NEEDED[one.name]
    if one.name.endswith("_memory"):
        return "much"
    if one.kind is str:
        return "" if one.needed == "given" else "nonsense"
    low = float(re.findall(r"-?[\d.]+", one.needed)[0].rstrip("."))
    return one.kind(low - 1)


def _every_bad_value() -> list[Any]:
    return [
        pytest.param(name, one, id=f"{name}-{one.name}")
        for name, model in MODELS.items()
        for one in parameters_of(model).values()
        if one.kind is not bool and one.name not in UNBOUNDED
    ]


def _defaults(name: str) -> dict[str, Any]:
    known = parameters_of(MODELS[name])
    return {**{key: one.default for key, one in known.items()}, **REQUIRED[name]}


def _configured(**changes: Any) -> Any:  # noqa: ANN401
    values = {**_defaults("training"), **changes}
    return configure.python_func(**values, max_rounds=2, has_arms=True)


@pytest.mark.parametrize(("name", "one"), _every_bad_value())
def test_a_value_out_of_bounds_is_refused_at_every_door(
    name: str,
    one: Parameter,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kubeflow: Any,  # noqa: ANN401 - conftest's server
) -> None:
    compiled = request.getfixturevalue(f"compiled_{name}")
    monkeypatch.setattr(commands, "compile_training", lambda *_, **__: compiled)
    monkeypatch.setattr(commands, "compile_nightly", lambda *_: compiled)
    monkeypatch.setattr(commands, "compile_study", lambda *_: compiled)
    monkeypatch.setattr(commands, "run_locally", lambda *_: pytest.fail("it ran"))
    monkeypatch.setenv("CHEXRADINET_IMAGE", WORKER_IMAGE)
    bad = _bad(one)
    given = {**REQUIRED[name], one.name: bad}
    texts = {
        key: text if isinstance(text, str) else json.dumps(text) for key, text in given.items()
    }
    words = [f"--set={key}={text}" for key, text in texts.items()]
    submit = ["submit", name, *words, "--host", kubeflow.host, "--file", str(compiled)]
    for command in (["run", name, *words], submit):
        refused = CliRunner().invoke(commands.app, command).exception
        assert isinstance(refused, ConfigError), refused
        assert one.name in str(refused)
    assert kubeflow.writes == []
    step, more = FIRST_STEPS[name]
    with pytest.raises(ChexRadiNetError, match=one.name):
        step.python_func(**{**_defaults(name), one.name: bad}, **more)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_first_step_takes_every_parameter_and_the_form_shows_each_with_its_default(
    name: str, request: pytest.FixtureRequest
) -> None:
    document = load_compiled(request.getfixturevalue(f"compiled_{name}"))
    known = parameters_of(MODELS[name])
    found = definitions(document)
    assert set(found) == set(known)
    for key, one in known.items():
        assert found[key].get("defaultValue") == one.default
        assert found[key]["description"] == one.description
    first = FIRST_STEPS[name][0].name
    taken = document["components"][f"comp-{first}"]["inputDefinitions"]["parameters"]
    assert set(known) <= set(taken)


def test_the_settings_of_one_stage_change_with_none_of_another() -> None:
    changes: dict[str, dict[str, Any]] = {
        "ingest": {"image_side": 96},
        "train": {"epochs": 3},
        "regions": {"region_threshold": 0.5},
        "radiomics": {"bin_width": 4.0},
        "retrain": {"round_epochs": 1},
        "evaluate": {"bootstrap_samples": 200},
        "publish": {"replace_incomparable": True},
    }
    before = _configured()
    names = list(changes)
    for stage, change in changes.items():
        after = _configured(**change)
        changed = {
            name for name, one, other in zip(names, before, after, strict=False) if one != other
        }
        # Evaluation looks and measures as the rounds do.
        assert changed == {stage} | ({"evaluate"} if stage in ("regions", "radiomics") else set())


def test_no_step_but_the_first_reads_a_setting_that_is_not_its_own(
    document: dict[str, Any],
) -> None:
    placement = {"accelerator_type", "worker_image", "source", "labels", "models_uri", "rounds"}
    for name, task in document["root"]["dag"]["tasks"].items():
        if name == "configure" or "round" in name:
            continue
        direct = {
            value["componentInputParameter"]
            for value in task["inputs"].get("parameters", {}).values()
            if "componentInputParameter" in value
        }
        assert {one for one in direct if not one.endswith("_memory")} <= placement, name
        structs = {
            value["taskOutputParameter"]["outputParameterKey"]
            for value in task["inputs"].get("parameters", {}).values()
            if value.get("taskOutputParameter", {}).get("producerTask") == "configure"
        }
        assert structs & {"ingest", "train", "retrain", "evaluate", "publish"} == {name}


def test_more_than_was_compiled_is_refused_with_what_to_do(compiled_training: Path) -> None:
    document = load_compiled(compiled_training)
    given = ["source=a", "models_uri=b"]
    for word, message in {
        "rounds=3": "rounds is 3; it must be at most 2 here",
        "num_shards=9": "num_shards is 9; it must be at most 6 here",
        "compare_arms=false": "compare_arms is False; it must be True here",
    }.items():
        with pytest.raises(ConfigError, match=message):
            parse_settings(document, [*given, word])
    with pytest.raises(ConfigError, match="at most 2 here; compile the pipeline for more"):
        _configured(rounds=3)
    assert parse_settings(document, [*given, "rounds=0", "compare_arms=false"])["rounds"] == 0


def test_a_run_is_compiled_for_what_it_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rounds: 3\ncompare_arms: false\n")
    assert asked_shape([]) == Shape(max_rounds=2, has_arms=True)
    assert asked_shape(["rounds=1"], file) == Shape(max_rounds=1, has_arms=False)
    assert asked_shape([], file) == Shape(max_rounds=3, has_arms=False)
    with pytest.raises(ConfigError, match=r"rounds is 9; it must be in \[0, 8\]"):
        asked_shape(["rounds=9"])


def test_a_file_gives_settings_and_words_win(compiled_training: Path, tmp_path: Path) -> None:
    document = load_compiled(compiled_training)
    file = tmp_path / "run.yaml"
    file.write_text(
        "source: in\nmodels_uri: out\nepochs: 3\nmin_age_years: 1\ntolerations: [{a: b}]\n"
    )
    assert parse_settings(document, ["epochs=5"], file) == {
        "source": "in",
        "models_uri": "out",
        "epochs": 5,
        "min_age_years": 1.0,
        "tolerations": [{"a": "b"}],
    }
    for text, message in {
        "[1]": "is not a mapping",
        "a: [": "is not YAML",
        "round: 1": "did you mean 'rounds'",
        "epochs: ten": "epochs is 'ten'; it must be a whole number",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            parse_settings(document, [], file)
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_settings(document, [], tmp_path / "missing.yaml")


def test_what_the_pipeline_says_of_ingest_arrives_in_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    (tmp_path / "source").mkdir()
    (tmp_path / "tables").mkdir()
    for number in range(4):
        content = dicom(number, PatientAge=f"{8 + number:03d}Y")
        (tmp_path / "source" / f"{number}").write_bytes(content)
    rows = [f"{number},p{number},Mass" for number in range(4)]
    (tmp_path / "tables" / "labels.csv").write_text("\n".join(["file,patient,findings", *rows]))
    dataset = dsl.Dataset(uri=str(tmp_path / "dataset"))
    report = dsl.HTML(uri=str(tmp_path / "report.html"))
    for artifact in (dataset, report):
        artifact.path = artifact.uri
    settings: Mapping[str, Any] = _configured(
        data_format="dicom",
        image_side=32,
        validation_fraction=0.0,
        max_reject_fraction=1.0,
        test_fraction=0.34,
        voi_index=1,
        min_age_years=9.0,
        check_inversion=False,
        ingest_workers=1,
        ingest_shard_size=2,
    )[0]
    as_the_local_runner_sends_it = json.loads(json.dumps(settings), parse_int=float)
    told = ingest.python_func(
        source=str(tmp_path / "source"),
        labels=str(tmp_path / "tables"),
        settings=as_the_local_runner_sends_it,
        num_shards=0,
        max_loop=8,
        dataset=dataset,
        ingest_report=report,
    )
    assert told == (1, [0])
    made = open_dataset(tmp_path / "dataset")
    assert made.info.findings == ("Mass",)
    assert made.info.shard_sizes == (2, 1)
    assert made.info.counts["rejected"] == {"under_age": 1}
    assert made.info.counts["splits"]["test"] == 1
    assert made.info.quality == QualityConfig(min_age_years=9, check_inversion=False)
    assert made.info.preprocessing.dicom == DicomConfig(voi_index=1)
    assert dataset.metadata["digest"] == made.digest
    assert (tmp_path / "report.html").exists()


def test_the_commands_list_every_parameter() -> None:
    for name, model in MODELS.items():
        shown = CliRunner().invoke(commands.app, ["params", name]).output
        for key in parameters_of(model):
            assert key in shown


@pytest.mark.parametrize("preset", sorted((ROOT / "pipelines").glob("pr*/*.yaml")), ids=str)
def test_each_preset_is_one_that_a_run_takes(
    preset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(commands, "run_locally", lambda *given: taken.append(given[1]))
    monkeypatch.setitem(ENDINGS, "training", lambda *_: {})
    words = [f"--set={key}={value}" for key, value in REQUIRED["training"].items()]
    command = ["run", "training", "--config", str(preset), "--folder", str(tmp_path), *words]
    result = CliRunner().invoke(commands.app, command)
    assert result.exit_code == 0, result.output
    (arguments,) = taken
    assert arguments == {**yaml.safe_load(preset.read_text()), **REQUIRED["training"]}
