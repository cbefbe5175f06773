"""Every stage on a real MinIO, each with the policy of its own identity and no other right.

A proxy in front of the server notes each request: one that is denied fails the test, also where the
stage itself would pass over it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minio import Minio

from chexradinet.config import (
    EvaluationConfig,
    GuidanceConfig,
    GuidanceRecipe,
    IngestConfig,
    NetworkConfig,
    PreprocessingConfig,
    RadiomicsConfig,
    RegionConfig,
    TrainConfig,
)
from chexradinet.config.nightly import PlanConfig, Run
from chexradinet.ingest.output import WORK_VARIABLE, ingest_to
from chexradinet.nightly import Addresses
from chexradinet.nightly.run import nightly, report_outcome
from chexradinet.phantom import write_phantom
from chexradinet.registry import read_pointer, roll_back
from chexradinet.store import upload_directory
from chexradinet.store.administration import read_policies, set_up_buckets
from chexradinet.store.uri import CHECKPOINT_VARIABLE
from chexradinet.training.evaluate import Arms, evaluate
from chexradinet.training.publish import publish
from chexradinet.training.train import retrain, train
from tests.integration.recording_proxy import Proxy, recording
from tests.nightly_world import SCORING, make_bundle

FOLDER = Path(__file__).resolve().parents[2] / "manifests" / "base" / "storage"
SECRET = "a-secret-of-tests"  # noqa: S105 - of the test's own server
MODELS = "s3://chexradinet-models"
ADDRESSES = Addresses(
    inbox_uri="s3://chexradinet-inbox", models_uri=MODELS, results_uri="s3://chexradinet-results"
)
TRAINING = TrainConfig(epochs=1, batch_size=8, num_threads=1)


class Site(SimpleNamespace):
    """A store with the buckets and identities of an installation, seen through a proxy."""

    proxy: Proxy
    monkeypatch: pytest.MonkeyPatch
    administrator: Minio
    keys: dict[str, str]

    def become(self, identity: str) -> None:
        """Give this process the credentials of an identity, or the administrator's."""
        pair = (identity, SECRET) if identity else (self.keys["access"], self.keys["secret"])
        self.monkeypatch.setenv("AWS_ACCESS_KEY_ID", pair[0])
        self.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", pair[1])


@pytest.fixture
def site(
    start_minio: Callable[[], SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Site]:
    """Yield a site on a server of its own."""
    server = start_minio()
    with recording(server.address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv(CHECKPOINT_VARIABLE, "s3://chexradinet-artifacts/checkpoints")
        monkeypatch.setenv(WORK_VARIABLE, str(tmp_path / "work"))
        environment = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }
        for name in read_policies(FOLDER):
            prefix = name.upper().replace("-", "_")
            environment[f"{prefix}_ACCESS_KEY_ID"] = name
            environment[f"{prefix}_SECRET_ACCESS_KEY"] = SECRET
        assert set_up_buckets(FOLDER, environment)
        keys = {"access": server.access_key, "secret": server.secret_key}
        administrator = Minio(
            server.address, server.access_key, server.secret_key, secure=False, region="us-east-1"
        )
        yield Site(proxy=proxy, monkeypatch=monkeypatch, administrator=administrator, keys=keys)
        server.kill()


def test_every_stage_works_with_its_own_identity_and_nothing_is_denied(
    site: Site, tmp_path: Path
) -> None:
    site.become("")
    write_phantom(tmp_path / "source", 72, 96, seed=3)
    upload_directory(tmp_path / "source", "s3://chexradinet-training/demo")
    site.become("sender")
    upload_images(site, tmp_path / "source", 4)

    site.become("ingest")
    config = IngestConfig(
        preprocessing=PreprocessingConfig(image_side=64), ingest_workers=1, ingest_shard_size=16
    )
    dataset = tmp_path / "dataset"
    ingest_to("s3://chexradinet-training/demo", str(dataset), config)
    for _ in range(2):  # the second replaces the first
        ingest_to("s3://chexradinet-training/demo", "s3://chexradinet-artifacts/datasets/d", config)

    site.become("training")
    network = NetworkConfig(backbone="resnet18-narrow", map_stride=8)  # type: ignore[arg-type]
    train(dataset, tmp_path / "round-0", network, TRAINING)
    retrain(
        tmp_path / "round-0",
        dataset,
        [],
        tmp_path / "round-1",
        round_number=1,
        guidance=GuidanceConfig(guidance=GuidanceRecipe.NONE),
        config=TRAINING,
    )
    evaluate(
        dataset,
        Arms(rounds=[tmp_path / "round-0", tmp_path / "round-1"]),
        best=tmp_path / "best",
        target=tmp_path / "evaluation",
        config=EvaluationConfig(bootstrap_samples=100, min_positives=2),
        regions=RegionConfig(),
        radiomics=RadiomicsConfig(),
    )

    site.become("publish")
    first, again = (
        publish(tmp_path / "best", tmp_path / "evaluation", dataset, MODELS) for _ in range(2)
    )
    assert first.published
    assert first.champion_digest == again.champion_digest

    site.become("night")
    results = [night(f"night-{number}") for number in range(2)]
    assert [status for status, _ in results] == ["planned", "nothing_new"]
    assert [scored for _, scored in results] == [4, 0]

    other = add_older_champion(site, tmp_path)
    site.become("publish")
    assert roll_back(MODELS, other) == other
    site.become("night")
    assert night("rescore", rescore_since="2000-01-01") == ("planned", 4)
    assert site.proxy.denied() == []
    asked = {request.user for request in site.proxy.requests}
    assert {"ingest", "training", "publish", "night", "sender"} <= asked


def upload_images(site: Site, source: Path, number: int) -> None:
    """Deliver X-rays as a sender does."""
    address = site.proxy.endpoint.removeprefix("http://")
    client = Minio(address, "sender", SECRET, secure=False, region="us-east-1")
    for path in sorted(source.rglob("*.png"))[:number]:
        client.fput_object("chexradinet-inbox", f"sender/{path.name}", str(path))


def night(run_id: str, **changes: Any) -> tuple[str, int]:  # noqa: ANN401
    """Run a night and its exit handler; return the plan's status and how many were scored."""
    plan = PlanConfig(settle_s=0.0, shard_size=3, **changes)
    outcome, scored = nightly(ADDRESSES, plan, SCORING, Run(run_id=run_id))
    report_outcome(ADDRESSES.results_uri, "SUCCEEDED", run_id)
    return outcome.status, scored.num_scored if scored else 0


def add_older_champion(site: Site, folder: Path) -> str:
    """Put a bundle that was champion before into the store, as its administrator."""
    site.become("")
    digest = make_bundle(folder / "older")
    upload_directory(folder / "older", f"{MODELS}/{digest}")
    pointer, _ = read_pointer(MODELS)
    pointer["history"].insert(0, {**pointer["history"][0], "digest": digest})
    (folder / "champion.json").write_text(json.dumps(pointer), encoding="utf-8")
    site.administrator.fput_object(
        "chexradinet-models", "champion.json", str(folder / "champion.json")
    )
    return digest
