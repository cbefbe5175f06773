"""What the bucket Job refuses before it touches a store."""

import json
import shutil
from pathlib import Path

import pytest

from chexradinet.errors import ArtifactError, ConfigError, StoreAccessError
from chexradinet.store import administration

SHIPPED = Path(__file__).resolve().parents[3] / "manifests" / "base" / "storage"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "storage"))


def write(folder: Path, entries: list[dict[str, object]], schema: int = 1) -> Path:
    path = folder / "buckets.json"
    path.write_text(json.dumps({"schema": schema, "kind": "buckets", "buckets": entries}))
    return path


def test_the_shipped_documents_are_read(folder: Path) -> None:
    names = [bucket.name for bucket in administration.read_buckets(folder / "buckets.json")]
    purposes = ("inbox", "training", "models", "results", "artifacts")
    assert names == [f"chexradinet-{purpose}" for purpose in purposes]
    assert set(administration.read_policies(folder)) == {
        "artifacts", "ingest", "night", "publish", "results-reader", "sender", "training",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "names no bucket"),
        ([{"nam": "x"}], "cannot be read"),
        ([{"name": "x", "expire_days": 0}], "expire_days"),
        ([{"name": "x", "noncurrent_days": 0}], "noncurrent_days"),
    ],
)
def test_a_bad_entry_is_named(folder: Path, entries: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        administration.read_buckets(write(folder, entries))


def test_another_schema_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="schema 2"):
        administration.read_buckets(write(folder, [{"name": "x"}], schema=2))


def test_a_policy_that_is_not_json_is_named(folder: Path) -> None:
    (folder / "policy-ingest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"policy-ingest\.json is not JSON"):
        administration.read_policies(folder)


def test_half_a_pair_of_keys_is_refused_without_repeating_it(folder: Path) -> None:
    half = {"RESULTS_READER_SECRET_ACCESS_KEY": "hunter2hunter2"}
    with pytest.raises(ConfigError, match="RESULTS_READER_ACCESS_KEY_ID") as caught:
        administration.set_up_buckets(folder, half)
    assert "hunter2" not in str(caught.value)


def test_a_users_secret_is_not_in_its_repr() -> None:
    (user,) = administration.users_of(
        {"ingest": {}},
        {"INGEST_ACCESS_KEY_ID": "camera", "INGEST_SECRET_ACCESS_KEY": "hunter2hunter2"},
    )
    assert "camera" in repr(user)
    assert "hunter2" not in repr(user)


def test_missing_credentials_name_the_variable(folder: Path) -> None:
    with pytest.raises(StoreAccessError, match="AWS_ENDPOINT_URL"):
        administration.set_up_buckets(folder, {})
