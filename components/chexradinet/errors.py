"""Every deliberate error of the project.

A message says what was given, what was needed and what to do. It never holds patient data: files
are named by URI only if the URI is the user's own argument, images by their `image_id`.
"""


class ChexRadiNetError(Exception):
    """Base of all deliberate errors; the command line prints its message without a traceback."""


class ConfigError(ChexRadiNetError, ValueError):
    """A setting is outside what it may be."""


class SourceError(ChexRadiNetError):
    """The source to read X-rays from is missing, empty or unreadable as a whole."""


class LabelTableError(ChexRadiNetError):
    """A label table lacks a column, contradicts itself or holds a value that cannot be read."""


class UnknownFindingError(LabelTableError):
    """A finding's name is neither canonical nor a known spelling of one."""


class ArtifactError(ChexRadiNetError):
    """A stored artifact is incomplete, of another schema version, or its bytes have changed."""


class SchemaError(ArtifactError):
    """A stored artifact is of another kind or schema version than this release reads."""


class MismatchError(ChexRadiNetError):
    """Two artifacts do not belong together: other findings, preprocessing or data set."""


class RejectedImageError(ChexRadiNetError):
    """One X-ray does not enter; `ingest` and `score` note the reason and continue with the next."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        """A value of `records.RejectReason`."""
        self.detail = detail
        """What was wrong, without patient data and without the file's name."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class TooManyRejectsError(ChexRadiNetError):
    """More of the source was rejected than the run allows."""


class TrainingError(ChexRadiNetError):
    """Training cannot start or continue: no labelled image, a loss that is not finite."""


class Interrupted(ChexRadiNetError):
    """The run was asked to stop, and stopped; the message says where its state is kept."""


class EvaluationError(ChexRadiNetError, ValueError):
    """What is to be measured cannot be: shapes that do not belong together, scores not finite."""


class StoreError(ChexRadiNetError):
    """Object storage did not do what was asked."""


class StoreNotFoundError(StoreError):
    """No object, bucket or file has this URI."""


class StoreBucketError(StoreNotFoundError):
    """The bucket itself does not exist."""


class StoreConflictError(StoreError):
    """A conditional write or a resumed read found the object created, changed or gone meanwhile."""


class StoreAccessError(StoreError):
    """Credentials are missing, wrong or expired, or do not allow the operation."""


class StoreUnavailableError(StoreError):
    """The store could not be reached, also after retries."""


class StoreItemError(StoreError):
    """The archive answers, but fails on this one object, also after repeating."""


class StoreFullError(StoreError):
    """No space is left where it was to be written."""


class StoreRefusedError(StoreError):
    """The archive understood what was sent and does not take it."""


class StoreIntegrityError(StoreError):
    """What was read is not what was written: length or checksum differ."""


class WorkerError(ChexRadiNetError):
    """Processes to compute in cannot be started."""


class DicomResultError(ChexRadiNetError):
    """There can be no DICOM results about this X-ray: its header has no identifier to refer to."""
