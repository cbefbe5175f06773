"""How object storage is talked to."""

from pydantic import Field

from chexradinet.config.base import Settings

_SMALLEST_PART_BYTES = 5 * 1024 * 1024


class StoreConfig(Settings):
    """How object storage is talked to."""

    retry_total_s: float = Field(default=120.0, ge=0)
    """Seconds after the first failure during which a request is repeated; 0 for one attempt."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection."""
    read_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds to wait for the next bytes of an answer."""
    part_bytes: int = Field(default=16 * 1024 * 1024, ge=_SMALLEST_PART_BYTES)
    """Files larger than this are uploaded in parts of this size: the memory an upload takes."""
