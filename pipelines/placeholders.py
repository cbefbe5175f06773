"""What an overlay still needs from a site: `python -m pipelines.placeholders FOLDER`.

The shipped overlay names addresses and hosts that are reserved for documents (RFC 5737, RFC 2606),
so that nothing can be reached by accident, and digests of zeros. Each is found by its value.
"""

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDERS = {
    r"\b192\.0\.2\.\d+(/\d+)?": "the address, as its comment says",
    r"\b([\w-]+\.)+example\.org(:\d+)?": "the host",
    r"\bsite-vault\b": "the name of your ClusterSecretStore",
    r"sha256:0{64}": "the image's digest, with `kustomize edit set image`",
}
"""Pattern of each placeholder, and what belongs in its place."""

_LOG = logging.getLogger(__name__)
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A value that has to be filled in."""

    file: Path
    line: int
    value: str
    needed: str
    """What belongs in its place."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.value}: fill in {self.needed}"


def unfilled(folder: Path) -> list[Placeholder]:
    """Return the placeholders in the YAML files below a folder, comments left out."""
    return [
        Placeholder(path, number, match[0], needed)
        for path in sorted(folder.rglob("*.yaml"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for pattern, needed in PLACEHOLDERS.items()
        for match in re.finditer(pattern, _COMMENT.sub("", line))
    ]


def main(arguments: list[str]) -> int:
    """List what is unfilled; return 0 if nothing is, 1 otherwise, 2 without a folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        _LOG.error("usage: python -m pipelines.placeholders manifests/overlays/production")
        return 2
    found = unfilled(Path(arguments[0]))
    for placeholder in found:
        _LOG.error("%s", placeholder)
    _LOG.info("%d placeholders are unfilled", len(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
