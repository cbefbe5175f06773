"""Acceptance of an installation: a small training and two nights, from generated X-rays to reports.

All it writes lies under prefixes of its own, `acceptance-…`, and is removed at the end, so that an
installation in use keeps its champion, its inbox and its results.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from chexradinet.errors import ChexRadiNetError
from pipelines.acceptance_cluster import (
    CLEAN,
    FIRST_EPOCH,
    NIGHT_XRAYS,
    NIGHTLY_SETTINGS,
    PREPARE,
    RESUMED,
    TRAINING_SETTINGS,
    Installation,
    night_results,
    training_results,
)
from pipelines.api import TIMEOUT_S, Api, explained
from pipelines.check_cluster import Site, State, check_cluster
from pipelines.cluster import kubectl
from pipelines.follow import follow
from pipelines.outputs import require_web_interface
from pipelines.parameters import parse_settings
from pipelines.resources import RUN_ACCOUNT
from pipelines.schedule import Schedule, recurring_run_of
from pipelines.store_job import bucket_job_template, run_store_job
from pipelines.submit import (
    DEFAULT_EXPERIMENT,
    Submission,
    ensure_experiment,
    find_experiment,
    start,
)
from pipelines.upload import find_pipeline, publish, versions

_QUIET = Console(quiet=True)
_EVERY_MINUTE = "0 * * * * *"


@dataclass(frozen=True, slots=True)
class Row:
    """One step of the acceptance."""

    name: str
    state: State
    seconds: float
    detail: str


@dataclass
class Acceptance:
    """A run of all steps; a step that fails ends it, and what was made is removed."""

    site: Site
    training: Submission
    nightly: Submission
    console: Console
    tag: str = field(default_factory=lambda: f"acceptance-{int(time.time())}")
    keeps: bool = False
    """Whether all that was made stays, for somebody to look at."""
    rows: list[Row] = field(default_factory=list)
    made: list[Callable[[], object]] = field(default_factory=list)
    """What removes again what the steps made; the last one goes first."""
    uris: list[str] = field(default_factory=list)
    """Folders in the store that were written to."""
    template: dict[str, Any] = field(default_factory=dict)
    """Pod template of the bucket Job, which may be gone before the end."""

    @property
    def api(self) -> Api:
        """Server under test."""
        return self.site.api

    @property
    def world(self) -> Installation:
        """Pods, runs and objects of the installation."""
        return Installation(self.site.api, self.site.namespace)

    def run(self) -> bool:
        """Do everything; return whether all of it held."""
        try:
            with suppress(ChexRadiNetError):  # its row says so
                self._check()
                self._prepare()
                versions = self._publish()
                self._read(self._train(versions[0]))
                self._night_by_cron_job()
                self._night_by_schedule(versions[1])
        finally:
            with suppress(ChexRadiNetError):
                self._clean()
            self._show()
        return all(row.state == State.OK for row in self.rows)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is appended to the list is its detail."""
        detail: list[str] = []
        started = time.monotonic()
        self.console.print(f"{name} …", highlight=False)
        state = State.FAILED
        try:
            yield detail
            state = State.OK
        except ChexRadiNetError as error:
            detail.append(str(error))
            raise
        finally:
            seconds = time.monotonic() - started
            self.rows.append(Row(name, state, seconds, "; ".join(detail)))
            self.console.print(f"  {state.value} after {seconds:.0f} s", highlight=False)

    def _check(self) -> None:
        with self.step("installation") as detail:
            findings = check_cluster(self.site)
            bad = [f"{one.subject}: {one.detail}" for one in findings if one.state != State.OK]
            detail += bad
            if any(one.state == State.FAILED for one in findings):
                raise ChexRadiNetError("see `chexradinet check-cluster`")
            require_web_interface(self.api)
            self.template = bucket_job_template()

    def _prepare(self) -> None:
        buckets = ("training", "inbox", "models", "results")
        self.uris += [f"s3://chexradinet-{bucket}/{self.tag}" for bucket in buckets]
        self.made.append(lambda: self._in_store("clean", CLEAN.format(uris=self.uris)))
        with self.step("upload phantoms"):
            self._in_store("prepare", PREPARE.format(tag=self.tag, night_xrays=NIGHT_XRAYS))

    def _in_store(self, name: str, script: str) -> None:
        run_store_job(self.template, f"{self.tag}-{name}", script)

    def _publish(self) -> tuple[Any, Any]:
        with self.step("publish both pipelines") as detail:
            found = [self._published(one) for one in (self.training, self.nightly)]
            detail.append(", ".join(str(one.display_name or one.name) for one in found))
        return found[0], found[1]

    def _published(self, one: Submission) -> Any:  # noqa: ANN401 - the generated models are untyped
        """Publish a pipeline; a version or pipeline that was not there before is removed later."""
        service, known = self.api.pipelines, find_pipeline(self.api, one.pipeline)
        earlier = {each.pipeline_version_id for each in versions(self.api, known)} if known else ()
        version = publish(self.api, one, known, "", _QUIET)
        key = str(version.pipeline_id)
        if not known:
            remove = partial(service.pipeline_service_delete_pipeline, key, cascade=True)
            self._later("deleting the pipeline", remove)
        elif version.pipeline_version_id not in earlier:
            remove = partial(
                service.pipeline_service_delete_pipeline_version, key, version.pipeline_version_id
            )
            self._later("deleting the version", remove)
        return version

    def _later(self, doing: str, remove: Callable[..., object]) -> None:
        """Have the API server remove something at the end."""

        def call() -> None:
            with explained(self.api.endpoint, doing):
                remove(_request_timeout=TIMEOUT_S)

        self.made.append(call)

    def _keep_track(self, run_id: str, pipeline: str) -> str:
        """Have a run and its artifacts removed at the end; return the run."""
        self.uris.append(f"s3://chexradinet-artifacts/kfp/{pipeline}/{run_id}")
        remove = partial(self.api.runs.run_service_delete_run, run_id)
        self._later(f"deleting the run {run_id}", remove)
        return run_id

    def _train(self, version: Any) -> str:  # noqa: ANN401
        words = (
            f"source=s3://chexradinet-training/{self.tag}",
            f"models_uri=s3://chexradinet-models/{self.tag}",
            *TRAINING_SETTINGS,
            f"seed={self.tag.rpartition('-')[2]}",  # nothing is kept of such a training
        )
        given = replace(self.training, settings=parse_settings(self.training.document, words))
        with self.step("training: two rounds, two shards, both arms") as detail:
            run_id = self._started(given, version)
            detail.append(run_id)
            first = self.world.running_pod(run_id, "train")
            kubectl("delete", "pod", first, "--namespace", self.site.namespace, "--wait=false")
            detail.append(f"deleted {first} while it trained")
            follow(self.api, run_id, _QUIET)
            later = {name for name, _ in self.world.pods(run_id, "train")} - {first}
            if not later:
                raise ChexRadiNetError("the deleted pod was not started again")
            logs = [self.world.log(name) for name in later]
            if any(FIRST_EPOCH in log for log in logs) or not any(RESUMED in log for log in logs):
                raise ChexRadiNetError(
                    "training started over instead of continuing where it was interrupted"
                )
            detail.append("it continued after its first epoch")
        return run_id

    def _night_by_cron_job(self) -> None:
        place = ("--namespace", self.site.namespace, "--ignore-not-found", "--wait=false")
        with self.step("night by the CronJob") as detail:
            for kind in ("configmap", "job"):
                self.made.append(partial(kubectl, "delete", kind, self.tag, *place))
            named = {"metadata": {"name": self.tag}}
            parameters = dict(word.split("=", 1) for word in self._night_words(1))
            self.world.apply({"apiVersion": "v1", "kind": "ConfigMap", "data": parameters, **named})
            cron = self.world.object("cronjob", "chexradinet-nightly")
            template = cron["spec"]["jobTemplate"]["spec"]
            for volume in template["template"]["spec"]["volumes"]:
                if volume["name"] == "parameters":
                    volume["configMap"]["name"] = self.tag
            since = time.time()
            self.world.apply({"apiVersion": "batch/v1", "kind": "Job", "spec": template, **named})
            run = self.world.new_run(lambda one: self.tag in str(one.display_name), since)
            self._follow_night(str(run.run_id), detail)

    def _night_by_schedule(self, version: Any) -> None:  # noqa: ANN401
        words = parse_settings(self.nightly.document, self._night_words(2))
        submission = replace(self.nightly, settings=words)
        service = self.api.recurring_runs
        with self.step("night by a schedule") as detail:
            found = ensure_experiment(self.api, find_experiment(self.api, DEFAULT_EXPERIMENT))
            schedule = Schedule(
                cron=_EVERY_MINUTE,
                experiment=found,
                pipeline_id=str(version.pipeline_id),
                account=RUN_ACCOUNT,
            )
            wanted = recurring_run_of(submission, schedule)
            wanted.display_name = self.tag
            with explained(self.api.endpoint, "creating the recurring run"):
                made = service.recurring_run_service_create_recurring_run(
                    wanted, _request_timeout=TIMEOUT_S
                )
            key = str(made.recurring_run_id)
            # Not before the end: Kubernetes removes the Workflows of a recurring run with it.
            remove = partial(service.recurring_run_service_delete_recurring_run, key)
            self._later("deleting the recurring run", remove)
            run = self.world.new_run(lambda one: one.recurring_run_id == key, time.time())
            with explained(self.api.endpoint, "disabling the recurring run"):
                service.recurring_run_service_disable_recurring_run(key, _request_timeout=TIMEOUT_S)
            self._follow_night(str(run.run_id), detail)

    def _follow_night(self, run_id: str, detail: list[str]) -> None:
        detail.append(run_id)
        follow(self.api, self._keep_track(run_id, self.nightly.pipeline), _QUIET)
        detail.append(night_results(self.api, run_id))

    def _read(self, run_id: str) -> None:
        with self.step("read metrics, ROC, report and decision through Kubeflow") as detail:
            detail.append(training_results(self.api, run_id))

    def _clean(self) -> None:
        if self.keeps or not self.made:
            return
        with self.step("remove what was made") as detail:
            for remove in reversed(self.made):
                try:
                    remove()
                except ChexRadiNetError as error:
                    detail.append(str(error))
            if detail:
                raise ChexRadiNetError("all else was removed")

    def _night_words(self, number: int) -> tuple[str, ...]:
        return (
            f"inbox_uri=s3://chexradinet-inbox/{self.tag}/{number}",
            f"models_uri=s3://chexradinet-models/{self.tag}",
            f"results_uri=s3://chexradinet-results/{self.tag}/{number}",
            *NIGHTLY_SETTINGS,
        )

    def _started(self, given: Submission, version: Any) -> str:  # noqa: ANN401
        found = ensure_experiment(self.api, find_experiment(self.api, DEFAULT_EXPERIMENT))
        run_id = start(self.api, given, version, found, RUN_ACCOUNT)
        return self._keep_track(run_id, given.pipeline)

    def _show(self) -> None:
        table = Table(box=None, pad_edge=False)
        for title in ("step", "state", "seconds", "detail"):
            table.add_column(title, overflow="fold")
        for row in self.rows:
            table.add_row(row.name, row.state.value, f"{row.seconds:.0f}", row.detail)
        self.console.print(table, highlight=False)
