"""Splits by patient: official if a table has them, made from a seed if it does not.

Splits that are made are stratified by finding, the rarest first, so that a finding of few patients
is in each split if it can be. Patients are ordered by a hash of seed and id, so that a split does
not depend on the order of the rows.

Source: Sechidis et al. 2011, doi 10.1007/978-3-642-23808-6_10 (iterative stratification).
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from chexradinet.config import IngestConfig
from chexradinet.dataset.labels.table import TableRow
from chexradinet.errors import LabelTableError
from chexradinet.records import Split

METHOD = "stratified by finding, 1"
"""Name of how splits are made that no table gives; recorded in each data set."""


def assign_splits(rows: Sequence[TableRow], config: IngestConfig) -> tuple[TableRow, ...]:
    """Return the rows, each with a split.

    Args:
        rows: Every row names a split, or none does. If no row names `validation`, a part of the
            training patients becomes it; if none names a split, test patients are taken first.
        config: Fractions of patients, rounded, at least one patient if the fraction is above 0
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
    patients = _findings_of(rows)
    if None in given:
        test = take_patients(patients, config.test_fraction, config.split_seed)
        rest = {name: found for name, found in patients.items() if name not in test}
        validation = take_patients(rest, config.validation_fraction, config.split_seed)
        chosen = dict.fromkeys(test, Split.TEST) | dict.fromkeys(validation, Split.VALIDATION)
    elif Split.VALIDATION not in given:
        training = _findings_of([row for row in rows if row.split is Split.TRAIN])
        taken = take_patients(training, config.validation_fraction, config.split_seed)
        chosen = dict.fromkeys(taken, Split.VALIDATION)
    else:
        chosen = {}
    return tuple(
        replace(row, split=chosen.get(row.patient_id, row.split or Split.TRAIN)) for row in rows
    )


def _findings_of(rows: Sequence[TableRow]) -> dict[str, frozenset[str]]:
    """Return the findings of each patient."""
    found: dict[str, frozenset[str]] = {}
    shared: dict[frozenset[str], frozenset[str]] = {}
    for row in rows:
        positive = frozenset(name for name, value in row.labels.items() if value == 1)
        every = found.get(row.patient_id, frozenset()) | positive
        found[row.patient_id] = shared.setdefault(every, every)
    return found


def take_patients(patients: Mapping[str, frozenset[str]], fraction: float, seed: int) -> set[str]:
    """Return a part of the patients: for one seed the same part, in whatever order they come.

    Args:
        patients: Findings of each patient.
        fraction: Part to take, of the patients and of those with each finding. Two patients with a
            finding are the fewest of whom one is taken.
        seed: Seed of the order.
    """

    def place(patient: str) -> str:
        return hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest()

    ordered = sorted(patients, key=place)
    wanted = round(len(ordered) * fraction)
    if fraction > 0 and len(ordered) > 1:
        wanted = max(wanted, 1)
    part = _Part(wanted, fraction, Counter(name for found in patients.values() for name in found))
    waiting = dict.fromkeys(ordered)
    for finding in sorted(part.times, key=lambda name: (part.times[name], name)):
        for patient in [name for name in waiting if finding in patients[name]]:
            del waiting[patient]
            part.place(patient, finding, patients[patient])
    left = [*waiting, *(name for name in ordered if name not in waiting)]
    return part.taken | set([name for name in left if name not in part.taken][: part.missing])


class _Part:
    """Patients taken so far, and how many with each finding still are to be."""

    def __init__(self, wanted: int, fraction: float, times: Counter[str]) -> None:
        self.times = times
        self.taken: set[str] = set()
        self._wanted = wanted
        few = {name for name, number in times.items() if number > 1 and fraction > 0}
        self._to_take = {
            name: max(number * fraction, float(name in few)) for name, number in times.items()
        }
        self._to_leave = {name: times[name] - self._to_take[name] for name in times}

    @property
    def missing(self) -> int:
        """Number of patients still to be taken."""
        return self._wanted - len(self.taken)

    def place(self, patient: str, finding: str, findings: frozenset[str]) -> None:
        """Take or leave a patient, whichever side needs the finding more."""
        takes = self.missing > 0 and self._to_take[finding] >= self._to_leave[finding]
        side = self._to_take if takes else self._to_leave
        for name in findings:
            side[name] -= 1
        if takes:
            self.taken.add(patient)


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
