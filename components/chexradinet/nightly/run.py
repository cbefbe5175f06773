"""The nightly run: its stages as Kubeflow runs them, and all of them in one go for a shell.

What needs torch is imported where it is used: planning and collecting start seconds earlier.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from chexradinet.config.nightly import PlanConfig, Run, ScoreConfig
from chexradinet.monitoring import NightlyTelemetry, push
from chexradinet.nightly.addresses import Addresses
from chexradinet.nightly.collect import collect, collect_plan
from chexradinet.nightly.lease import holding, release, this_process
from chexradinet.nightly.ledger import open_ledger, read_plan
from chexradinet.nightly.outcome import Night, ShardOutcome, together
from chexradinet.nightly.plan import PlanOutcome, parts_of, place_of, plan
from chexradinet.nightly.stage_run import begin, finish
from chexradinet.nightly.telemetry import night_telemetry

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the shards done and the shards there are."""


def new_run() -> Run:
    """Return a run that only this process works for."""
    return Run(run_id=f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}")


def plan_stage(addresses: Addresses, config: PlanConfig, run: Run) -> PlanOutcome:
    """Plan, unless another run is at work; see `plan`."""
    started = time.monotonic()
    ledger = open_ledger(addresses.results_uri)
    with holding(ledger, this_process(run.run_id, run.lease_ttl_s)) as ours:
        if not ours:
            outcome = PlanOutcome(status="another_run_active")
            _log.warning("%s", outcome.as_text())
            return outcome
        begin(ledger, run.run_id)
        outcome = plan(addresses, config)
    stages = {"plan": time.monotonic() - started}
    if outcome.parts:
        push(NightlyTelemetry(stage_seconds=stages))
    else:
        push(replace(night_telemetry(addresses, None), stage_seconds=stages))
        finish(ledger, run.run_id)
        release(ledger, run.run_id)
    return outcome


def score_stage(
    addresses: Addresses, work: str, index: int, config: ScoreConfig, run: Run
) -> ShardOutcome:
    """Score a shard of the work that planning gave; see `score`."""
    from chexradinet.nightly.score import score

    number, shard = place_of(work, index)
    ledger = open_ledger(addresses.results_uri)
    # Without the lease it goes on: whoever has it finds what is done, and nothing is done twice.
    with holding(ledger, this_process(run.run_id, run.lease_ttl_s)):
        return score(addresses, number, shard, config)


def collect_stage(addresses: Addresses, work: str, run: Run) -> Night:
    """Collect every plan of the work, the oldest first, and push the figures of all.

    Raises:
        ConfigError: the work holds no plan.
    """
    parts = parts_of(work)
    place_of(work, 0)
    ledger = open_ledger(addresses.results_uri)
    with holding(ledger, this_process(run.run_id, run.lease_ttl_s), last=True):
        night = together([collect(addresses, number) for number, _ in parts])
        finish(ledger, run.run_id)
    push(night_telemetry(addresses, night))
    return night


def nightly(
    addresses: Addresses,
    config: PlanConfig,
    scoring: ScoreConfig,
    run: Run | None = None,
    progress: Progress | None = None,
) -> tuple[PlanOutcome, Night | None]:
    """Plan, score and collect in this process; return what was planned and what came of it.

    Args:
        addresses: Inbox, models and results.
        config: How to plan.
        scoring: How to score.
        run: None for a new one.
        progress: Called after each shard.

    Raises:
        ChexRadiNetError: a stage failed; running again goes on where it stopped.
    """
    run = run or new_run()
    started = time.monotonic()
    ledger = open_ledger(addresses.results_uri)
    succeeded = False
    try:
        with holding(ledger, this_process(run.run_id, run.lease_ttl_s), last=True) as ours:
            if not ours:
                succeeded = True
                outcome = PlanOutcome(status="another_run_active")
                _log.warning("%s", outcome.as_text())
                return outcome, None
            outcome = plan(addresses, config)
            planned_s = time.monotonic() - started
            night = _work(addresses, outcome, scoring, progress)
            figures = night_telemetry(addresses, night)
        succeeded = True
    finally:
        if not succeeded:
            push(NightlyTelemetry(success=False, duration_seconds=time.monotonic() - started))
    stages = {"plan": planned_s, **figures.stage_seconds}
    spent_s = time.monotonic() - started
    push(replace(figures, success=True, duration_seconds=spent_s, stage_seconds=stages))
    return outcome, night


def _work(
    addresses: Addresses, outcome: PlanOutcome, scoring: ScoreConfig, progress: Progress | None
) -> Night | None:
    from chexradinet.nightly.score import score_shard
    from chexradinet.nightly.scorer import open_scorer

    ledger = open_ledger(addresses.results_uri)
    nights, done = [], 0
    for number, shards in outcome.parts:
        found = read_plan(ledger, number)
        scorer = open_scorer(addresses, found, scoring)
        for shard in range(shards):
            score_shard(ledger, found, shard, scorer, scoring)
            done += 1
            if progress is not None:
                progress(done, outcome.num_shards)
        nights.append(collect_plan(ledger, found, scorer))
    return together(nights) if nights else None
