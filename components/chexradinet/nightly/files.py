"""Files of a night's scores, written shard by shard so that memory does not grow with the night."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chexradinet.nightly.ledger import Ledger, Plan
from chexradinet.nightly.merge import Merged, shards_of
from chexradinet.nightly.tables import REJECTED, SCHEMA, SCORES, TIMINGS

MAX_DRIFT_IMAGES = 2048
"""Most X-rays of a night that are compared with the reference."""


def night_key(ledger: Ledger, plan: Plan, name: str) -> str:
    """Return the key of a file of a night's results."""
    return ledger.key("scores", f"date={plan.date}", name)


def write_scores(
    ledger: Ledger, plan: Plan, merged: Merged, wanted: frozenset[str], folder: Path
) -> tuple[list[Path], dict[str, npt.NDArray[np.float32]], dict[str, bytes]]:
    """Write scores and rejected objects as files in a folder.

    Args:
        ledger: Of the results.
        plan: All of its shards are scored.
        merged: What became of its X-rays.
        wanted: Image keys whose pictures are wanted.
        folder: Where the files go.

    Returns:
        The files; embeddings by object key, of at most `MAX_DRIFT_IMAGES` X-rays; the pictures by
        image key.
    """
    number = f"{plan.number:06d}"
    names = (f"part-{number}.parquet", f"part-{number}.csv")
    sampled = _sampled(merged)
    embeddings: dict[str, npt.NDArray[np.float32]] = {}
    pictures: dict[str, bytes] = {}
    with (
        _parquet(folder / names[0], SCORES, "nightly-scores") as parquet,
        _csv(folder / names[1], SCORES.names) as rows,
    ):
        for result in shards_of(ledger, plan):
            scores = _without(result.scores, merged)
            parquet.write_table(scores)
            rows.writerows(_lines(scores))
            pictures |= {key: png for key, png in result.pictures.items() if key in wanted}
            for image in result.images.select(["object_key", "embedding"]).to_pylist():
                if image["object_key"] in sampled:
                    embeddings[image["object_key"]] = np.asarray(image["embedding"], np.float32)
    rejected = folder / f"rejected-{number}.csv"
    with _csv(rejected, REJECTED.names) as rows:
        rows.writerows([row[name] for name in REJECTED.names] for row in merged.excluded)
    return [*(folder / name for name in names), rejected], embeddings, pictures


def digest_without_timings(scores: Path) -> str:
    """Return the SHA-256 of scores as CSV without their timings: equal for equal nights."""
    digest = hashlib.sha256()
    with scores.open("rb") as lines:
        for line in lines:
            before, *cut = line.rsplit(b",", len(TIMINGS))
            # A line break within a cell leaves lines too short to end in timings.
            digest.update(before + b"\n" if len(cut) == len(TIMINGS) else line)
    return digest.hexdigest()


def put_files(ledger: Ledger, plan: Plan, files: Sequence[Path]) -> dict[str, str]:
    """Put files into the night's folder; return the SHA-256 of each by name."""
    digests = {}
    for path in files:
        digests[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        ledger.store.put_file(night_key(ledger, plan, path.name), path)
    return digests


def _sampled(merged: Merged) -> frozenset[str]:
    # Image keys are hashes: the smallest are a random choice, and always the same one.
    chosen = sorted(merged.images, key=lambda image: image.image_key)[:MAX_DRIFT_IMAGES]
    return frozenset(image.object_key for image in chosen)


def _without(scores: pa.Table, merged: Merged) -> pa.Table:
    if not merged.duplicates:
        return scores
    duplicate = pc.is_in(
        scores.column("object_key"), pa.array(sorted(merged.duplicates), pa.string())
    )
    return scores.filter(pc.invert(duplicate))


@contextmanager
def _parquet(path: Path, schema: pa.Schema, kind: str) -> Iterator[pq.ParquetWriter]:
    head = json.dumps({"kind": kind, "provenance": {}, "schema": SCHEMA})
    described = schema.with_metadata({"chexradinet": head})
    with pq.ParquetWriter(path, described, compression="zstd") as writer:
        yield writer


@contextmanager
def _csv(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        yield writer


def _lines(table: pa.Table) -> Iterator[list[Any]]:
    """Yield the rows of a table as CSV has them: nothing for null, `true` and `false`."""
    for batch in table.to_batches(max_chunksize=1024):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield [str(cell).lower() if isinstance(cell, bool) else cell for cell in row]
