"""Where the nightly run reads and writes."""

from dataclasses import dataclass

from chexradinet.config import require
from chexradinet.store import parse_uri


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the nightly run reads and writes; paths, `s3://` or `minio://` URIs."""

    inbox_uri: str
    """Folder that X-rays arrive in: DICOM, PNG or JPEG."""
    models_uri: str
    """Folder that models are published under."""
    results_uri: str
    """Folder of the results and the ledger; not within the inbox, nor around it."""

    def __post_init__(self) -> None:
        """Refuse an inbox in which results would arrive as X-rays.

        Raises:
            ConfigError: an address cannot be read, or one of inbox and results holds the other.
        """
        inbox, results = (_folder(uri) for uri in (self.inbox_uri, self.results_uri))
        apart = not (inbox.startswith(results) or results.startswith(inbox))
        require(apart, "results_uri", self.results_uri, "a folder beside the inbox, not in it")


def _folder(uri: str) -> str:
    location = parse_uri(uri)
    return f"{location.bucket or ''}:{location.key.rstrip('/')}/"
