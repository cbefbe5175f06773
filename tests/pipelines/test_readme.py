"""Every command of the README runs: on real radiographs where it takes X-rays."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chexradinet.dataset import open_dataset
from chexradinet.evaluation import read_metrics
from chexradinet.model import verify_bundle
from chexradinet.phantom import write_phantom_inbox
from pipelines.run import artifacts_of

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [str(Path(sys.executable).with_name("chexradinet"))]

QUICK = (
    "image_side=48",
    "backbone=resnet18-narrow",
    "epochs=1",
    "rounds=1",
    "round_epochs=1",
    "num_shards=1",
    "accelerator_count=0",
    "bootstrap_samples=100",
    "allow_missing_thresholds=true",
    "compare_arms=false",
)
"""Settings after those of the README that make a run small."""

RUN_ON_A_FOLDER = (
    ".venv/bin/chexradinet run training"
    " --set source=my-xrays --set data_format=csv --set models_uri=models"
)
RUN_ON_NIH = (
    ".venv/bin/chexradinet run training"
    " --set source=nih --set data_format=nih --set models_uri=models"
)
RUN_NIGHTLY = (
    ".venv/bin/chexradinet run nightly"
    " --set inbox_uri=inbox --set models_uri=models --set results_uri=results"
)
RUN_HERE = {"make demo", "make test", RUN_ON_A_FOLDER, RUN_ON_NIH, RUN_NIGHTLY}
"""Commands that tests of this file run."""
RUN_ELSEWHERE = {
    r"make images": "tests/integration/test_image_sources.py",
    r"kind load docker-image .*": "tests/manifests/test_readme.py",
    r"kubectl create namespace .*": "tests/manifests/test_readme.py",
    r"kubectl -n (kubeflow|chexradinet-store) create secret .*": "tests/manifests/test_readme.py",
    r"kubectl apply -k manifests/overlays/local": "tests/manifests/test_overlays.py",
    r"kubectl -n chexradinet-store wait .*": "tests/manifests/test_readme.py",
    r"kubectl -n kubeflow port-forward .*": "tests/pipelines/test_submit.py",
    r"export KFP_HOST=.*": "tests/pipelines/test_submit.py",
    r"\.venv/bin/chexradinet (publish-pipeline|submit) .*": "tests/pipelines/test_submit.py",
}
"""Commands that other tests run or read, as patterns, and where."""


def _commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    programs = r"make|\.venv/bin/|kubectl|kind|export"
    return re.findall(rf"^ {{4}}((?:{programs}) ?\S.*)$", text, flags=re.MULTILINE)


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    others = set(_commands()) - RUN_HERE
    assert set(_commands()) > RUN_HERE
    used = {pattern for pattern in RUN_ELSEWHERE for one in others if re.fullmatch(pattern, one)}
    assert used == set(RUN_ELSEWHERE)
    for one in others:
        assert any(re.fullmatch(pattern, one) for pattern in RUN_ELSEWHERE), one
    for path in RUN_ELSEWHERE.values():
        assert (ROOT / path).exists(), path


def test_make_test_runs_all_tests_of_the_locked_environment() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert ".venv/bin/python -m pytest" in shown.stdout


@pytest.mark.slow
def test_make_demo_trains_guides_publishes_and_scores(tmp_path: Path) -> None:
    shown = subprocess.run(
        ["make", "demo", f"DEMO=--folder {tmp_path}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    metrics = read_metrics(next(tmp_path.rglob("evaluation/metrics.json")))
    final = metrics["rounds"][-1]
    assert final["round"] == 2
    assert final["mean_auroc"] >= 0.90
    assert final["localization"]["iou_0.3"] >= 1.5 * final["localization"]["swapped_iou_0.3"]
    assert "mean AUROC" in re.sub(r"\s+", " ", shown) or "AUROC" in shown
    assert f"{final['mean_auroc']:.3f}" in shown
    assert "report.html" in shown
    (night,) = (tmp_path / "results" / "scores").iterdir()
    scored = {row["object_key"] for row in _rows(night / "part-000001.csv")}
    rejected = {row["reason"] for row in _rows(night / "rejected-000001.csv")}
    assert len(scored) == 40
    assert rejected == {"truncated"}


@pytest.mark.slow
def test_a_folder_of_real_radiographs_goes_through_the_whole_pipeline(
    shared_data: Path, tmp_path: Path
) -> None:
    num_files = _generic_source(shared_data / "radiographs", tmp_path / "my-xrays")
    _run(RUN_ON_A_FOLDER, tmp_path, *QUICK, "max_reject_fraction=0.1")
    data = open_dataset(artifacts_of(tmp_path, "dataset")[-1])
    assert len(data) + len(data.rejected) == num_files
    assert set(data.rejected["reason"]) <= {"duplicate"}
    assert data.info.counts["splits"]["test"] == 10
    metrics = _metrics(tmp_path)
    test = metrics["test"]
    assert test["localization"]["num_cases"] >= 1
    assert test["mean_auroc_num_findings"] + len(test["not_defined"]) == len(data.info.findings)
    report = (artifacts_of(tmp_path, "evaluation")[-1] / "report.html").read_text(encoding="utf-8")
    assert "not for diagnostic use" in report.lower()
    for name in test["not_defined"]:
        assert name.replace("_", " ") in report
    pointer = json.loads((tmp_path / "models" / "champion.json").read_text())
    assert verify_bundle(tmp_path / "models" / pointer["digest"]) == metrics["bundle_digest"]
    _score_an_inbox(tmp_path)


def _score_an_inbox(folder: Path) -> None:
    """Score four new X-rays with the model that a run published in this folder."""
    write_phantom_inbox(folder / "inbox", 4, 128, seed=5)
    _run(RUN_NIGHTLY, folder, "settle_s=0", "shard_size=4")
    (night,) = (folder / "results" / "scores").iterdir()
    assert len({row["object_key"] for row in _rows(night / "part-000001.csv")}) == 4


@pytest.mark.slow
def test_nih_as_downloaded_goes_through_the_whole_pipeline(
    shared_data: Path, tmp_path: Path
) -> None:
    source = tmp_path / "nih"
    tables = shared_data / "nih_csv"
    (source / "images_001" / "images").mkdir(parents=True)
    shutil.copyfile(tables / "BBox_List_2017.csv", source / "BBox_List_2017.csv")
    for name in ("train_val_list.txt.gz", "test_list.txt.gz"):
        shutil.copyfile(tables / name, source / name)
    images = sorted((shared_data / "radiographs" / "images").glob("0*_*.png"))
    for image in images:
        (source / "images_001" / "images" / image.name).symlink_to(image)
    num_rows = _nih_table(shared_data, source / "Data_Entry_2017_v2020.csv")
    _run(RUN_ON_NIH, tmp_path, *QUICK, "max_reject_fraction=1")
    data = open_dataset(artifacts_of(tmp_path, "dataset")[-1])
    rejected = data.rejected["reason"].value_counts()
    assert len(data) + rejected.get("missing", 0) + rejected.get("duplicate", 0) == num_rows
    assert _metrics(tmp_path)["rounds"][-1]["round"] == 1


def _run(command: str, folder: Path, *settings: str) -> None:
    """Run a command of the README in a folder, with further settings that make it small."""
    words = command.split()[1:]
    more = [word for setting in settings for word in ("--set", setting)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *words, *more],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def _metrics(folder: Path) -> dict[str, Any]:
    return read_metrics(artifacts_of(folder, "evaluation")[-1] / "metrics.json")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _nih_rows(radiographs: Path) -> list[dict[str, str]]:
    rows = _rows(radiographs / "labels.csv")
    return [row for row in rows if row["dataset"] == "nih_chestxray14"]


def _nih_table(shared_data: Path, target: Path) -> int:
    """Write the official columns for the images that are there, malformed header included."""
    with (shared_data / "nih_csv" / "Data_Entry_2017_v2020.head2000.csv").open() as stream:
        header = stream.readline()
    rows = _nih_rows(shared_data / "radiographs")
    lines = [
        ",".join(
            [
                Path(row["filename"]).name,
                row["finding_labels"],
                "0",
                str(int(row["patient_id"].removeprefix("nih_"))),
                row["age"],
                row["sex"],
                row["view"],
                row["source_width"],
                row["source_height"],
                "0.143",
                "0.143",
            ]
        )
        for row in rows
    ]
    target.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    return len(rows)


def _generic_source(radiographs: Path, target: Path) -> int:
    """Make a folder with links to the real NIH images and a table in the generic format."""
    (target / "images").mkdir(parents=True)
    rows = _nih_rows(radiographs)
    fields = ["file", "patient", "findings", "view", "age", "sex", "split", "boxes"]
    with (target / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        for row in rows:
            (target / row["filename"]).symlink_to(radiographs / row["filename"])
            writer.writerow(_generic(row))
    return len(rows)


def _generic(row: Mapping[str, str]) -> dict[str, str]:
    boxes = [
        {
            "finding": box["label"],
            "top": box["y"],
            "left": box["x"],
            "bottom": box["y"] + box["h"],
            "right": box["x"] + box["w"],
        }
        for box in json.loads(row["boxes_512px"] or "[]")
    ]
    return {
        "file": row["filename"],
        "patient": row["patient_id"],
        "findings": row["finding_labels"],
        "view": row["view"],
        "age": row["age"],
        "sex": row["sex"],
        "split": "test" if row["official_nih_split"] == "test" else "train",
        "boxes": json.dumps(boxes) if boxes else "",
    }
