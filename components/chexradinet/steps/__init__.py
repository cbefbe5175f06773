"""One module per stage: the Kubeflow component around it. The only importer of kfp.

`install_kfp_package=False` because the image holds the kfp runtime: a step that installs packages
when it starts cannot run in a locked-down cluster, and is never twice the same.
"""

import functools

from kfp import dsl

from chexradinet.config.parameters import WORKER_IMAGE

worker = functools.partial(dsl.component, base_image=WORKER_IMAGE, install_kfp_package=False)
"""Decorator of every step: a lightweight component on the project's own image."""
