"""A slip in `--out` costs a message: never the source, its parents, or somebody's folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chexradinet.config import (
    EvaluationConfig,
    GuidanceConfig,
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)
from chexradinet.errors import ChexRadiNetError, ConfigError
from chexradinet.ingest import Folder
from chexradinet.ingest.ingest import ingest
from chexradinet.ingest.output import ingest_to
from chexradinet.phantom import write_phantom
from chexradinet.training.evaluate import Arms, evaluate
from chexradinet.training.rounds import heatmap, radiomics
from chexradinet.training.train import retrain, train

SMALL = IngestConfig(preprocessing=PreprocessingConfig(image_side=32), ingest_workers=1)
NETWORK = NetworkConfig(backbone="resnet18-narrow", map_stride=8)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with a source of X-rays, tables elsewhere, and somebody's thesis."""
    write_phantom(tmp_path / "work" / "xrays", 8, 64, seed=1)
    (tmp_path / "work" / "home").mkdir()
    (tmp_path / "work" / "home" / "thesis.doc").write_text("years")
    (tmp_path / "work" / "tables").mkdir()
    table = (tmp_path / "work" / "xrays" / "labels.csv").read_text()
    (tmp_path / "work" / "tables" / "labels.csv").write_text(table)
    (tmp_path / "work" / "linked").symlink_to(tmp_path / "work" / "xrays")
    return tmp_path / "work"


@pytest.mark.parametrize("labels", ["", "{work}/tables"])
@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("{work}/xrays", "{work}/xrays"),
        ("{work}/xrays", "{work}/xrays/"),
        ("{work}/linked", "{work}/xrays"),
        ("{work}/xrays", "{work}/linked"),
        ("file://{work}/xrays", "{work}/xrays"),
        ("{work}/xrays", "{work}"),
        ("{work}/xrays/images", "{work}"),
        ("{work}/xrays", "{work}/xrays/.."),
        ("{work}/xrays", "{work}/xrays/dataset"),
        ("{work}/xrays", "{work}/linked/images/dataset"),
        ("{work}/xrays", "{work}/home"),
        ("{work}/xrays", "{work}/home/thesis.doc"),
        ("{work}/xrays", "{work}/tables"),
        ("{work}/xrays", "/"),
    ],
)
def test_target_with_anything_of_the_users_in_it_is_refused_before_any_file_is_read(
    work: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str, labels: str
) -> None:
    monkeypatch.setattr(Folder, "read", lambda *_: pytest.fail("a file was read"))
    before = content(work)
    places = [text.format(work=work) for text in (source, out, labels)]
    with pytest.raises(ConfigError):
        ingest_to(places[0], places[1], SMALL, labels=places[2])
    assert content(work) == before


def test_older_data_set_is_replaced_also_below_a_hidden_folder_or_beside_the_tables(
    work: Path,
) -> None:
    for out in (work / "new", work / "new", work / "xrays" / ".kfp" / "new", work / "tables/new"):
        info = ingest(str(work / "xrays"), out, SMALL, labels=str(work / "tables"))
        assert info.counts["images"] == 8


@pytest.mark.parametrize("report", ["s3://bucket/r.html", "{work}/xrays/labels.csv", "{work}"])
def test_report_that_cannot_be_written_is_refused_before_any_file_is_read(
    work: Path, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    monkeypatch.setattr(Folder, "read", lambda *_: pytest.fail("a file was read"))
    before = content(work)
    with pytest.raises(ConfigError, match=r"report|does not end"):
        ingest_to(str(work / "xrays"), str(work / "new"), SMALL, report=report.format(work=work))
    assert content(work) == before


def run_train(dataset: Path, target: Path) -> object:
    return train(dataset, target, NETWORK, TrainConfig(epochs=1))


def run_retrain(dataset: Path, target: Path) -> object:
    return retrain(
        dataset,
        dataset,
        [dataset],
        target,
        round_number=1,
        guidance=GuidanceConfig(),
        config=TrainConfig(epochs=1),
    )


def run_heatmap(dataset: Path, target: Path) -> object:
    return heatmap(dataset, dataset, target, RegionConfig())


def run_radiomics(dataset: Path, target: Path) -> object:
    return radiomics(dataset, dataset, target, RadiomicsConfig())


def run_evaluate(dataset: Path, target: Path) -> object:
    return evaluate(
        dataset,
        Arms(rounds=[dataset]),
        best=target.with_name("best"),
        target=target,
        config=EvaluationConfig(),
        regions=RegionConfig(),
        radiomics=RadiomicsConfig(),
    )


def run_phantom(_: Path, target: Path) -> None:
    write_phantom(target, 2, 64, seed=1)


@pytest.mark.parametrize(
    "stage",
    [run_train, run_retrain, run_heatmap, run_radiomics, run_evaluate, run_phantom],
)
def test_no_stage_replaces_a_data_set_or_somebodys_folder(
    stage: Callable[[Path, Path], object], tiny_dataset: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "labels.csv").write_text("file,patient,findings\n")
    for target in (home, tiny_dataset):
        before = content(target)
        with pytest.raises(ConfigError, match="not empty"):
            stage(tiny_dataset, target)
        assert content(target) == before


def test_best_bundle_and_evaluation_are_two_places(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give each a directory"):
        run_evaluate(tiny_dataset, tmp_path / "best")


def test_phantom_replaces_a_phantom(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_phantom(tmp_path / "phantom", 2, 64, seed=seed)
    assert "phantom-2-" in (tmp_path / "phantom" / "labels.csv").read_text()
    (tmp_path / "file").touch()
    with pytest.raises(ChexRadiNetError, match="is a file"):
        write_phantom(tmp_path / "file", 2, 64, seed=1)
