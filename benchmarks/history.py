"""What a night costs after many nights: requests, bytes, seconds and memory against past plans.

`python -m benchmarks.history` makes a ledger of complete plans of 1,000 X-rays in memory, and plans
and collects one more night on it, once with an inbox that is emptied every night and once with one
that keeps every X-ray. Nothing is scored: the new plan's shard is made up. The slope is the cost
per further past night.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pyarrow as pa

from chexradinet.artifacts import table_bytes
from chexradinet.config import NetworkConfig, PreprocessingConfig
from chexradinet.config.nightly import PlanConfig, ResultSettings
from chexradinet.errors import StoreConflictError, StoreNotFoundError
from chexradinet.evaluation.calibration import Calibration, FindingCalibration
from chexradinet.model import BundleInfo
from chexradinet.nightly import (
    EXCLUDED,
    IMAGES,
    INDEX,
    SCORES,
    Addresses,
    ShardResult,
    pack,
    table_from,
)
from chexradinet.nightly import plan as planning
from chexradinet.nightly.collect import collect_plan
from chexradinet.nightly.history import read_history, roll_up
from chexradinet.nightly.ledger import Ledger, Plan, PlannedImage, document_bytes, read_plan
from chexradinet.nightly.model import NightModel
from chexradinet.store.protocol import ObjectInfo, ObjectStore

NUM_IMAGES = 1000
"""X-rays per night."""
PAGE = 1000
"""Keys per listing request, as S3 gives them."""
FIRST = datetime(2026, 1, 1, 20, tzinfo=UTC)
FINDINGS = ("Effusion", "Mass", "Nodule")
DIGEST = "ab" * 32
ADDRESSES = Addresses(
    inbox_uri="s3://inbox/in", models_uri="s3://models/m", results_uri="s3://results/r"
)


@dataclass
class Counting(ObjectStore):
    """A store in memory that counts what is asked of it."""

    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    now: datetime = FIRST
    requests: int = 0
    num_bytes: int = 0

    def _count(self, num_bytes: int = 0) -> None:
        self.requests += 1
        self.num_bytes += num_bytes

    def uri_of(self, key: str) -> str:
        """See `ObjectStore`."""
        return f"memory:{key}"

    def stat(self, key: str) -> ObjectInfo:
        """See `ObjectStore`."""
        self._count()
        return self._info(key)

    def _info(self, key: str) -> ObjectInfo:
        if key not in self.objects:
            raise StoreNotFoundError(key)
        data, modified = self.objects[key]
        etag = f"{modified.timestamp()}-{len(data)}"
        return ObjectInfo(
            key=key, uri=key, size_bytes=len(data), etag=etag, modified=modified, sha256=None
        )

    def list(self, prefix: str = "", left_out: object = None) -> Iterator[ObjectInfo]:
        """See `ObjectStore`."""
        for place, key in enumerate(sorted(k for k in self.objects if k.startswith(prefix))):
            if place % PAGE == 0:
                self._count()
            yield self._info(key)

    def chunks(self, key: str) -> Iterator[bytes]:
        """See `ObjectStore`."""
        if key not in self.objects:
            self._count()
            raise StoreNotFoundError(key)
        self._count(len(self.objects[key][0]))
        yield self.objects[key][0]

    def put(self, key: str, data: bytes, *, if_match: str | None = None) -> str:
        """See `ObjectStore`."""
        self._count()
        self.objects[key] = (data, self.now)
        return self._info(key).etag

    def create(self, key: str, data: bytes) -> str:
        """See `ObjectStore`."""
        if key in self.objects:
            self._count()
            raise StoreConflictError(key)
        return self.put(key, data)

    def put_file(self, key: str, path: Path) -> str:
        """See `ObjectStore`."""
        return self.put(key, path.read_bytes())

    def delete(self, key: str) -> None:
        """See `ObjectStore`."""
        self._count()
        self.objects.pop(key, None)


class KeptInbox(Counting):
    """An inbox that keeps the X-rays of all nights, or of the last one alone."""

    first_night: int = 0
    last_night: int = 0

    def list(self, prefix: str = "", left_out: object = None) -> Iterator[ObjectInfo]:
        """See `ObjectStore`."""
        place = 0
        for night in range(self.first_night, self.last_night + 1):
            for image in images_of(night):
                if place % PAGE == 0:
                    self._count()
                place += 1
                yield ObjectInfo(
                    key=prefix + image.key, uri="", size_bytes=image.size_bytes, etag=image.etag,
                    modified=image.arrived,
                )  # fmt: skip


def digest(text: str) -> str:
    """Return a name that does not compress."""
    return hashlib.sha256(text.encode()).hexdigest()


def images_of(night: int) -> list[PlannedImage]:
    """Return the X-rays of a night, in key order."""
    arrived = FIRST + timedelta(days=night)
    return [
        PlannedImage(
            key=f"{night:06d}/{number:06d}.dcm",
            etag=digest(f"etag {night} {number}")[:32],
            size_bytes=8 << 20,
            arrived=arrived,
        )
        for number in range(NUM_IMAGES)
    ]


def plan_of_night(number: int) -> Plan:
    """Return the plan of a night; nights count from 0, plans from 1."""
    night = number - 1
    return Plan(
        number=number,
        date=(FIRST + timedelta(days=night)).date().isoformat(),
        planned_at=FIRST + timedelta(days=night, hours=1),
        inbox_uri=ADDRESSES.inbox_uri,
        bundle_digest=DIGEST,
        preprocessing_digest=model().info.preprocessing_digest,
        findings=FINDINGS,
        calibrated=FINDINGS,
        settings=ResultSettings().record(),
        shard_size=NUM_IMAGES,
        images=tuple(images_of(night)),
    )


def model() -> NightModel:
    """Return a model without a network."""
    fitted = {
        name: FindingCalibration(
            status="platt", slope=1.0, positives=20, negatives=20, threshold=0.5
        )
        for name in FINDINGS
    }
    calibration = Calibration(
        findings=fitted, split="validation", target_sensitivity=0.9, num_images=40
    )
    preprocessing = PreprocessingConfig()
    info = BundleInfo(
        network=NetworkConfig(),
        findings=FINDINGS,
        preprocessing=preprocessing,
        preprocessing_digest=preprocessing.digest(),
        calibration=calibration.as_dict(),
    )
    return NightModel(info=info, digest=DIGEST, reference=None, settings=ResultSettings())


def shard_of(plan: Plan) -> bytes:
    """Return made-up scores of a plan with one shard."""
    images, scores = [], []
    for image in plan.images:
        key = digest(image.key)
        shared = {"image_key": key, "object_key": image.key, "study_uid": f"1.2.{int(key[:8], 16)}"}
        images.append(
            {
                **shared, "etag": image.etag, "arrived": image.arrived.isoformat(), "quality": "",
                "patient_key": key, "view": "PA", "sex": "", "manufacturer": "",
                "pixel_mean": 1.0, "pixel_std": 1.0, "embedding": [0.0] * 8,
                "probabilities": [0.1] * 3, "flags": [False] * 3,
            }
        )  # fmt: skip
        scores += [{**shared, "finding": name, "probability": 0.1} for name in FINDINGS]
    return pack(
        ShardResult(
            plan_sha256=plan.digest, scores=table_from(scores, SCORES),
            rejected=EXCLUDED.empty_table(), images=table_from(images, IMAGES), wall_s=1.0,
        )
    )  # fmt: skip


def complete(ledger: Ledger, plan: Plan, with_shard: bool) -> None:
    """Put a complete plan into the ledger."""
    store = ledger.store
    store.put(ledger.plan_key(plan.number, "plan.json"),
              document_bytes("nightly-plan", plan.as_dict()))  # fmt: skip
    store.put(ledger.shard_key(plan.number, 0), shard_of(plan) if with_shard else b"")
    columns = {
        "key": [image.key for image in plan.images],
        "etag": [image.etag for image in plan.images],
        "image_key": [digest(image.key) for image in plan.images],
        "status": ["scored"] * len(plan.images),
    }
    index = table_bytes(pa.table(columns, schema=INDEX), "nightly-index", 1)
    store.put(ledger.plan_key(plan.number, "index.parquet"), index)
    head = {
        "number": plan.number, "date": plan.date, "bundle_digest": DIGEST,
        "newest_arrival": plan.images[-1].arrived.isoformat(), "counts": {"scored": NUM_IMAGES},
        "index_sha256": hashlib.sha256(index).hexdigest(), "files": {}, "scores_sha256": DIGEST,
    }  # fmt: skip
    store.put(ledger.plan_key(plan.number, "complete.json"),
              document_bytes("nightly-completion", head))  # fmt: skip


def peak_mib() -> float:
    """Return the most memory of this process since `forget_peak`."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak() -> float:
    """Count the most memory again; return what is held now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return peak_mib()


def measured(stores: list[Counting], call: Callable[[], object]) -> tuple[int, float, float, float]:
    """Return requests, MiB read, processor seconds and MiB of memory that a call takes."""
    for store in stores:
        store.requests = store.num_bytes = 0
    held, started = forget_peak(), time.process_time()
    call()
    spent = time.process_time() - started
    read = sum(store.num_bytes for store in stores) / 2**20
    return sum(store.requests for store in stores), read, spent, peak_mib() - held


def night_after(num_plans: int, keeps: bool) -> dict[str, tuple[int, float, float, float]]:
    """Plan and collect a night after so many; return what each stage took."""
    results, inbox = Counting(), KeptInbox()
    ledger = Ledger(results, "r/")
    for number in range(1, num_plans + 1):
        results.now = FIRST + timedelta(days=number - 1, hours=2)
        complete(ledger, plan_of_night(number), with_shard=number > num_plans - 5)
    results.now = FIRST + timedelta(days=num_plans, hours=1)
    inbox.first_night, inbox.last_night = (0 if keeps else num_plans), num_plans
    champion = (model().info, DIGEST)

    def opened(uri: str) -> tuple[Counting, str]:
        return (inbox, "in/") if uri.startswith("s3://inbox") else (results, "r/")

    with (
        mock.patch.object(planning, "open_store", opened),
        mock.patch("chexradinet.nightly.ledger.open_store", opened),
        mock.patch.object(planning, "_champion", return_value=champion),
        mock.patch.object(planning, "require_conditional_create"),
    ):
        # The first night after an upgrade rolls up what is there; the others find it.
        first = measured([results], lambda: roll_up(read_history(ledger)))
        stores: list[Counting] = [results, inbox]
        plan_cost = measured(
            stores,
            lambda: planning.plan(ADDRESSES, PlanConfig(settle_s=0.0, shard_size=NUM_IMAGES)),
        )
        plan = read_plan(ledger, num_plans + 1)
        results.put(ledger.shard_key(plan.number, 0), shard_of(plan))
        collect_cost = measured(stores, lambda: collect_plan(ledger, plan, model()))
    return {"roll up": first, "plan": plan_cost, "collect": collect_cost}


def main() -> None:
    """Print a table, and the slope from the second longest to the longest history."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, nargs="+", default=[125, 250, 500, 1000])
    args = parser.parse_args()
    print("| inbox | past nights | stage | requests | MiB read | processor s | peak MiB more |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for keeps in (False, True):
        costs = {}
        for num_plans in args.plans:
            reader, writer = os.pipe()
            if os.fork() == 0:  # a process of its own, so that no peak hides another
                os.write(writer, json.dumps(night_after(num_plans, keeps)).encode())
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as answer:
                costs[num_plans] = json.loads(answer.read())
            os.wait()
            for stage, (requests, read, spent, memory) in costs[num_plans].items():
                print(
                    f"| {'kept' if keeps else 'emptied'} | {num_plans} | {stage} | {requests} "
                    f"| {read:.1f} | {spent:.2f} | {memory:.0f} |",
                    flush=True,
                )
        *_, before, last = args.plans
        for stage in ("plan", "collect"):
            rises = [
                (late - early) / (last - before)
                for early, late in zip(costs[before][stage], costs[last][stage], strict=True)
            ]
            print(
                f"{stage}, per further past night: {rises[0]:.3f} requests, "
                f"{rises[1] * 1024:.1f} KiB, {rises[2] * 1000:.1f} ms"
            )


if __name__ == "__main__":
    main()
