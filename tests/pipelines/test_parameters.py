"""Parameters are checked before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from chexradinet.errors import ConfigError
from pipelines.parameters import definitions, load_compiled, parse_settings, require_version

GIVEN = ["source=in put/ü", "models_uri=s3://models"]


def test_values_take_the_type_of_their_parameter(document: dict[str, Any]) -> None:
    words = [*GIVEN, "rounds=1", "min_age_years=1", "compare_arms=TRUE", 'tolerations=[{"a":1}]']
    assert parse_settings(document, words) == {
        "source": "in put/ü",
        "models_uri": "s3://models",
        "rounds": 1,
        "min_age_years": 1.0,
        "compare_arms": True,
        "tolerations": [{"a": 1}],
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds", "malformed; it must read name=value"),
        ("=3", "malformed"),
        ("round=3", "unknown parameter 'round'; did you mean 'rounds'"),
        ("rounds=two", "rounds is 'two'; it must be a whole number"),
        ("rounds=2.5", "rounds is '2.5'; it must be a whole number"),
        ("rounds=true", "rounds is 'true'; it must be a whole number"),
        ("learning_rate=fast", "must be a number"),
        ("compare_arms=1", "must be true or false"),
        ("node_selector=[]", "must be a JSON object"),
        ("tolerations={}", "must be a JSON list"),
    ],
)
def test_a_bad_setting_is_refused_with_what_was_needed(
    document: dict[str, Any], word: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(document, [*GIVEN, word])


def test_a_missing_parameter_is_named_with_how_to_give_it(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no value for models_uri; add --set models_uri="):
        parse_settings(document, ["source=x"])


def test_every_parameter_is_described_in_the_pipeline(document: dict[str, Any]) -> None:
    description = document["pipelineInfo"]["description"]
    for name, definition in definitions(document).items():
        assert f"| {name} |" in description
        assert definition["description"]


def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.yaml"
    with pytest.raises(ConfigError, match="is missing; run `chexradinet compile`"):
        load_compiled(path)
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="is not a YAML file"):
        load_compiled(path)
    path.write_text("a: 1")
    with pytest.raises(ConfigError, match="is not a compiled pipeline"):
        load_compiled(path)


def test_a_pipeline_of_another_version_is_refused(document: dict[str, Any]) -> None:
    require_version(document, Path("training.yaml"))
    info = document["pipelineInfo"]
    info["description"] = info["description"].rpartition("Version ")[0] + "Version 9.9.9."
    with pytest.raises(ConfigError, match=r"compiled by version 9\.9\.9"):
        require_version(document, Path("training.yaml"))
