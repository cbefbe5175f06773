"""Acceptance of an installation: a small training and two nights, from generated X-rays to reports.

All it writes lies under prefixes of its own, `acceptance-…`, and is removed at the end, so that an
installation in use keeps its champion, its inbox and its results.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from chexradinet.errors import ChexRadiNetError
from pipelines.acceptance_cluster import (
    CLEAN,
    FIRST_EPOCH,
    NIGHTLY_SETTINGS,
    PREPARE,
    READ,
    TRAINING_SETTINGS,
    Installation,
)
from pipelines.api import TIMEOUT_S, Api, explained
from pipelines.check_cluster import Site, State, check_cluster
from pipelines.cluster import kubectl
from pipelines.follow import follow
from pipelines.parameters import parse_settings
from pipelines.resources import RUN_ACCOUNT
from pipelines.schedule import Schedule, recurring_run_of
from pipelines.store_job import run_store_job
from pipelines.submit import (
    DEFAULT_EXPERIMENT,
    Submission,
    ensure_experiment,
    find_experiment,
    start,
)
from pipelines.upload import find_pipeline, publish

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
    rows: list[Row] = field(default_factory=list)
    made: list[Callable[[], object]] = field(default_factory=list)
    """What removes again what the steps made."""

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
            self._check()
            self._prepare()
            versions = self._publish()
            run_id = self._train(versions[0])
            self._night_by_cron_job()
            self._night_by_schedule(versions[1])
            self._read(run_id)
        except ChexRadiNetError:
            pass  # told in its row
        finally:
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

    def _prepare(self) -> None:
        self.made.append(lambda: run_store_job(f"{self.tag}-clean", CLEAN.format(tag=self.tag)))
        with self.step("upload phantoms"):
            run_store_job(f"{self.tag}-prepare", PREPARE.format(tag=self.tag))

    def _publish(self) -> tuple[Any, Any]:
        with self.step("publish both pipelines") as detail:
            found = []
            for one in (self.training, self.nightly):
                known = find_pipeline(self.api, one.pipeline)
                found.append(publish(self.api, one, known, "", _QUIET))
            detail.append(", ".join(str(one.display_name or one.name) for one in found))
        return found[0], found[1]

    def _train(self, version: Any) -> str:  # noqa: ANN401 - the generated models are untyped
        words = (
            f"source=s3://chexradinet-training/{self.tag}",
            f"models_uri=s3://chexradinet-models/{self.tag}",
            *TRAINING_SETTINGS,
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
            if any(FIRST_EPOCH in self.world.log(name) for name in later):
                raise ChexRadiNetError(
                    "training started over instead of continuing where it was interrupted"
                )
            detail.append("resumed after its first epoch")
        return run_id

    def _night_by_cron_job(self) -> None:
        with self.step("night by the CronJob") as detail:
            parameters = dict(word.split("=", 1) for word in self._night_words())
            self.world.apply(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": self.tag},
                    "data": parameters,
                }
            )
            cron = self.world.object("cronjob", "chexradinet-nightly")
            template = cron["spec"]["jobTemplate"]["spec"]
            for volume in template["template"]["spec"]["volumes"]:
                if volume["name"] == "parameters":
                    volume["configMap"]["name"] = self.tag
            since = time.time()
            self.world.apply(
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": {"name": self.tag},
                    "spec": template,
                }
            )
            run = self.world.new_run(lambda one: self.tag in str(one.display_name), since)
            detail.append(str(run.run_id))
            follow(self.api, str(run.run_id), _QUIET)

    def _night_by_schedule(self, version: Any) -> None:  # noqa: ANN401
        words = parse_settings(self.nightly.document, self._night_words())
        submission = replace(self.nightly, settings=words)
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
            service = self.api.recurring_runs
            with explained(self.api.endpoint, "creating the recurring run"):
                made = service.recurring_run_service_create_recurring_run(
                    wanted, _request_timeout=TIMEOUT_S
                )
            key = str(made.recurring_run_id)
            try:
                run = self.world.new_run(lambda one: one.recurring_run_id == key, time.time())
                detail.append(str(run.run_id))
                follow(self.api, str(run.run_id), _QUIET)
            finally:
                # Only now: Kubernetes removes the Workflows of a recurring run with it.
                service.recurring_run_service_delete_recurring_run(key, _request_timeout=TIMEOUT_S)

    def _read(self, run_id: str) -> None:
        with self.step("read metrics and reports") as detail:
            log = run_store_job(f"{self.tag}-read", READ.format(tag=self.tag, run=run_id))
            found = json.loads(log.partition("FOUND ")[2].splitlines()[0])
            detail.append(", ".join(f"{name} {value}" for name, value in found.items()))
            missing = {"champion", "report_bytes", "mean_auroc"} - set(found)
            if missing or found["night_reports"] < 1 or found["score_files"] < 2:
                raise ChexRadiNetError(f"missing: {sorted(missing) or 'scores of a night'}")

    def _clean(self) -> None:
        with self.step("remove what was made"):
            for remove in self.made:
                remove()
            for kind in ("job", "configmap"):
                words = ("--namespace", self.site.namespace, "--ignore-not-found", "--wait=false")
                kubectl("delete", kind, self.tag, *words)

    def _night_words(self) -> tuple[str, ...]:
        return (
            f"inbox_uri=s3://chexradinet-inbox/{self.tag}",
            f"models_uri=s3://chexradinet-models/{self.tag}",
            f"results_uri=s3://chexradinet-results/{self.tag}",
            *NIGHTLY_SETTINGS,
        )

    def _started(self, given: Submission, version: Any) -> str:  # noqa: ANN401
        found = ensure_experiment(self.api, find_experiment(self.api, DEFAULT_EXPERIMENT))
        return start(self.api, given, version, found, RUN_ACCOUNT)

    def _show(self) -> None:
        table = Table(box=None, pad_edge=False)
        for title in ("step", "state", "seconds", "detail"):
            table.add_column(title, overflow="fold")
        for row in self.rows:
            table.add_row(row.name, row.state.value, f"{row.seconds:.0f}", row.detail)
        self.console.print(table, highlight=False)
