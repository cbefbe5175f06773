"""How object storage is talked to."""

from dataclasses import dataclass

from chexradinet.config.checks import require


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """How object storage is talked to."""

    retry_total_s: float = 120.0
    """Seconds after the first failure during which a request is repeated; 0 for one attempt."""
    connect_timeout_s: float = 10.0
    """Seconds to wait for a connection."""
    read_timeout_s: float = 60.0
    """Seconds to wait for the next bytes of an answer."""
    part_bytes: int = 16 * 1024 * 1024
    """Files larger than this are uploaded in parts of this size: the memory an upload takes."""

    def __post_init__(self) -> None:
        """Check every number."""
        require(self.retry_total_s >= 0, "retry_total_s", self.retry_total_s, "at least 0")
        for name in ("connect_timeout_s", "read_timeout_s"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        smallest = 5 * 1024 * 1024
        require(self.part_bytes >= smallest, "part_bytes", self.part_bytes, "at least 5 MiB")
