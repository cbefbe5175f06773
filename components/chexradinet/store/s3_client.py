"""Whose requests they are: keys of the environment, a web identity or a shared file.

Keys count first, then `AWS_WEB_IDENTITY_TOKEN_FILE` (a token that the cluster projects into the
pod and a security token service exchanges for keys), then `AWS_SHARED_CREDENTIALS_FILE`. Both files
are read again when needed, so a run outlives its first credentials.
"""

import re
from pathlib import Path

from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    Provider,
    StaticProvider,
    WebIdentityProvider,
)
from minio.error import MinioException
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from chexradinet.errors import StoreAccessError
from chexradinet.store.uri import S3Access

_PASSING = re.compile(r"HTTP status code (408|429|5\d\d)$")


class TokenServiceError(HTTPError):
    """The security token service cannot be reached, or not now; another attempt may help."""


class _Refreshed(Provider):
    """Credentials that are read again; errors repeat no token, which the client's do."""

    def __init__(self, source: Provider, failed: str) -> None:
        self._source = source
        self._failed = failed

    def retrieve(self) -> Credentials:
        """Return valid credentials.

        Raises:
            StoreAccessError: there are none; the message says where they were looked for.
            TokenServiceError: the service does not answer.
        """
        try:
            return self._source.retrieve()
        except HTTPError as error:
            raise TokenServiceError(type(error).__name__) from None
        except (MinioException, OSError, ValueError) as error:
            if _PASSING.search(str(error)):
                raise TokenServiceError("the service is busy") from None
            raise StoreAccessError(f"{self._failed}; see docs/operations.md, 'Storage'") from None


def provider_of(access: S3Access, pool: PoolManager) -> Provider:
    """Return what gives each request its credentials.

    Args:
        access: Where credentials come from.
        pool: Connections to the security token service.
    """
    if access.access_key:
        return StaticProvider(access.access_key, access.secret_key, access.session_token)
    if access.token_file:
        exchange = WebIdentityProvider(
            jwt_provider_func=lambda: {"access_token": Path(access.token_file).read_text().strip()},
            sts_endpoint=access.sts_url,
            role_arn=access.role_arn or None,
            role_session_name="chexradinet",
            http_client=pool,
        )
        return _Refreshed(
            exchange,
            f"the security token service {access.sts_url} gives no credentials for the token in "
            f"{access.token_file} (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN); check the token, "
            "the role and whom it trusts",
        )
    profile = access.profile or "default"
    return _Refreshed(
        AWSConfigProvider(access.credentials_file, profile),
        f"{access.credentials_file} (AWS_SHARED_CREDENTIALS_FILE) has no keys in profile "
        f"{profile!r}; add aws_access_key_id and aws_secret_access_key to it",
    )
