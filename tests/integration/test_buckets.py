"""Buckets, lifecycle and the policies of manifests/base on a real MinIO server."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from minio import Minio
from minio.error import S3Error
from minio.lifecycleconfig import LifecycleConfig

from chexradinet.errors import StoreAccessError, StoreError, StoreUnavailableError
from chexradinet.store.administration import (
    User,
    apply_policies,
    read_buckets,
    read_policies,
    set_up_buckets,
)
from chexradinet.store.uri import access_from_environment

FOLDER = Path(__file__).resolve().parents[2] / "manifests" / "base" / "storage"
SECRET = "a-secret-of-tests"  # noqa: S105 - of the test's own server
INBOX, TRAINING, MODELS, RESULTS, ARTIFACTS = (
    f"chexradinet-{name}" for name in ("inbox", "training", "models", "results", "artifacts")
)

BUCKETS = (INBOX, TRAINING, MODELS, RESULTS, ARTIFACTS)


class Server(NamedTuple):
    """A running MinIO and the environment of its bucket Job."""

    address: str
    environment: dict[str, str]

    def client(self, user: str) -> Minio:
        """Return a client that signs as this user."""
        return Minio(self.address, user, SECRET, secure=False, region="us-east-1")

    def administrator(self) -> Minio:
        """Return a client that may do everything."""
        return Minio(
            self.address,
            self.environment["AWS_ACCESS_KEY_ID"],
            self.environment["AWS_SECRET_ACCESS_KEY"],
            secure=False,
            region="us-east-1",
        )


@pytest.fixture(scope="module")
def server(start_minio: Callable[[], SimpleNamespace]) -> Server:
    """Start a server of these tests alone, whose users and buckets no other test sees."""
    minio = start_minio()
    environment = {
        "AWS_ENDPOINT_URL": minio.endpoint,
        "AWS_ACCESS_KEY_ID": minio.access_key,
        "AWS_SECRET_ACCESS_KEY": minio.secret_key,
    }
    for name in read_policies(FOLDER):
        prefix = name.upper().replace("-", "_")
        environment[f"{prefix}_ACCESS_KEY_ID"] = name
        environment[f"{prefix}_SECRET_ACCESS_KEY"] = SECRET
    return Server(minio.address, environment)


@pytest.fixture(scope="module")
def ready(server: Server) -> Server:
    """Return the server with buckets set up twice (a Job may be retried) and one object in each."""
    assert set_up_buckets(FOLDER, server.environment)
    assert set_up_buckets(FOLDER, server.environment)
    for place in PLACES:
        bucket, _, key = place.partition("/")
        server.administrator().put_object(bucket, key, io.BytesIO(b"1"), 1)
    return server


def test_every_bucket_keeps_old_versions_and_only_artifacts_expire(ready: Server) -> None:
    client = ready.administrator()
    expiring = {}
    for bucket in read_buckets(FOLDER / "buckets.json"):
        assert client.get_bucket_versioning(bucket.name).status == "Enabled"
        lifecycle = client.get_bucket_lifecycle(bucket.name)
        assert lifecycle is not None
        (rule,) = lifecycle.rules
        assert rule.noncurrent_version_expiration is not None
        assert rule.noncurrent_version_expiration.noncurrent_days == bucket.noncurrent_days
        expiring[bucket.name] = rule.expiration and rule.expiration.days
    assert expiring == {INBOX: None, TRAINING: None, MODELS: None, RESULTS: None, ARTIFACTS: 30}


def test_every_bucket_is_asked_to_end_uploads_that_were_broken_off(
    ready: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Looked at where it is sent: MinIO drops this rule, and ends such uploads itself after a day.
    sent: dict[str, LifecycleConfig] = {}
    monkeypatch.setattr(
        Minio, "set_bucket_lifecycle", lambda _, name, config: sent.update({name: config})
    )
    set_up_buckets(FOLDER, ready.environment)
    assert set(sent) == {INBOX, TRAINING, MODELS, RESULTS, ARTIFACTS}
    for config in sent.values():
        (rule,) = config.rules
        assert rule.abort_incomplete_multipart_upload is not None
        assert rule.abort_incomplete_multipart_upload.days_after_initiation == 1


def allowed(client: Minio, action: str, bucket: str, key: str = "there") -> bool:
    """Tell whether the server lets this user do this."""
    try:
        if action == "get":
            client.get_object(bucket, key).close()
        elif action == "put":
            client.put_object(bucket, f"{key}-new", io.BytesIO(b"2"), 1)
        elif action == "delete":
            client.remove_object(bucket, f"{key}-nothing-of-this-name")
        elif action == "destroy":
            client.remove_object(bucket, f"{key}-destroy", "00000000-0000-0000-0000-000000000000")
        else:
            assert action == "list"
            list(client.list_objects(bucket))
    except S3Error as error:
        if error.code != "AccessDenied":
            raise
        return False
    return True


PLACES = (
    f"{INBOX}/there",
    f"{INBOX}/sender/there",
    f"{TRAINING}/there",
    f"{MODELS}/there",
    f"{RESULTS}/there",
    f"{RESULTS}/ledger/there",
    f"{ARTIFACTS}/there",
    f"{ARTIFACTS}/kfp/there",
    f"{ARTIFACTS}/checkpoints/there",
    f"{ARTIFACTS}/datasets/there",
)
WRITE, CHANGE = {"get", "put"}, {"get", "put", "delete"}
RIGHTS: dict[str, tuple[set[str], dict[str, set[str]]]] = {
    "sender": (set(), {f"{INBOX}/sender/": {"put"}}),
    "ingest": (
        {INBOX, TRAINING, ARTIFACTS},
        {
            f"{INBOX}/": {"get"},
            f"{TRAINING}/": {"get"},
            f"{ARTIFACTS}/checkpoints/": CHANGE,
            f"{ARTIFACTS}/datasets/": CHANGE,
        },
    ),
    "training": (
        {TRAINING, MODELS, ARTIFACTS},
        {f"{TRAINING}/": {"get"}, f"{MODELS}/": {"get"}, f"{ARTIFACTS}/checkpoints/": CHANGE},
    ),
    "publish": ({MODELS}, {f"{MODELS}/": WRITE}),
    "night": (
        {INBOX, MODELS, RESULTS},
        {
            f"{INBOX}/": {"get"},
            f"{MODELS}/": {"get"},
            f"{RESULTS}/there": CHANGE,
            f"{RESULTS}/ledger/": WRITE,
        },
    ),
    "artifacts": ({ARTIFACTS}, {f"{ARTIFACTS}/kfp/": WRITE}),
    "results-reader": ({RESULTS}, {f"{RESULTS}/there": {"get"}}),
}
"""Buckets that an identity may list, and what it may do with keys that start so. Nothing else."""


@pytest.mark.parametrize("user", RIGHTS)
def test_a_policy_allows_what_it_says_and_nothing_else(ready: Server, user: str) -> None:
    client = ready.client(user)
    listed = {bucket for bucket in BUCKETS if allowed(client, "list", bucket)}
    found = {
        (place, action)
        for place in PLACES
        for action in ("get", "put", "delete", "destroy")
        if allowed(client, action, *place.split("/", 1))
    }
    may = RIGHTS[user][1]
    assert listed == RIGHTS[user][0]
    assert found == {
        (place, action)
        for place in PLACES
        for start, actions in may.items()
        if place.startswith(start)
        for action in actions
    }


def test_every_policy_that_is_shipped_is_tried() -> None:
    assert set(RIGHTS) == set(read_policies(FOLDER))


def test_a_sender_reaches_no_other_senders_folder(ready: Server) -> None:
    policies = read_policies(FOLDER)
    second = User(policy="sender", access_key="second-sender", secret_key=SECRET)
    assert apply_policies(policies, (second,), access_from_environment(ready.environment))
    client = ready.client("second-sender")
    assert allowed(client, "put", INBOX, "second-sender/there")
    assert not allowed(client, "put", INBOX, "sender/there")
    assert not allowed(client, "put", INBOX, "second-sender-not/there")


def test_minio_cannot_forbid_replacing_an_object_but_keeps_the_former_version(
    ready: Server,
) -> None:
    policy = read_policies(FOLDER)["sender"]
    once = {"Null": {"s3:if-none-match": "false"}}
    forbidding = policy | {"Statement": [one | {"Condition": once} for one in policy["Statement"]]}
    with pytest.raises(StoreError, match="invalid condition key"):
        apply_policies({"sender": forbidding}, (), access_from_environment(ready.environment))
    sender, root = ready.client("sender"), ready.administrator()
    versions = [
        sender.put_object(INBOX, "sender/x.dcm", io.BytesIO(text), 1).version_id
        for text in (b"1", b"2")
    ]
    with pytest.raises(S3Error, match="AccessDenied"):
        sender.remove_object(INBOX, "sender/x.dcm", version_id=versions[0])
    back = root.get_object(INBOX, "sender/x.dcm", version_id=versions[0])
    assert back.read() == b"1"
    back.close()


def test_no_user_can_make_buckets_or_change_their_lifecycle(ready: Server) -> None:
    for user in RIGHTS:
        with pytest.raises(S3Error, match="AccessDenied"):
            ready.client(user).make_bucket("another")
        with pytest.raises(S3Error, match="AccessDenied"):
            ready.client(user).delete_bucket_lifecycle(ARTIFACTS)


def test_what_the_night_deletes_can_be_brought_back(ready: Server) -> None:
    night, root = ready.client("night"), ready.administrator()
    made = night.put_object(RESULTS, "scores/row", io.BytesIO(b"4"), 1)
    night.remove_object(RESULTS, "scores/row")
    with pytest.raises(S3Error, match="NoSuchKey"):
        night.get_object(RESULTS, "scores/row")
    back = root.get_object(RESULTS, "scores/row", version_id=made.version_id)
    assert back.read() == b"4"
    back.close()


def test_another_secret_key_replaces_the_old_one(ready: Server) -> None:
    changed = ready.environment | {"SENDER_SECRET_ACCESS_KEY": "another-secret"}
    set_up_buckets(FOLDER, changed)
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        ready.client("sender").put_object(INBOX, "sender/x", io.BytesIO(b"5"), 1)
    set_up_buckets(FOLDER, ready.environment)
    assert allowed(ready.client("sender"), "put", INBOX, "sender/x")


def test_credentials_without_the_right_are_named_as_the_cause(ready: Server) -> None:
    poor = ready.environment | {"AWS_ACCESS_KEY_ID": "ingest"}
    with pytest.raises(StoreAccessError, match="may make buckets"):
        set_up_buckets(FOLDER, poor)


def test_an_unreachable_store_names_the_variable(server: Server) -> None:
    away = server.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    with pytest.raises(StoreUnavailableError, match="AWS_ENDPOINT_URL"):
        set_up_buckets(FOLDER, away)


def test_secrets_do_not_reach_the_log(ready: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="chexradinet"):
        set_up_buckets(FOLDER, ready.environment)
    assert "policy night: set" in caplog.text
    assert SECRET not in caplog.text
