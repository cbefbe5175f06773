"""Splits by patient: official where a table has them, made from a seed where it does not.

Patients are ordered by a hash of seed and id, and the first of them are taken. So a split does not
depend on the order of the rows, and a patient who joins later moves few others.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels.table import TableRow
from chexradinet.errors import LabelTableError
from chexradinet.records import Split


def assign_splits(rows: Sequence[TableRow], config: IngestConfig) -> tuple[TableRow, ...]:
    """Return the rows, each with a split.

    Args:
        rows: Every row names a split, or none does. Where no row names `validation`, a part of the
            training patients becomes it; where none names a split, test patients are taken first.
        config: Fractions of patients, rounded, at least one patient where the fraction is above 0
            and two are there; and the seed.

    Raises:
        LabelTableError: a patient is in two splits, or only some rows name one.
    """
    given = {row.split for row in rows}
    if None in given and len(given) > 1:
        count = sum(row.split is None for row in rows)
        raise LabelTableError(
            f"{count} of {len(rows)} rows name no split, the others do; fill the column, or "
            "empty it"
        )
    check_patients(rows)
    if None in given:
        chosen = _without_any(rows, config)
    elif Split.VALIDATION not in given:
        training = {row.patient_id for row in rows if row.split is Split.TRAIN}
        taken = take_patients(training, config.validation_fraction, config.split_seed)
        chosen = dict.fromkeys(taken, Split.VALIDATION)
    else:
        chosen = {}
    return tuple(
        replace(row, split=chosen.get(row.patient_id, row.split or Split.TRAIN)) for row in rows
    )


def _without_any(rows: Sequence[TableRow], config: IngestConfig) -> Mapping[str, Split]:
    patients = {row.patient_id for row in rows}
    test = take_patients(patients, config.test_fraction, config.split_seed)
    rest = patients - test
    validation = take_patients(rest, config.validation_fraction, config.split_seed)
    return dict.fromkeys(test, Split.TEST) | dict.fromkeys(validation, Split.VALIDATION)


def take_patients(patients: Iterable[str], fraction: float, seed: int) -> set[str]:
    """Return a part of the patients: for one seed the same part, in whatever order they come."""

    def place(patient: str) -> str:
        return hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest()

    ordered = sorted(set(patients), key=place)
    wanted = round(len(ordered) * fraction)
    if fraction > 0 and len(ordered) > 1:
        wanted = max(wanted, 1)
    return set(ordered[:wanted])


def check_patients(rows: Sequence[TableRow]) -> None:
    """Refuse rows that put one patient into two splits.

    Raises:
        LabelTableError: it says how many patients, and names images, not the patient.
    """
    first: dict[str, TableRow] = {}
    torn: dict[str, tuple[TableRow, TableRow]] = {}
    for row in rows:
        earlier = first.setdefault(row.patient_id, row)
        if earlier.split is not row.split:
            torn.setdefault(row.patient_id, (earlier, row))
    if torn:
        one, other = next(iter(torn.values()))
        raise LabelTableError(
            f"{len(torn)} patients are in two splits: image {one.image_id!r} is in "
            f"{one.split or 'none'}, {other.image_id!r} of the same patient in "
            f"{other.split or 'none'}; give each patient one split"
        )
