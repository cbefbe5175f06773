"""Equal work is done once: a kept result is taken if it is whole, and made again if it is not."""

import os
from pathlib import Path

import pytest

from chexradinet.config import GuidanceConfig, GuidanceRecipe, IngestConfig, PreprocessingConfig
from chexradinet.dataset import open_dataset
from chexradinet.ingest.ingest import ingest
from chexradinet.model import read_bundle_info
from chexradinet.phantom import write_phantom
from chexradinet.training.train import retrain, train
from tests.unit.conftest import TINY_NETWORK, TINY_TRAINING


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHEXRADINET_CHECKPOINT_URI", str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def forbid(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(place, lambda *_args, **_kwargs: pytest.fail("it was done again"))


@pytest.mark.trains
def test_a_finished_training_is_taken_and_not_trained_again(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_dataset, tmp_path / "first", TINY_NETWORK, TINY_TRAINING)
    with monkeypatch.context() as patch:
        forbid(patch, "chexradinet.training.train.train_here")
        train(tiny_dataset, tmp_path / "again", TINY_NETWORK, TINY_TRAINING)
        other = TINY_TRAINING.changed(seed=6)
        with pytest.raises(pytest.fail.Exception, match="it was done again"):
            train(tiny_dataset, tmp_path / "other", TINY_NETWORK, other)
        with pytest.raises(pytest.fail.Exception, match="it was done again"):
            train(tiny_dataset, tmp_path / "again", TINY_NETWORK, TINY_TRAINING, reuse=False)
    first, again = (read_bundle_info(tmp_path / name)[1] for name in ("first", "again"))
    assert first == again


@pytest.mark.trains
def test_a_finished_round_is_taken_and_judged_by_the_limit_given_now(
    tiny_dataset: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, min_improvement: float) -> bool:
        guidance = GuidanceConfig(guidance=GuidanceRecipe.NONE)
        return retrain(
            tiny_model,
            tiny_dataset,
            [],
            tmp_path / name,
            round_number=1,
            guidance=guidance,
            config=TINY_TRAINING,
            min_improvement=min_improvement,
        ).improved

    assert run("first", -1)
    forbid(monkeypatch, "chexradinet.training.train.retrain_here")
    assert run("again", -1)
    assert not run("strict", 1)


@pytest.mark.trains
@pytest.mark.parametrize("damage", ["changed", "missing", "unlisted"])
def test_a_damaged_result_is_made_again(
    tiny_dataset: Path, tmp_path: Path, kept: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_dataset, tmp_path / "first", TINY_NETWORK, TINY_TRAINING)
    (folder,) = kept.glob("finished-*")
    weights = next(folder.glob("*.safetensors"))
    if damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "more.txt").write_text("not of it")
    train(tiny_dataset, tmp_path / "again", TINY_NETWORK, TINY_TRAINING)
    assert "train is done again" in caplog.text
    assert read_bundle_info(tmp_path / "first")[1] == read_bundle_info(tmp_path / "again")[1]


@pytest.mark.trains
def test_results_older_than_thirty_days_are_removed_from_a_folder(
    tiny_dataset: Path, tmp_path: Path, kept: Path
) -> None:
    train(tiny_dataset, tmp_path / "first", TINY_NETWORK, TINY_TRAINING)
    (folder,) = kept.glob("finished-*")
    os.utime(folder / "finished.json", (0, 0))
    train(tiny_dataset, tmp_path / "other", TINY_NETWORK, TINY_TRAINING.changed(seed=6))
    assert not folder.exists()
    assert len(list(kept.glob("finished-*"))) == 1


def test_a_finished_ingest_is_taken_and_no_file_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom(tmp_path / "source", 6, 64, seed=1)
    config = IngestConfig(preprocessing=PreprocessingConfig(image_side=32), ingest_workers=1)
    first = ingest(str(tmp_path / "source"), tmp_path / "first", config)
    forbid(monkeypatch, "chexradinet.ingest.ingest.decode_in_order")
    again = ingest(str(tmp_path / "source"), tmp_path / "again", config)
    assert open_dataset(tmp_path / "again").digest == first.digest == again.digest
    (tmp_path / "source" / "images" / "000000.png").touch()
    with pytest.raises(pytest.fail.Exception, match="it was done again"):
        ingest(str(tmp_path / "source"), tmp_path / "changed", config)
