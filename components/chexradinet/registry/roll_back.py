"""Back to an earlier champion: `python -m chexradinet.registry.roll_back MODELS_URI DIGEST`."""

import logging
import sys

from chexradinet.errors import ChexRadiNetError
from chexradinet.registry.champion import roll_back

_LOG = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Roll back; return 0, or 1 with a message."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if len(arguments) != 2:
        _LOG.error("usage: python -m chexradinet.registry.roll_back MODELS_URI DIGEST")
        return 2
    try:
        roll_back(*arguments)
    except ChexRadiNetError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
