"""One module per pipeline: a Kubeflow component per stage. The only importer of kfp.

A component holds the step's signature and one call: what it does comes from the package in the
image. Kubeflow repeats a component's source in each of its nodes, and a run has room for 1 MiB.
"""

import importlib
import inspect
import linecache
import os
import re
from collections.abc import Callable
from typing import Any, List, NamedTuple  # noqa: UP035 - what a step's signature may name

from kfp import dsl

from chexradinet.config import Settings
from chexradinet.config.parameters import WORKER_IMAGE, flat

STEPS: dict[str, Callable[..., Any]] = {}
"""What each step does, by its module and name, such as `training.train`."""

_CALL = """    given = dict(locals())
    from chexradinet.steps import step
    return step("{place}")(**given)
"""


def step(name: str) -> Callable[..., Any]:
    """Return what a step does; its module is read first."""
    importlib.import_module(f"{__name__}.{name.partition('.')[0]}")
    return STEPS[name]


def worker(function: Callable[..., Any], settings: type[Settings] | None = None) -> Any:  # noqa: ANN401
    """Return the component of a step, on the project's own image.

    `install_kfp_package=False` because the image holds the kfp runtime: a step that installs
    packages when it starts cannot run in a locked-down cluster, and is never twice the same.

    Args:
        function: What the step does; its annotations say what it takes and returns.
        settings: Model whose parameters the step takes as `**given: object`; Kubeflow passes a
            step only what its source names, so they are named there.
    """
    name = function.__name__
    place = f"{function.__module__.rpartition('.')[2]}.{name}"
    STEPS[place] = function
    if os.environ.get("_KFP_RUNTIME") == "true":  # in the step's pod, where kfp compiles nothing
        return function
    known = [] if settings is None else [one for one in flat(settings).values() if not one.internal]
    declared = ", ".join(f"{one.name}: {one.kind.__name__}" for one in known)
    source = inspect.getsource(function)
    signature = source[source.index("def ") :].partition('    """')[0]
    signature = re.sub(r" *# .*", "", signature.replace("**given: object", declared, 1))
    signature = re.sub(r"\n *", "", signature)
    source = signature.rstrip() + "\n" + _CALL.format(place=place)
    file = f"<component {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"NamedTuple": NamedTuple, "List": List, "dsl": dsl}  # noqa: UP006
    exec(compile(source, file, "exec"), names)  # noqa: S102 - the function's own signature
    names[name].__doc__ = function.__doc__
    return dsl.component(names[name], base_image=WORKER_IMAGE, install_kfp_package=False)
