"""Setting up the object store of an installation: rare, idempotent, with an administrator's key.

A folder holds `buckets.json` and a `policy-<name>.json` for each policy, as the bucket Job mounts
them. A policy's user is made if `<NAME>_ACCESS_KEY_ID` and `<NAME>_SECRET_ACCESS_KEY` are set.
Buckets, versioning and lifecycle are plain S3. Users and named policies are made if the server is
MinIO; elsewhere the policies are the site's to apply.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.error import MinioAdminException, S3Error
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    NoncurrentVersionExpiration,
    Rule,
)
from minio.versioningconfig import VersioningConfig
from pydantic import Field

from chexradinet.artifacts import read_document
from chexradinet.config import Settings, StoreConfig
from chexradinet.errors import ConfigError, StoreAccessError, StoreError
from chexradinet.store.minio_private import status_of
from chexradinet.store.protocol import Backoff, retrying
from chexradinet.store.s3_client import (
    RAW_ERRORS,
    connect,
    is_transient,
    open_pool,
    provider_of,
    translated,
)
from chexradinet.store.uri import S3Access, access_from_environment

T = TypeVar("T")

_BUCKETS_VERSION = 1
"""Schema of `buckets.json`."""

_LOG = logging.getLogger(__name__)
_CONFIG = StoreConfig(retry_total_s=15.0)
_OWNED_ALREADY = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})


class BucketConfig(Settings):
    """A bucket with versioning, and how long it keeps what."""

    name: str
    """Name in the store."""
    expire_days: int | None = Field(default=None, ge=1)
    """Age at which objects are deleted, in days; None keeps them."""
    noncurrent_days: int = Field(default=30, ge=1)
    """Days an overwritten or deleted version can still be brought back."""


@dataclass(frozen=True, kw_only=True)
class User:
    """User of the store, and the one policy that says for what."""

    policy: str
    """Name of the policy."""
    access_key: str
    """Name of the user."""
    secret_key: str = field(repr=False)
    """Key that the user signs with, at least 8 characters."""


def set_up_buckets(folder: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Make buckets, policies and users; return whether policies were applied (MinIO only).

    Raises:
        ConfigError: a document or variable cannot be used; nothing was made.
        StoreError: the store refuses or cannot be reached.
    """
    buckets, policies = read_buckets(folder / "buckets.json"), read_policies(folder)
    users = users_of(policies, environ)
    access = access_from_environment(environ)
    create_buckets(buckets, access)
    return apply_policies(policies, users, access)


def read_buckets(path: Path) -> tuple[BucketConfig, ...]:
    """Read the buckets to make.

    Raises:
        ArtifactError: the document is missing, not JSON, or of another schema.
        ConfigError: an entry has an unknown or missing setting, or there is none.
    """
    entries = read_document(path, "buckets", _BUCKETS_VERSION).get("buckets", [])
    try:
        buckets = tuple(BucketConfig(**entry) for entry in entries)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"an entry of {path} cannot be read: {error}") from error
    if not buckets:
        raise ConfigError(f"{path} names no bucket; add one under 'buckets'")
    return buckets


def read_policies(folder: Path) -> dict[str, dict[str, Any]]:
    """Read each `policy-<name>.json` of a folder.

    Raises:
        ConfigError: a document is not JSON.
    """
    policies = {}
    for path in sorted(folder.glob("policy-*.json")):
        try:
            policies[path.stem.removeprefix("policy-")] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); correct the policy") from error
    return policies


def users_of(policies: Mapping[str, object], environ: Mapping[str, str]) -> tuple[User, ...]:
    """Return the users whose keys the environment holds, at most one per policy.

    Raises:
        ConfigError: only one of a pair of variables is set.
    """
    users = []
    for policy in policies:
        prefix = policy.upper().replace("-", "_")
        names = (f"{prefix}_ACCESS_KEY_ID", f"{prefix}_SECRET_ACCESS_KEY")
        access_key, secret_key = (environ.get(name, "").strip() for name in names)
        if bool(access_key) != bool(secret_key):
            raise ConfigError(f"of {' and '.join(names)} only one is set; set both or none")
        if access_key:
            users.append(User(policy=policy, access_key=access_key, secret_key=secret_key))
    return tuple(users)


def create_buckets(buckets: tuple[BucketConfig, ...], access: S3Access) -> None:
    """Make each bucket, switch on its versioning and set its lifecycle; what is right stays.

    Raises:
        StoreAccessError: the credentials do not allow it.
        StoreUnavailableError: the store cannot be reached.
        StoreError: the store refuses, for instance because it knows no versioning.
    """
    client = connect(access, _CONFIG)
    needed = "with credentials that may make buckets and set versioning and lifecycle"
    for bucket in buckets:
        with _store_errors(f"cannot set up bucket {bucket.name!r} {needed}", access):
            _repeated(lambda: _make(client, bucket, access.region))  # noqa: B023 - called at once
        _LOG.info("bucket %s: versioned, lifecycle set", bucket.name)


def _make(client: Minio, bucket: BucketConfig, region: str) -> None:
    try:
        if not client.bucket_exists(bucket.name):
            client.make_bucket(bucket.name, location=region)
    except S3Error as error:
        if error.code not in _OWNED_ALREADY:  # another Job was faster
            raise
    client.set_bucket_versioning(bucket.name, VersioningConfig(ENABLED))
    client.set_bucket_lifecycle(bucket.name, _lifecycle(bucket))


def _lifecycle(bucket: BucketConfig) -> LifecycleConfig:
    rule = Rule(
        ENABLED,
        rule_filter=Filter(prefix=""),
        rule_id="chexradinet",
        expiration=Expiration(days=bucket.expire_days) if bucket.expire_days else None,
        noncurrent_version_expiration=NoncurrentVersionExpiration(
            noncurrent_days=bucket.noncurrent_days
        ),
        # A killed upload leaves parts that no listing shows and no expiry reaches.
        abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=1),
    )
    return LifecycleConfig([rule])


def _is_minio(access: S3Access) -> bool:
    """Tell whether the server is MinIO, which has an administration API for users and policies."""
    url = f"{'https' if access.secure else 'http'}://{access.endpoint}/minio/health/live"
    with _store_errors("cannot ask what the store is", access):
        answer = _repeated(lambda: open_pool(access, _CONFIG).request("GET", url))
    return answer.status == 200 and answer.headers.get("Server", "").startswith("MinIO")


def apply_policies(
    policies: Mapping[str, dict[str, Any]], users: tuple[User, ...], access: S3Access
) -> bool:
    """Make the policies and users on a MinIO server; return False, and say so, on another.

    A user that exists gets the given secret key: this is how a key is rotated.

    Raises:
        StoreAccessError: the credentials are not an administrator's.
        StoreError: the server refuses a policy or user.
    """
    if not _is_minio(access):
        names = ", ".join(sorted(policies))
        _LOG.warning("the store is not MinIO: apply these policies with its own tools: %s", names)
        return False
    pool = open_pool(access, _CONFIG)
    administrator = MinioAdmin(
        endpoint=access.endpoint,
        credentials=provider_of(access, pool),
        region=access.region,
        secure=access.secure,
        http_client=pool,
    )
    with _store_errors("cannot set up policies and users", access):
        for name, policy in policies.items():
            administrator.policy_add(name, policy=policy)
            _LOG.info("policy %s: set", name)
        for user in users:
            administrator.user_add(user.access_key, user.secret_key)
            _attach(administrator, user)
            _LOG.info("a user has policy %s", user.policy)
    return True


def _attach(administrator: MinioAdmin, user: User) -> None:
    try:
        administrator.attach_policy([user.policy], user=user.access_key)
    except MinioAdminException as error:
        if "policy change is already in effect" not in str(error).lower():
            raise


def _repeated(operation: Callable[[], T]) -> T:
    return retrying(operation, is_transient, Backoff(_CONFIG.retry_total_s))


@contextmanager
def _store_errors(what: str, access: S3Access) -> Iterator[None]:
    """Turn an error of the client in the block into the store's that fits."""
    try:
        yield
    except MinioAdminException as error:
        kind = StoreAccessError if status_of(error) in (401, 403) else StoreError
        raise kind(
            f"{what} at {access.endpoint}: MinIO refused ({error}); use the credentials of an "
            "administrator, keys of at least 3 and secrets of at least 8 characters"
        ) from error
    except RAW_ERRORS as error:
        raise translated(error, f"{what} at {access.endpoint}") from error
