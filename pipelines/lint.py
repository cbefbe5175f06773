"""Checks on a compiled pipeline for what kfp accepts and then runs wrongly, or not at all.

Each rule stands for a fault of kfp 2.17's runners or backend that ends in a silent wrong result or
a late failure. A document is the first YAML document of a compiled pipeline (its `PipelineSpec`),
a platform the second (its `PlatformSpec`).
"""

from collections.abc import Callable, Iterator

from pipelines.documents import Document, dags, tasks
from pipelines.lint_artifacts import artifacts_used_twice
from pipelines.lint_settings import (
    attempts_that_a_deadline_ends,
    numbers_as_settings,
    settings_of_nobody,
    settings_out_of_reach,
)
from pipelines.lint_size import runs_too_large

ALWAYS_FRESH = frozenset(
    {"ingest", "publish", "plan", "score", "collect", "upload", "report-outcome"}
)
"""Steps whose result depends on more than their inputs, so that a cached one would be stale."""


def _parameters(task: Document) -> dict[str, Document]:
    parameters: dict[str, Document] = task.get("inputs", {}).get("parameters", {})
    return parameters


def _output_key(value: Document) -> str | None:
    source = value.get("taskOutputParameter")
    return None if source is None else str(source["outputParameterKey"])


def conditions_on_named_outputs(document: Document) -> Iterator[str]:
    """A condition beside the task whose named output it reads is skipped without a word."""
    for dag, name, task in tasks(document):
        if "condition" not in task.get("triggerPolicy", {}):
            continue
        for value in _parameters(task).values():
            if _output_key(value) not in (None, "Output"):
                yield f"{dag}/{name}: condition on the named output {_output_key(value)!r}"


def loops_fed_by_tasks(document: Document) -> Iterator[str]:
    """A loop body's input from a task beside the loop is replaced by the loop's item."""
    for dag, name, task in tasks(document):
        iterator = task.get("parameterIterator") or {}
        if not iterator:
            continue
        items = iterator.get("items", {}).get("inputParameter")
        for key, value in _parameters(task).items():
            output = _output_key(value)
            if output is not None and not (key == items and output == "Output"):
                yield f"{dag}/{name}: loop input {key!r} comes from a task beside the loop"


def loops_not_alone(document: Document) -> Iterator[str]:
    """A loop is safe if all it needs is an input of the sub-pipeline that holds it."""
    for dag_name, dag in dags(document):
        loops = [t for t in dag["dag"]["tasks"].values() if "parameterIterator" in t]
        if loops and (dag_name == "root" or len(loops) > 1):
            yield f"{dag_name}: {len(loops)} ParallelFor; give each a sub-pipeline of its own"


def loops_over_artifacts(document: Document) -> Iterator[str]:
    """No runner implements a loop over artifacts."""
    for dag, name, task in tasks(document):
        if "artifactIterator" in task:
            yield f"{dag}/{name}: loop over artifacts"


def loops_over_records(document: Document) -> Iterator[str]:
    """Constant dictionaries as loop items lose the types of their values."""
    for dag, name, task in tasks(document):
        raw = (task.get("parameterIterator") or {}).get("items", {}).get("raw", "")
        if "{" in raw:
            yield f"{dag}/{name}: loop over records; loop over integers instead"


def empty_loops(document: Document) -> Iterator[str]:
    """A loop over nothing fails when its results are collected."""
    for dag, name, task in tasks(document):
        if (task.get("parameterIterator") or {}).get("items", {}).get("raw", "").strip() == "[]":
            yield f"{dag}/{name}: loop over an empty list"


def one_of_artifacts(document: Document) -> Iterator[str]:
    """OneOf over artifacts does not run locally, and not on backends before 2.17."""
    for dag_name, dag in dags(document):
        outputs = dag["dag"].get("outputs", {}).get("artifacts", {})
        for key, value in outputs.items():
            if len(value.get("artifactSelectors", [])) > 1:
                yield f"{dag_name}: output {key!r} is one of several artifacts"


def optional_parameters_without_default(document: Document) -> Iterator[str]:
    """A parameter of type Optional that is left out arrives as no value and fails."""
    for name, component in [("root", document["root"]), *document.get("components", {}).items()]:
        for key, value in component.get("inputDefinitions", {}).get("parameters", {}).items():
            filled_in = value.get("parameterType") == "TASK_FINAL_STATUS"  # by the runner
            if value.get("isOptional") and "defaultValue" not in value and not filled_in:
                yield f"{name}: parameter {key!r} is optional without a default; use a sentinel"


def omitted_artifacts_of_sub_pipelines(document: Document) -> Iterator[str]:
    """A sub-pipeline whose optional artifact is left out does not start locally."""
    components = document.get("components", {})
    for dag, name, task in tasks(document):
        called = components.get(task["componentRef"]["name"], {})
        if "dag" not in called:
            continue
        wanted = set(called.get("inputDefinitions", {}).get("artifacts", {}))
        missing = wanted - set(task.get("inputs", {}).get("artifacts", {}))
        if missing:
            yield f"{dag}/{name}: sub-pipeline called without {sorted(missing)}"


def loops_in_exit_handlers(document: Document) -> Iterator[str]:
    """The backend fails on a loop directly inside an exit handler."""
    for dag_name, dag in dags(document):
        if not dag_name.startswith("comp-exit-handler"):
            continue
        for name, task in dag["dag"]["tasks"].items():
            if "parameterIterator" in task:
                yield f"{dag_name}/{name}: loop inside an exit handler; put it in a sub-pipeline"


def renamed_loop_sources(document: Document) -> Iterator[str]:
    """A display name on the task that feeds a loop broke the loop on older backends."""
    for dag_name, dag in dags(document):
        beside = dag["dag"]["tasks"]
        for task in beside.values():
            if "parameterIterator" not in task:
                continue
            for value in _parameters(task).values():
                source = value.get("taskOutputParameter", {}).get("producerTask")
                shown = beside.get(source, {}).get("taskInfo", {}).get("name", source)
                if source is not None and shown != source:
                    yield f"{dag_name}/{source}: feeds a loop and has a display name"


def packages_installed_at_start(document: Document) -> Iterator[str]:
    """A step that installs packages when it starts needs a network and is never twice the same."""
    for name, executor in document.get("deploymentSpec", {}).get("executors", {}).items():
        if "pip install" in " ".join(executor.get("container", {}).get("command", [])):
            yield f"{name}: installs packages when it starts"


def cached_steps_that_must_run(document: Document) -> Iterator[str]:
    """What reads the outside world must not be served from the cache."""
    for dag, name, task in tasks(document):
        step = task["componentRef"]["name"].removeprefix("comp-")
        if step in ALWAYS_FRESH and task.get("cachingOptions", {}).get("enableCache"):
            yield f"{dag}/{name}: may be served from the cache"


def inputs_that_nobody_passes(document: Document) -> Iterator[str]:
    """Resource settings in a loop name inputs that the loop does not hand on; the driver fails."""
    for dag_name, dag in dags(document):
        definitions = dag.get("inputDefinitions", {})
        known = set(definitions.get("parameters", {})) | set(definitions.get("artifacts", {}))
        for name, task in dag["dag"]["tasks"].items():
            inputs = task.get("inputs", {})
            values = [*inputs.get("parameters", {}).values(), *inputs.get("artifacts", {}).values()]
            for value in values:
                wanted = value.get("componentInputParameter", value.get("componentInputArtifact"))
                if wanted is not None and wanted not in known:
                    yield f"{dag_name}/{name}: reads {wanted!r}, which {dag_name} is not given"


RULES: tuple[Callable[[Document], Iterator[str]], ...] = (
    conditions_on_named_outputs,
    loops_fed_by_tasks,
    loops_not_alone,
    loops_over_artifacts,
    loops_over_records,
    empty_loops,
    one_of_artifacts,
    optional_parameters_without_default,
    omitted_artifacts_of_sub_pipelines,
    loops_in_exit_handlers,
    renamed_loop_sources,
    packages_installed_at_start,
    cached_steps_that_must_run,
    inputs_that_nobody_passes,
    numbers_as_settings,
    artifacts_used_twice,
)
"""Every rule on the specification; each yields one line a violation."""

PLATFORM_RULES: tuple[Callable[[Document, Document], Iterator[str]], ...] = (
    settings_out_of_reach,
    settings_of_nobody,
    attempts_that_a_deadline_ends,
    runs_too_large,
)
"""Every rule on the specification and its platform document together."""


def lint(document: Document, platform: Document | None = None) -> list[str]:
    """Return every violation in a compiled pipeline, as `rule: place: what`."""
    violations = [f"{rule.__name__}: {found}" for rule in RULES for found in rule(document)]
    for rule in PLATFORM_RULES:
        violations += [f"{rule.__name__}: {found}" for found in rule(document, platform or {})]
    return violations
