"""Ingest into object storage: made in a local folder, uploaded when complete.

The local folder's name follows from the address, so that a run that was killed before or during the
upload continues from what it left.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from chexradinet.config import IngestConfig
from chexradinet.dataset.dataset import DatasetInfo
from chexradinet.errors import ConfigError
from chexradinet.ingest.ingest import Progress, ingest
from chexradinet.ingest.summary import report_ingest
from chexradinet.ingest.targets import DATASET_FILES, require_prefix, require_report
from chexradinet.store import open_store, parse_uri, upload_directory

WORK_VARIABLE = "CHEXRADINET_WORK"
"""Environment variable with the folder that data sets are made in before they are uploaded."""


def ingest_to(
    source: str,
    out: str,
    config: IngestConfig,
    progress: Progress | None = None,
    *,
    labels: str = "",
    report: str = "",
) -> DatasetInfo:
    """Read a source and write its data set to a directory or a bucket.

    Args:
        source: As `ingest` takes it.
        out: Directory, or URI of a folder; an older data set there is replaced, its head document
            first removed and last written.
        config: As `ingest` takes it.
        progress: Called after each file.
        labels: As `ingest` takes it.
        report: Path of the ingest report to write; empty for none.

    Returns:
        What `dataset.json` holds.

    Raises:
        ConfigError: the address cannot be read, the local folder belongs to somebody else, or
            `out` or `report` hold something else.
        ChexRadiNetError: as `ingest`, or the store cannot be written; run again to continue.
    """
    location = parse_uri(out)
    if report:
        require_report(report)
    local, finished = Path(location.key), None
    if location.bucket is not None:
        work = _work_folder(out)
        local, finished = work / "dataset", work / "finished.json"
        require_prefix(out, source, labels, config)
    info = ingest(source, local, config, progress, labels, finished)
    if report:
        report_ingest(local, Path(report))
    if location.bucket is not None:
        upload_directory(local, out, config.store)
        _remove_older(out, info, config)
        shutil.rmtree(local.parent)
    return info


def _work_folder(out: str) -> Path:
    root = Path(os.environ.get(WORK_VARIABLE, "") or tempfile.gettempdir())
    folder = root / f"chexradinet-{os.getuid()}" / hashlib.sha256(out.encode()).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder, folder.parent):
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise ConfigError(
                f"{path} belongs to somebody else; remove it, or set {WORK_VARIABLE} to a folder "
                "of your own"
            )
    return folder


def _remove_older(out: str, info: DatasetInfo, config: IngestConfig) -> None:
    """Remove what a larger, older data set left at the address: shards beyond the last, tables."""
    store, prefix = open_store(out, config.store)
    for found in list(store.list(prefix)):
        name = found.key[len(prefix) :]
        if name not in info.files and DATASET_FILES.fullmatch(name):
            store.delete(found.key)
