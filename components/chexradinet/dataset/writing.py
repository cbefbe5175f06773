"""Write a data set directory with bounded memory, one image at a time; and split it by patient.

Splits are official if a table has them, and made from a seed if it does not: stratified by finding,
the rarest first, so that a finding of few patients is in each split if it can be. Patients are
ordered by a hash of seed and id, so that a split does not depend on the order of the rows.

Source: Sechidis et al. 2011, doi 10.1007/978-3-642-23808-6_10 (iterative stratification).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from chexradinet.artifacts import sha256_of, write_document, write_table
from chexradinet.config import IngestConfig, canonical_json, require
from chexradinet.dataset import (
    DOCUMENT,
    DOUBTFUL,
    HEADERS,
    ID_COLUMNS,
    KIND,
    MANIFEST,
    PICTURES,
    REJECTED,
    SCHEMA,
    DatasetInfo,
    HeaderRow,
    ImageRecord,
    Pixels,
    Rejection,
    shard_name,
)
from chexradinet.dataset.labels import TableRow
from chexradinet.errors import ConfigError, LabelTableError
from chexradinet.records import Split

METHOD = "stratified by finding, 1"
"""Name of how splits are made that no table gives; recorded in each data set."""


class DatasetWriter:
    """Takes images and rejections one by one, until `finish` or `abandon`."""

    def __init__(
        self, directory: Path, info: DatasetInfo, shard_size: int, num_full_shards: int = 0
    ) -> None:
        """Write to a directory, after so many full shards that it already holds."""
        require(shard_size >= 1, "shard_size", shard_size, "at least 1")
        self.directory = directory
        self.info = info
        """What is known so far; complete after `finish`."""
        side = info.preprocessing.image_side
        self._shards = ShardWriter(directory, side, shard_size, num_full_shards)
        self._attached: list[str] = []
        self._splits: Sequence[Split] | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._rejections: list[Rejection] = []
        self._seen: set[str] = set()

    def add(self, record: ImageRecord, pixels: Pixels | None) -> None:
        """Append one image.

        Args:
            record: What is known of it; labels and boxes of other findings are left out.
            pixels: Model pixels, shape (H, W), uint8; None if a full shard already holds them.

        Raises:
            ConfigError: the pixels are not those of this data set's preprocessing.
            LabelTableError: the `image_id` was added before, or a label is not 1, 0 or NaN.
        """
        if record.image_id in self._seen:
            raise LabelTableError(
                f"image {record.image_id!r} appears twice; remove one of its rows"
            )
        labels = tuple(_label(record, finding) for finding in self.info.findings)
        if pixels is not None:
            self._shards.append(pixels)
        self._seen.add(record.image_id)
        boxes = [
            {"finding": item.finding, **asdict(item.box)}
            for item in record.boxes
            if item.finding in self.info.findings
        ]
        facts = [getattr(record, name) for name in ID_COLUMNS]
        geometry = canonical_json(record.geometry.as_dict())
        self._rows.append((*facts, *labels, canonical_json(boxes), geometry))

    def reject(self, rejection: Rejection) -> None:
        """Note a file that does not enter."""
        self._rejections.append(rejection)

    @property
    def num_full_shards(self) -> int:
        """Shards that are full and closed."""
        return self._shards.num_full

    def add_headers(self, image_ids: Sequence[str], rows: Sequence[HeaderRow]) -> None:
        """Write what is kept of DICOM headers, in the order of the images."""
        frame = pd.DataFrame(
            [{"image_id": name, **asdict(row)} for name, row in zip(image_ids, rows, strict=True)]
        )
        write_table(self.directory / HEADERS, frame, "dataset-headers", SCHEMA)
        self._attached.append(HEADERS)

    def add_doubtful(self, names: Sequence[tuple[str, str]], pictures: Sequence[Pixels]) -> None:
        """Write pictures of rejected X-rays, each with its file's name and the reason code."""
        frame = pd.DataFrame(names, columns=["source_uri", "reason"], dtype="object")
        write_table(self.directory / DOUBTFUL, frame, "dataset-doubtful", SCHEMA)
        np.save(self.directory / PICTURES, np.stack(pictures), allow_pickle=False)
        self._attached += [DOUBTFUL, PICTURES]

    def assign_splits(self, splits: Sequence[Split]) -> None:
        """Replace the split of every image, in the order they were added."""
        self._splits = splits

    def finish(self) -> DatasetInfo:
        """Write tables and document, and return what the document holds."""
        self._shards.close()
        manifest = self._manifest()
        rejected = pd.DataFrame(
            [(item.source_uri, item.reason.value, item.detail) for item in self._rejections],
            columns=["source_uri", "reason", "detail"],
            dtype="object",
        )
        write_table(self.directory / MANIFEST, manifest, "dataset-manifest", SCHEMA)
        write_table(self.directory / REJECTED, rejected, "dataset-rejected", SCHEMA)
        shards = [shard_name(number) for number in range(len(self._shards.sizes))]
        names = (MANIFEST, REJECTED, *self._attached, *shards)
        files = {name: sha256_of(self.directory / name) for name in names}
        self.info = replace(
            self.info,
            counts=count(manifest, self.info.findings, self._rejections),
            shard_sizes=tuple(self._shards.sizes),
            files=files,
        )
        content = {**self.info.as_document(), "digest": self.info.digest}
        write_document(self.directory / DOCUMENT, KIND, SCHEMA, content)
        return self.info

    def abandon(self) -> None:
        """Close what is open after an error."""
        self._shards.close()

    def _manifest(self) -> pd.DataFrame:
        frame = pd.DataFrame(self._rows, columns=list(self.info.columns), dtype="object")
        kinds = dict.fromkeys(self.info.findings, "float32") | {"age": "float64"}
        if self._splits is not None:
            frame["split"] = list(self._splits)
        for name in ("view", "split"):
            frame[name] = [str(value) for value in frame[name]]
        return frame.astype(kinds)


def _label(record: ImageRecord, finding: str) -> float:
    value = float(record.labels.get(finding, math.nan))
    if value not in (0.0, 1.0) and not math.isnan(value):
        raise LabelTableError(
            f"image {record.image_id!r} has {finding} = {value}; a label is 1, 0 or NaN (unknown)"
        )
    return value


def count(
    manifest: pd.DataFrame, findings: Sequence[str], rejections: Sequence[Rejection]
) -> dict[str, Any]:
    """Return the counts of a data set, as `DatasetInfo.counts` describes them."""
    parts = {split.value: manifest[manifest["split"] == split.value] for split in Split}
    reasons = Counter(rejection.reason.value for rejection in rejections)
    return {
        "images": len(manifest),
        "patients": int(manifest["patient_id"].nunique()),
        "splits": {name: len(part) for name, part in parts.items()},
        "patients_by_split": {
            name: int(part["patient_id"].nunique()) for name, part in parts.items()
        },
        "rejected": dict(sorted(reasons.items())),
        "positives": {
            finding: {name: int((part[finding] == 1).sum()) for name, part in parts.items()}
            for finding in findings
        },
    }


class ShardWriter:
    """Append images to numbered shards; holds one image in memory at a time.

    With `num_full` it continues after that many full shards that are already in the directory.
    """

    def __init__(
        self, directory: Path, image_side: int, shard_size: int, num_full: int = 0
    ) -> None:
        self._directory = directory
        self._side = image_side
        self._shard_size = shard_size
        self._stream: IO[bytes] | None = None
        self.sizes: list[int] = [shard_size] * num_full

    def append(self, pixels: Pixels) -> None:
        """Write one image of shape (H, W).

        Raises:
            ConfigError: the image is not uint8 or not of the data set's side.
        """
        if pixels.dtype != np.uint8 or pixels.shape != (self._side, self._side):
            raise ConfigError(
                f"image is {pixels.dtype} of shape {pixels.shape}; this data set holds uint8 of "
                f"shape {(self._side, self._side)}: call fit_to_model first"
            )
        if self._stream is None:
            self._stream = (self._directory / shard_name(len(self.sizes))).open("wb")
            self.sizes.append(0)
            self._write_header()
        self._stream.write(np.ascontiguousarray(pixels).data)
        self.sizes[-1] += 1
        if self.sizes[-1] == self._shard_size:
            self.close()

    @property
    def num_full(self) -> int:
        """Shards that are full and closed."""
        return len(self.sizes) - int(self._stream is not None)

    def close(self) -> None:
        """Put the number of images into the open shard's header and close it."""
        if self._stream is None:
            return
        self._stream.seek(0)
        self._write_header()
        self._stream.close()
        self._stream = None

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow in place: both headers are as long.
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": (self.sizes[-1], self._side, self._side),
        }
        if self._stream is not None:
            np.lib.format.write_array_header_1_0(self._stream, header)


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
