"""The bucket Job: `python -m chexradinet.store.buckets FOLDER`."""

import logging
import sys
from pathlib import Path

from chexradinet.errors import ChexRadiNetError
from chexradinet.store.administration import set_up_buckets

_LOG = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Set up the store from a folder; return 0, or 1 with a message."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if len(arguments) != 1:
        _LOG.error("usage: python -m chexradinet.store.buckets FOLDER")
        return 2
    try:
        set_up_buckets(Path(arguments[0]))
    except ChexRadiNetError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
