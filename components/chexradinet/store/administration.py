"""Making the buckets and rights of an installation: rare, idempotent, with an administrator's key.

Buckets, versioning and lifecycle are plain S3. Users and named policies are not: they are made
where the server is MinIO; elsewhere the policies are the site's to apply.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException, S3Error
from minio.lifecycleconfig import (
    AbortIncompleteMultipartUpload,
    Expiration,
    LifecycleConfig,
    NoncurrentVersionExpiration,
    Rule,
)
from minio.versioningconfig import VersioningConfig

from chexradinet.config import require
from chexradinet.errors import StoreAccessError, StoreError, StoreUnavailableError
from chexradinet.store.environment import S3Access

_LOG = logging.getLogger(__name__)
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_OWNED_ALREADY = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"})


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """A bucket with versioning, and how long it keeps what."""

    name: str
    """Name in the store."""
    expire_days: int | None = None
    """Age at which objects are deleted, in days; None keeps them."""
    noncurrent_days: int = 30
    """Days an overwritten or deleted version can still be brought back."""

    def __post_init__(self) -> None:
        """Check the days."""
        days = self.expire_days
        require(days is None or days >= 1, "expire_days", days, "None or at least 1")
        require(self.noncurrent_days >= 1, "noncurrent_days", self.noncurrent_days, "at least 1")


@dataclass(frozen=True, kw_only=True)
class User:
    """Someone who may use the store, and the one policy that says for what."""

    policy: str
    """Name of the policy."""
    access_key: str
    """Name of the user."""
    secret_key: str = field(repr=False)
    """What the user signs with, at least 8 characters."""


def _connection(access: S3Access) -> urllib3.PoolManager:
    if not access.secure:
        return urllib3.PoolManager(timeout=_TIMEOUT, retries=urllib3.Retry(3, backoff_factor=0.5))
    return urllib3.PoolManager(
        timeout=_TIMEOUT,
        retries=urllib3.Retry(3, backoff_factor=0.5),
        cert_reqs="CERT_REQUIRED",
        ca_certs=access.ca_bundle,
    )


def _lifecycle(bucket: BucketConfig) -> LifecycleConfig:
    return LifecycleConfig(
        [
            Rule(
                ENABLED,
                rule_filter=Filter(prefix=""),
                rule_id="chexradinet",
                expiration=Expiration(days=bucket.expire_days) if bucket.expire_days else None,
                noncurrent_version_expiration=NoncurrentVersionExpiration(
                    noncurrent_days=bucket.noncurrent_days
                ),
                # A killed upload leaves parts that no listing shows and no expiry reaches.
                abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(
                    days_after_initiation=1
                ),
            )
        ]
    )


def _make(client: Minio, bucket: BucketConfig, region: str) -> None:
    try:
        if not client.bucket_exists(bucket.name):
            client.make_bucket(bucket.name, location=region)
    except S3Error as error:
        if error.code not in _OWNED_ALREADY:  # another Job was faster
            raise
    client.set_bucket_versioning(bucket.name, VersioningConfig(ENABLED))
    client.set_bucket_lifecycle(bucket.name, _lifecycle(bucket))


def create_buckets(buckets: tuple[BucketConfig, ...], access: S3Access) -> None:
    """Make each bucket, switch on its versioning and set its lifecycle; what is right stays.

    Raises:
        StoreAccessError: the credentials do not allow it.
        StoreUnavailableError: the store cannot be reached.
        StoreError: the store refuses, for instance because it knows no versioning.
    """
    client = Minio(
        access.endpoint,
        access.access_key,
        access.secret_key,
        session_token=access.session_token,
        secure=access.secure,
        region=access.region,
        http_client=_connection(access),
    )
    for bucket in buckets:
        try:
            _make(client, bucket, access.region)
        except S3Error as error:
            kind = StoreAccessError if error.code in _REFUSED else StoreError
            raise kind(
                f"bucket {bucket.name!r} could not be set up: {error.code} {error.message}; it "
                "needs credentials that may make buckets and set versioning and lifecycle"
            ) from error
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            raise StoreUnavailableError(
                f"{access.endpoint} cannot be reached ({type(error).__name__}); check "
                "AWS_ENDPOINT_URL and the network policy"
            ) from error
        _LOG.info("bucket %s: versioned, lifecycle set", bucket.name)


def is_minio(access: S3Access) -> bool:
    """Tell whether the server is MinIO, which has an administration API for users and policies.

    Raises:
        StoreUnavailableError: the store cannot be reached.
    """
    scheme = "https" if access.secure else "http"
    try:
        answer = _connection(access).request(
            "GET", f"{scheme}://{access.endpoint}/minio/health/live"
        )
    except urllib3.exceptions.HTTPError as error:
        raise StoreUnavailableError(
            f"{access.endpoint} cannot be reached ({type(error).__name__}); check AWS_ENDPOINT_URL"
        ) from error
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
    if not is_minio(access):
        names = ", ".join(sorted(policies))
        _LOG.warning("the store is not MinIO: apply these policies with its own tools: %s", names)
        return False
    administrator = MinioAdmin(
        endpoint=access.endpoint,
        credentials=StaticProvider(access.access_key, access.secret_key, access.session_token),
        region=access.region,
        secure=access.secure,
        http_client=_connection(access),
    )
    try:
        for name, policy in policies.items():
            administrator.policy_add(name, policy=policy)
            _LOG.info("policy %s: set", name)
        for user in users:
            administrator.user_add(user.access_key, user.secret_key)
            _attach(administrator, user)
            _LOG.info("a user has policy %s", user.policy)
    except MinioAdminException as error:
        refused = str(error._code) in {"401", "403"}
        raise (StoreAccessError if refused else StoreError)(
            f"MinIO refused to set up policies and users ({error}); it needs the credentials of an "
            "administrator, keys of at least 3 and secrets of at least 8 characters"
        ) from error
    return True


def _attach(administrator: MinioAdmin, user: User) -> None:
    try:
        administrator.attach_policy([user.policy], user=user.access_key)
    except MinioAdminException as error:
        if "policy change is already in effect" not in str(error).lower():
            raise
