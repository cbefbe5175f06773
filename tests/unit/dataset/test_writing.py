import random
from collections import Counter
from dataclasses import replace

import pytest

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels import TableRow
from chexradinet.dataset.writing import assign_splits, take_patients
from chexradinet.errors import LabelTableError
from chexradinet.records import Split


def rows_of(*splits: Split | None, images_each: int = 2) -> list[TableRow]:
    """Return rows of as many patients as there are splits."""
    return [
        TableRow(
            file=f"{patient}-{number}",
            image_id=f"{patient}-{number}",
            patient_id=f"patient {patient}",
            split=split,
            labels={},
        )
        for patient, split in enumerate(splits)
        for number in range(images_each)
    ]


def by_patient(rows: tuple[TableRow, ...]) -> dict[str, set[Split | None]]:
    found: dict[str, set[Split | None]] = {}
    for row in rows:
        found.setdefault(row.patient_id, set()).add(row.split)
    return found


def test_no_rows_need_no_split() -> None:
    assert assign_splits([], IngestConfig()) == ()


def test_single_patient_trains() -> None:
    assert {row.split for row in assign_splits(rows_of(None), IngestConfig())} == {Split.TRAIN}


def test_given_splits_are_kept() -> None:
    rows = rows_of(Split.TRAIN, Split.VALIDATION, Split.TEST)
    assert assign_splits(rows, IngestConfig()) == tuple(rows)


def test_validation_comes_from_training_patients_alone() -> None:
    rows = rows_of(*[Split.TRAIN] * 30, *[Split.TEST] * 10)
    found = by_patient(assign_splits(rows, IngestConfig(validation_fraction=0.2)))
    assert all(len(splits) == 1 for splits in found.values())
    counts = Counter(split for splits in found.values() for split in splits)
    assert counts == {Split.TRAIN: 24, Split.VALIDATION: 6, Split.TEST: 10}


def test_patients_without_any_split_are_divided_by_the_fractions() -> None:
    config = IngestConfig(validation_fraction=0.125, test_fraction=0.2)
    found = by_patient(assign_splits(rows_of(*[None] * 100), config))
    assert all(len(splits) == 1 for splits in found.values())
    counts = Counter(split for splits in found.values() for split in splits)
    assert counts == {Split.TRAIN: 70, Split.VALIDATION: 10, Split.TEST: 20}


def test_fraction_of_zero_takes_nobody() -> None:
    config = IngestConfig(validation_fraction=0, test_fraction=0)
    rows = assign_splits(rows_of(*[None] * 9), config)
    assert {row.split for row in rows} == {Split.TRAIN}


def test_split_does_not_depend_on_the_order_of_rows_but_on_the_seed() -> None:
    rows = rows_of(*[None] * 50)
    shuffled = random.Random(1).sample(rows, len(rows))
    one = by_patient(assign_splits(rows, IngestConfig()))
    assert by_patient(assign_splits(shuffled, IngestConfig())) == one
    assert by_patient(assign_splits(rows, IngestConfig(split_seed=1))) != one


def test_patient_without_labels_who_joins_moves_at_most_one_other() -> None:
    nothing: frozenset[str] = frozenset()
    patients = dict.fromkeys((f"p{number}" for number in range(100)), nothing)
    before = take_patients(patients, 0.2, 0)
    after = take_patients(patients | {"new": nothing}, 0.2, 0)
    assert len(before - after) <= 1


def test_patient_in_two_splits_is_refused_without_naming_the_patient() -> None:
    rows = rows_of(Split.TRAIN, Split.TEST, Split.TRAIN)
    rows[1] = replace(rows[1], split=Split.TEST)
    with pytest.raises(
        LabelTableError, match=r"1 patients are in two splits.*'0-0'.*'0-1'"
    ) as caught:
        assign_splits(rows, IngestConfig())
    assert "patient 0" not in str(caught.value)


def test_column_of_splits_with_holes_is_refused() -> None:
    with pytest.raises(LabelTableError, match="2 of 4 rows name no split"):
        assign_splits(rows_of(Split.TRAIN, None), IngestConfig())


def labelled(*findings: str) -> list[TableRow]:
    """Return one row per patient, with findings joined by a bar."""
    return [
        TableRow(
            file=f"{number}",
            image_id=f"{number}",
            patient_id=f"patient {number}",
            labels=dict.fromkeys(filter(None, names.split("|")), 1.0),
        )
        for number, names in enumerate(findings)
    ]


def positives(rows: tuple[TableRow, ...], finding: str) -> dict[Split | None, int]:
    return Counter(row.split for row in rows if row.labels.get(finding) == 1)


@pytest.mark.parametrize("seed", range(8))
def test_a_finding_of_three_patients_is_in_every_split(seed: int) -> None:
    rows = labelled(*["Hernia"] * 3, *["Mass"] * 40, *["Mass|Edema"] * 7, *[""] * 150)
    found = assign_splits(rows, IngestConfig(split_seed=seed))
    assert Counter(row.split for row in found) == {
        Split.TRAIN: 162,
        Split.VALIDATION: 18,
        Split.TEST: 20,
    }
    assert positives(found, "Hernia") == dict.fromkeys(Split, 1)
    assert positives(found, "Edema") == {Split.TRAIN: 5, Split.VALIDATION: 1, Split.TEST: 1}
    assert 3 <= positives(found, "Mass")[Split.TEST] <= 6


def test_a_finding_of_one_patient_is_trained_on() -> None:
    for seed in range(8):
        found = assign_splits(labelled("Hernia", *[""] * 9), IngestConfig(split_seed=seed))
        assert positives(found, "Hernia") == {Split.TRAIN: 1}


def test_a_stratified_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = labelled(*["Mass", "Edema|Mass", "", "Edema"] * 20)
    one = by_patient(assign_splits(rows, IngestConfig()))
    assert by_patient(assign_splits(rows[::-1], IngestConfig())) == one
