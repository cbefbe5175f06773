"""What an overlay still needs from a site: `chexradinet check-manifests FOLDER`.

The shipped overlay names addresses and hosts that are reserved for documents (RFC 5737, RFC 2606),
so that nothing can be reached by accident, and digests of zeros. Each is found by its value.
"""

import re
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDERS = {
    r"\b192\.0\.2\.\d+(/\d+)?": "the address, as its comment says",
    r"\b([\w-]+\.)+example\.org(:\d+)?": "the host",
    r"\bsite-vault\b": "the name of your ClusterSecretStore",
    r"sha256:0{64}": "the image's digest, with `kustomize edit set image`",
}
"""Pattern of each placeholder, and what belongs in its place."""

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
