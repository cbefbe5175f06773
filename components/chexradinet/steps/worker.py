"""The decorator of every step: a lightweight component on the project's own image.

`install_kfp_package=False` because the image holds the kfp runtime: a step that installs packages
when it starts cannot run in a locked-down cluster, and is never twice the same.
"""

import functools
import os

from kfp import dsl

from chexradinet import __version__

WORKER_IMAGE = os.environ.get("CHEXRADINET_IMAGE", f"chexradinet-worker-python:{__version__}")
"""Image that steps are compiled for; the `worker_image` parameter of a run replaces it."""

worker = functools.partial(dsl.component, base_image=WORKER_IMAGE, install_kfp_package=False)
