"""One module per stage: the Kubeflow component around it. The only importer of kfp.

`install_kfp_package=False` because the image holds the kfp runtime: a step that installs packages
when it starts cannot run in a locked-down cluster, and is never twice the same.
"""

import functools
import inspect
import linecache
from collections.abc import Callable
from typing import Any, List, NamedTuple  # noqa: UP035 - what a step's source may name

from kfp import dsl

from chexradinet.config import Settings
from chexradinet.config.parameters import WORKER_IMAGE, flat

worker = functools.partial(dsl.component, base_image=WORKER_IMAGE, install_kfp_package=False)
"""Decorator of every step: a lightweight component on the project's own image."""


def worker_given(model: type[Settings]) -> Callable[[Callable[..., Any]], Any]:
    """Return `worker` for a step that takes all settings of a pipeline as `**given: object`.

    Kubeflow passes a step what its source names, so the source gets their names here.
    """
    known = [one for one in flat(model).values() if not one.internal]
    declared = ", ".join(f"{one.name}: {one.kind.__name__}" for one in known)
    collected = ", ".join(f"{one.name}={one.name}" for one in known)

    def decorate(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - kfp's component
        source = inspect.getsource(function)
        source = source[source.index("def ") :].replace("**given: object", declared, 1)
        head, quotes, rest = source.partition('"""\n')
        source = f"{head}{quotes}    given = dict({collected})\n{rest}"
        file = f"<{function.__name__} with its settings>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        names: dict[str, Any] = {"NamedTuple": NamedTuple, "List": List}  # noqa: UP006
        exec(compile(source, file, "exec"), names)  # noqa: S102 - our own source
        return worker(names[function.__name__])

    return decorate
